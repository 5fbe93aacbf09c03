"""Research: a folder a question, started by the file of its name in `benchmarks/`. CI only sees that each runs."""
