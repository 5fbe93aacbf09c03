"""The parts of `python -m benchmarks.scaling`: the curves, what is measured for each, the programs."""
