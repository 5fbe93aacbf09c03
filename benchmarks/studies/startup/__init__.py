"""The parts of `python -m benchmarks.startup`: pools of both kinds, and what workers leave behind."""
