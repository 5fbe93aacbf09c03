"""Programs with the instrumentation of others, as the pages of those say to install it."""
