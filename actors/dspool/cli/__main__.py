"""`python -m dspool.cli` is `dspool`."""

from dspool.cli import main

main()
