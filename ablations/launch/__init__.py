"""Where runs are executed: on this machine's devices."""
