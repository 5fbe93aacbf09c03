"""DSPy programs from plain data."""
