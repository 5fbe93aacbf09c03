"""The parts as Ray actors. With `pool`, the only package that imports Ray.

All actors of a pool are detached and named, in one namespace: an actor that another actor started would die with it.
Nothing but `lifecycle.dismantle` removes them. A call on a handle raises `PoolError`s only; see `cluster.ask`.
"""
