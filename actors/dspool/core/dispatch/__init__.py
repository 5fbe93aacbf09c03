"""Which operation goes to which worker, and when."""
