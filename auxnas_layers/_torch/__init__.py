"""What this package needs of torch beyond its public interface: temporary hooks, thread-local state, compilation."""
