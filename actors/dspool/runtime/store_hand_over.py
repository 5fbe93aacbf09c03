"""What a cluster knows of a pool's store that hands over to another one: what makes it safe to ask again.

A store that hands over takes nothing more, answers all that it took, gives its pool back, and only then says here that
it did. So whoever then hears that its actor is gone knows that what was asked last never began.
"""

from __future__ import annotations

import ray
from ray.experimental import internal_kv

from dspool.errors import StoreFailed
from dspool.runtime.cluster import NAMESPACE

MOVED = "moved"
"""The detail of the error with which a store refuses what it did not begin: its successor takes it."""
SUCCESSOR_S = 60.0
"""How long whoever asks waits for the store that takes over."""


def refusal(pool: str) -> StoreFailed:
    return StoreFailed(
        f"the session store of pool {pool!r} hands over to another process; try again", moved=True
    )


def note(pool: str, actor: str) -> None:
    """This store has answered all that it took, and takes nothing more."""
    if ray.is_initialized():
        internal_kv._internal_kv_put(_key(pool), actor.encode(), namespace=NAMESPACE.encode())


def has_handed_over(pool: str, actor: str) -> bool:
    """Whether this store ended like that: what it did not answer it did not begin."""
    return bool(internal_kv._internal_kv_get(_key(pool), namespace=NAMESPACE.encode()) == actor.encode())


def forget(pool: str, actor: str) -> None:
    """This store goes on. What another one said stays: who heard late that it is gone still looks."""
    if ray.is_initialized() and has_handed_over(pool, actor):
        internal_kv._internal_kv_del(_key(pool), namespace=NAMESPACE.encode())


def _key(pool: str) -> bytes:
    return f"store handed over:{pool}".encode()


__all__ = ["MOVED", "SUCCESSOR_S", "forget", "has_handed_over", "note", "refusal"]
