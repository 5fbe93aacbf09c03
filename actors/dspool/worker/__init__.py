"""A worker: accepts operations, runs them in its slots, owns sessions under leases."""
