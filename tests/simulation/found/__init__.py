"""Seeds that broke a promise once, with their faults shrunk; each says what was wrong. None is kept yet: the one bug
of the engine that was found so has a test of its own in `tests/unit/test_supervisor_succession.py`, about a worker that
a successor gives up."""
