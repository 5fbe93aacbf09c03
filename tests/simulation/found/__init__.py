"""Seeds that broke a promise once, with their faults shrunk; each says what was wrong. None has been found yet."""
