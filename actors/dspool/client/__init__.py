"""A process that calls a pool: its queue, its links to workers, what it keeps of each call."""
