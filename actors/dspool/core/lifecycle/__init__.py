"""The pool as a value: its workers' states, what happened, what to do next."""
