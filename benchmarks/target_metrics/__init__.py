"""How `benchmarks.targets` measures each of its metrics."""
