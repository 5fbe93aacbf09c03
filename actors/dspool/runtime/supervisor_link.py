"""How clients reach their pool's supervisor, also after another one has taken its place."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

from ray.actor import ActorHandle

from dspool.errors import PoolClosed, UnknownPool, WorkerLost
from dspool.runtime.cluster import ask, ask_supervisor, find_supervisor

_EXCHANGE_S: Final = 10.0
"""How long a supervisor may be away while another one takes its place, as `exchange` does."""
_LOOK_S: Final = 0.1


class SupervisorLink:
    """The supervisor of a pool by its name: a handle is good for one actor, and a new configuration is another."""

    def __init__(self, pool: str, handle: ActorHandle[Any]) -> None:
        self._pool = pool
        self.handle = handle
        self.has_ended: Callable[[], bool] = lambda: False
        """Whether the pool is known to have ended: then nobody takes the supervisor's place."""

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call it once.

        Raises:
            PoolError: what it raised. WorkerLost: it is gone, and the call may have begun; the next one finds its
                successor.
        """
        try:
            return await ask(self.handle, method, *args, **kwargs)
        except WorkerLost:
            await self._find()
            raise

    async def query(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method that may run twice; waits while another supervisor takes its place, or Ray restarts it.

        Raises:
            PoolError: what it raised. PoolClosed: the pool has ended. PoolNotReady: it did not come back in time.
        """
        until = time.monotonic() + _EXCHANGE_S
        while True:
            try:
                return await ask_supervisor(self.handle, method, *args, **kwargs)
            except PoolClosed as closed:
                # It says so itself, or its actor is gone for good.
                if closed.__cause__ is None or self.has_ended() or time.monotonic() > until:
                    raise
                await self._find()
            await asyncio.sleep(_LOOK_S)

    async def _find(self) -> None:
        with contextlib.suppress(UnknownPool):  # not yet
            self.handle = await asyncio.to_thread(find_supervisor, self._pool)


__all__ = ["SupervisorLink"]
