"""The parts of `python -m benchmarks.sizing`: a simulated pool, the policies, the workloads, the picture."""
