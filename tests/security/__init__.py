"""The service as an attacker sees it: one file a kind of finding, two principals wherever something is shared."""
