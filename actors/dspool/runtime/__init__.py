"""The parts as Ray actors. With `pool`, the only part of `dspool` that imports Ray.

All actors of a pool are detached and named, in one namespace: otherwise an actor would die with the one that started
it. Only `lifecycle.dismantle` removes them. A call through `cluster.ask` raises `PoolError`s only.
"""
