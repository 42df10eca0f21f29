"""The engine: runs opaque networks tap by tap, and exchanges their features in between."""
