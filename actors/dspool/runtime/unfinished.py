"""An exchange of a pool's actors, kept in the cluster until it is done: one that was cut off can be finished."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

from ray.experimental import internal_kv

from dspool.config import PoolConfig
from dspool.runtime.cluster import NAMESPACE
from dspool.runtime.installed import StartCommand


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
    code: StartCommand | None = None
    """What they run, if not what the cluster's processes run."""


def note(unfinished: Unfinished) -> None:
    """Before the first actor ends."""
    key = _key(unfinished.config.name)
    # By name: another version may finish it.
    internal_kv._internal_kv_put(key, pickle.dumps(unfinished._asdict()), namespace=NAMESPACE.encode())


def noted(pool: str) -> Unfinished | None:
    """What has to be finished; None: nothing."""
    kept = internal_kv._internal_kv_get(_key(pool), namespace=NAMESPACE.encode())
    if not kept:
        return None
    fields: dict[str, Any] = pickle.loads(kept)
    return Unfinished(**{name: value for name, value in fields.items() if name in Unfinished._fields})


def is_noted(pool: str) -> bool:
    """Whether there is something to finish."""
    return bool(internal_kv._internal_kv_exists(_key(pool), namespace=NAMESPACE.encode()))


def forget(pool: str) -> None:
    """It is done, or the pool is not the same any more."""
    internal_kv._internal_kv_del(_key(pool), namespace=NAMESPACE.encode())


def _key(pool: str) -> bytes:
    return f"exchange:{pool}".encode()


__all__ = ["Unfinished", "forget", "is_noted", "note", "noted"]
