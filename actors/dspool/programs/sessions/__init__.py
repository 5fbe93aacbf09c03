"""A DSPy session: what runs an operation in a worker."""
