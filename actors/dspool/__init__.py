"""Stateful DSPy programs, served from pools of warm, supervised Ray actors.

`from dspool import Pool, PoolConfig` is all most programs need; errors are in `dspool.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspool.release import VERSION

if TYPE_CHECKING:
    from dspool.config import PoolConfig, load_config
    from dspool.errors import PoolError
    from dspool.messages import Result
    from dspool.pool import BlockingPool, Pool, SessionHandle
    from dspool.remote import BlockingRemotePool, RemotePool

__version__ = VERSION
__all__ = [
    "BlockingPool",
    "BlockingRemotePool",
    "Pool",
    "PoolConfig",
    "PoolError",
    "RemotePool",
    "Result",
    "SessionHandle",
    "load_config",
]

_HOMES = {
    "BlockingPool": "dspool.pool",
    "BlockingRemotePool": "dspool.remote",
    "Pool": "dspool.pool",
    "PoolConfig": "dspool.config",
    "PoolError": "dspool.errors",
    "RemotePool": "dspool.remote",
    "Result": "dspool.messages",
    "SessionHandle": "dspool.pool",
    "load_config": "dspool.config",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `dspool config` must not wait for Ray, nor a worker for what only clients use.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dspool' has no attribute {name!r}")
