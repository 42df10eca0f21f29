"""Running two opaque forwards, tap by tap; `run` is all that the rest of the library uses."""

from auxnas_layers._engine.ambient import uncompiled
from auxnas_layers._engine.branch import PRIMARY, Branch
from auxnas_layers._engine.hooks import hooked
from auxnas_layers._engine.run import refuse_tracing, run

__all__ = ["PRIMARY", "Branch", "hooked", "refuse_tracing", "run", "uncompiled"]
