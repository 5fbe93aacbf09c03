"""The session store, on SQL."""
