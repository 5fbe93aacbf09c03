"""Pools without Ray: the same parts, in this process and its children. For tests, and for `dspool dev`."""
