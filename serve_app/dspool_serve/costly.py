"""Reading that costs much, one at a time in this process: whoever asks for a day of charts must not slow down others.

Python runs one thread at a time, and a thread that computes keeps the GIL for 5 ms at a time from the event loop, which
asks for it at each system call. So there is one such thread, it gives the GIL back ten times as often while it works,
and those who wait take turns, with a short line for each principal.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from dspool.core.admission.fair import Entry, FairQueue
from dspool.errors import QueueFull

WAITING: Final = 16
"""Reads of one principal that wait: more than a page of charts asks at once."""
WAITING_IN_ALL: Final = 128
SWITCH_S: Final = 0.0005
"""How long such a thread may keep the GIL: a tenth of Python's default, for a tenth of the delay of others."""

T = TypeVar("T")


class CostlyReads:
    """One event loop owns it."""

    def __init__(self, *, max_waiting: int = WAITING, max_in_all: int = WAITING_IN_ALL) -> None:
        self._queue = FairQueue(max_waiting=max_waiting)
        self._max_in_all = max_in_all
        self._wakers: dict[Entry, asyncio.Future[None]] = {}

    async def run(self, principal: str | None, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` gives, when it is the turn of `principal`. Once begun it goes on though nobody waits for it any
        more, and keeps its turn until it ends: a thread cannot be called off.

        Raises:
            QueueFull: too many reads wait, of this principal or in all.
        """
        entry = await self._turn(principal or "")
        running = asyncio.ensure_future(work())
        running.add_done_callback(lambda done: self._done(entry, done))
        return await asyncio.shield(running)

    async def _turn(self, key: str) -> Entry:
        if self._queue.waiting >= self._max_in_all:
            raise QueueFull(f"{self._max_in_all} costly reads wait already", retry_after_s=1.0)
        try:
            entry = self._queue.arrive(key, "interactive", room=1, max_places=1)
        except QueueFull:
            raise QueueFull("too many costly reads of yours wait already", retry_after_s=1.0) from None
        if not entry.admitted:
            waker = self._wakers[entry] = asyncio.get_running_loop().create_future()
            try:
                await waker
            except asyncio.CancelledError:
                self._leave(entry)
                raise
            finally:
                del self._wakers[entry]
        return entry

    def _done(self, entry: Entry, done: asyncio.Future[T]) -> None:
        self._leave(entry)
        if not done.cancelled():
            # Whoever waited has it, too; when nobody did, asyncio need not complain.
            done.exception()

    def _leave(self, entry: Entry) -> None:
        self._queue.leave(entry)
        if (following := self._queue.next(room=1)) is not None:
            waker = self._wakers[following]
            if waker.done():
                # It has just given up.
                self._leave(following)
            else:
                waker.set_result(None)


_yielding = threading.Lock()


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that leaves the event loop most of the GIL."""

    def run() -> T:
        with _yielding:
            before = sys.getswitchinterval()
            sys.setswitchinterval(SWITCH_S)
            try:
                return work()
            finally:
                sys.setswitchinterval(before)

    return await asyncio.to_thread(run)


__all__ = ["CostlyReads", "in_thread"]
