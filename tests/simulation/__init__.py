"""The whole engine in one process and in simulated time, under every fault, checked by its history.

`python -m tests.simulation --seeds 100` runs it; docs/explanation/how-we-test.md says what is simulated and what not.
Simulations run in a process of their own: `world` replaces clocks and chance before the engine is imported.
"""
