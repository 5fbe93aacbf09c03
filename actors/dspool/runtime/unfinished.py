"""An exchange of a pool's actors, kept in the cluster until it is done: one that was cut off can be finished."""

from __future__ import annotations

import pickle
from typing import NamedTuple

from ray.experimental import internal_kv

from dspool.config import PoolConfig
from dspool.runtime.cluster import NAMESPACE


class Unfinished(NamedTuple):
    """With the pool's secret, which nobody else has while there is no supervisor. Whoever can read it there has the
    cluster's token, and could ask the supervisor itself.
    """

    config: PoolConfig
    """With which the pool goes on."""
    secret: bytes
    roles: tuple[str, ...]
    """The actors that others take the place of; the last one is the supervisor."""
    size: int | None
    """The number of workers, if that changes."""


def note(unfinished: Unfinished) -> None:
    """Before the first actor ends."""
    key = _key(unfinished.config.name)
    internal_kv._internal_kv_put(key, pickle.dumps(unfinished), namespace=NAMESPACE.encode())


def noted(pool: str) -> Unfinished | None:
    """What has to be finished; None: nothing."""
    kept = internal_kv._internal_kv_get(_key(pool), namespace=NAMESPACE.encode())
    if not kept:
        return None
    unfinished = pickle.loads(kept)
    assert isinstance(unfinished, Unfinished)
    return unfinished


def forget(pool: str) -> None:
    """It is done, or the pool is not the same any more."""
    internal_kv._internal_kv_del(_key(pool), namespace=NAMESPACE.encode())


def _key(pool: str) -> bytes:
    return f"exchange:{pool}".encode()


__all__ = ["Unfinished", "forget", "note", "noted"]
