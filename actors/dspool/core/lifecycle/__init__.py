"""The pool as a value: its workers' states, events in, actions out."""
