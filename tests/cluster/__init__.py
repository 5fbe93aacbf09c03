"""A bench of machines: nodes as Linux namespaces on a switch, each with Ray, that can be cut off, slowed down, frozen,
powered off and brought back. Needs root; `possible.why_not` says what else.

    switch      the network between them
    machine     one of them, whatever runs on it
    init        its first process
    freezer     stops all that runs on it at one moment
    ray_nodes   a Ray cluster on some machines, with a token
    database    PostgreSQL on a machine of its own
    service     `dspool up` on the first of them, and a load on it that says what it met
"""
