"""Who waits for whom: the GPUs as processes on the SimPy event loop, and how long each computes."""
