"""The systems of `benchmarks.peers`: each runs the same DSPy programs on the same engine, in two processes."""
