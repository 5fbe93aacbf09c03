"""Answers that are made once for all who ask within a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Fresh(Generic[T]):
    """Keeps at most `limit` answers, each for `keep_s` seconds. One event loop owns it."""

    def __init__(
        self, keep_s: float, *, limit: int = 64, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keep_s, self._limit, self._clock = keep_s, limit, clock
        self._made: dict[Hashable, tuple[float, asyncio.Future[T]]] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[T]], *, keep_s: float | None = None) -> T:
        """The answer for `key`, not older than `keep_s` seconds. Raises what `make` raises, which is not kept."""
        now = self._clock()
        kept = self._made.get(key)
        if kept is not None and (
            not kept[1].done() or now - kept[0] < (self._keep_s if keep_s is None else keep_s)
        ):
            # Shielded: one who hangs up must not take the answer from the others.
            return await asyncio.shield(kept[1])
        making = asyncio.ensure_future(make())
        self._made.pop(key, None)
        self._made[key] = (now, making)
        while len(self._made) > self._limit:
            del self._made[next(iter(self._made))]
        making.add_done_callback(lambda done: self._made_it(key, done, keep_s))
        return await asyncio.shield(making)

    def drop(self, key: Hashable) -> None:
        """Let whoever asks next have a new answer: what is kept, or being made, may be from before a change."""
        self._made.pop(key, None)

    def _made_it(self, key: Hashable, done: asyncio.Future[T], keep_s: float | None) -> None:
        if done.cancelled() or done.exception() is not None:
            self._forget(key, done)
        else:
            kept = self._made.get(key)
            if kept is not None and kept[1] is done:
                # From now on: what takes longer than it is kept would be made anew for each who waited for it.
                self._made[key] = (self._clock(), done)
            # Else the last ones, which may be large, would stay until others take their place.
            keep_s = self._keep_s if keep_s is None else keep_s
            asyncio.get_running_loop().call_later(keep_s, self._forget, key, done)

    def _forget(self, key: Hashable, done: asyncio.Future[T]) -> None:
        kept = self._made.get(key)
        if kept is not None and kept[1] is done:
            del self._made[key]


__all__ = ["Fresh"]
