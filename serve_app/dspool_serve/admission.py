"""The door in front of a pool: requests of different tokens take turns here, before the pool's own queue.

The pool's queue is first come, first served. Let in only about as much as the pool can run, and the rest waits here,
where each token has a line of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from dspool.core.admission.access import Token
from dspool.core.admission.fair import Door, Entry, Priority
from dspool.core.admission.rates import Quota, Rate
from dspool.errors import DeadlineExceeded, RateLimited

_DAY_S = 86400.0


class Admission:
    """The door of one pool in one ingress process. `room` tells how many operations may be inside now."""

    def __init__(
        self,
        room: Callable[[], int],
        *,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._room = room
        self._door = Door(max_waiting=max_waiting)
        self._clock = clock
        self._wall = wall
        self._wakers: dict[Entry, asyncio.Future[None]] = {}
        self._limits: dict[str, tuple[Token, Rate | None, Quota | None]] = {}
        self._max_held: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        return self._door.waiting

    def arrive(self, token: Token, priority: Priority) -> Entry:
        """Come to the door; `leave` in any case. If not `admitted`, `wait`.

        Raises:
            RateLimited: more than the token's rate or quota. QueueFull: too many of this token wait.
        """
        if token.limited:
            self._limit(token)
        if token.max_running is not None:
            self._max_held[token.name] = token.max_running
        elif self._max_held:
            self._max_held.pop(token.name, None)
        entry = self._door.arrive(
            token.name, priority, room=self._room(), weight=token.weight, max_held=token.max_running
        )
        if not entry.admitted:
            self._open()
        return entry

    async def wait(self, entry: Entry, timeout_s: float) -> float:
        """Wait until it is this one's turn; the seconds it took.

        Raises:
            DeadlineExceeded: it was not, within `timeout_s`.
        """
        if entry.admitted:
            return 0.0
        began = self._clock()
        waker = asyncio.get_running_loop().create_future()
        self._wakers[entry] = waker
        try:
            async with asyncio.timeout(timeout_s):
                await waker
        except TimeoutError:
            raise DeadlineExceeded(
                f"the deadline of {timeout_s:g} s passed while others had their turn", phase="queue"
            ) from None
        finally:
            self._wakers.pop(entry, None)
        return self._clock() - began

    def leave(self, entry: Entry) -> None:
        """Done, failed, or gone: the next may come in."""
        self._door.leave(entry)
        if self._door.waiting:
            self._open()

    def _open(self) -> None:
        room = self._room()
        while (entry := self._door.next(room=room, max_held=self._max_held)) is not None:
            waker = self._wakers.get(entry)
            if waker is not None and not waker.done():
                waker.set_result(None)

    def _limit(self, token: Token) -> None:
        known = self._limits.get(token.id)
        if known is None or known[0] != token:
            rate = quota = None
            if token.rate_per_s is not None:
                burst = token.burst if token.burst is not None else max(1.0, token.rate_per_s)
                rate = Rate(token.rate_per_s, burst, now=self._clock())
            if token.quota_per_day is not None:
                quota = Quota(token.quota_per_day, _DAY_S)
            known = self._limits[token.id] = (token, rate, quota)
        _, rate, quota = known
        if rate is not None and (wait_s := rate.take(self._clock())) > 0:
            raise RateLimited(
                f"more than {rate.per_s:g} operations a second of this token", retry_after_s=wait_s
            )
        if quota is not None and (wait_s := quota.take(self._wall())) > 0:
            raise RateLimited(
                f"the day's {quota.limit} operations of this token are used up", retry_after_s=wait_s
            )


__all__ = ["Admission"]
