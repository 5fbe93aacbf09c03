"""Programs as a script of DSPy has them: they know nothing of dspool, and configure DSPy where they like."""
