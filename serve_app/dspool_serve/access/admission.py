"""The door in front of a pool: requests of different tokens take turns here, before the pool's own queue.

The pool's queue is first come, first served. Let in only about as much as the pool can run, and the rest waits here,
where each token has a line of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from dspool.core.admission.access import Token
from dspool.core.admission.fair import Entry, FairQueue, Priority
from dspool.core.admission.rates import Allowance, Allowances, RateLimits
from dspool.errors import DeadlineExceeded, PoolError, RateLimited

LEASE_S = 0.1
"""A process takes about so much of a rate at once, so that a busy token is not asked about for each operation."""
STALE_S = 1.0
"""What was taken of a rate and not used is given up then: kept, it would come on top of a later burst."""
_QUOTA_SHARE = 0.001

TakeAllowance = Callable[[str, RateLimits, int], Awaitable[Allowance]]
"""Asks for up to so many operations of a token, where they are counted for all ingress processes."""


class Admission:
    """The door of one pool in one ingress process. `room` tells how many operations may be inside now.

    Calls `refused` with the name of each limit that refuses something.
    """

    def __init__(
        self,
        room: Callable[[], int],
        *,
        max_waiting: int,
        shared: TakeAllowance | None = None,
        refused: Callable[[str], None] = lambda limit: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._room = room
        self._door = FairQueue(max_waiting=max_waiting)
        self._clock = clock
        self._wall = wall
        self._wakers: dict[Entry, asyncio.Future[None]] = {}
        self._shared = shared
        self._refused = refused
        self._own = Allowances()
        self._leases: dict[str, _Lease] = {}
        self._max_places: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        return self._door.waiting

    async def allow(self, token: Token) -> None:
        """One more operation, or another change, of a limited token.

        Raises:
            RateLimited: more than its rate or quota, counted over all ingress processes; in this one alone while the
                place where all are counted is away.
        """
        lease = self._leases.get(token.id)
        if lease is None or lease.limits != token.limits:
            lease = self._leases[token.id] = _Lease(token.limits)
        if lease.use(self._clock()):
            return
        async with lease.asking:
            # Somebody else may have asked meanwhile.
            if lease.use(self._clock()):
                return
            if self._clock() >= lease.refused_until:
                lease.took(await self._take(token.id, lease), self._clock())
                if lease.use(self._clock()):
                    return
            self._refused(lease.limit)
            raise RateLimited(
                lease.why, retry_after_s=max(0.0, lease.again_at - self._clock()), limit=lease.limit
            )

    async def _take(self, token: str, lease: _Lease) -> Allowance:
        if self._shared is not None:
            try:
                return await self._shared(token, lease.limits, lease.chunk)
            except PoolError:
                pass  # better each for itself than not at all
        return self._own.take(token, lease.limits, 1, now=self._clock(), wall=self._wall())

    def arrive(self, token: Token, priority: Priority) -> Entry:
        """Come to the door; `leave` in any case. If not `admitted`, `wait`.

        Raises:
            QueueFull: too many of this token wait.
        """
        if token.max_running is not None:
            self._max_places[token.name] = token.max_running
        elif self._max_places:
            self._max_places.pop(token.name, None)
        entry = self._door.arrive(
            token.name, priority, room=self._room(), weight=token.weight, max_places=token.max_running
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
        while (entry := self._door.next(room=room, max_places=self._max_places)) is not None:
            waker = self._wakers.get(entry)
            if waker is not None and not waker.done():
                waker.set_result(None)


class _Lease:
    """What this process may still begin of one token without asking, and what it was told last."""

    def __init__(self, limits: RateLimits) -> None:
        self.limits = limits
        self.asking = asyncio.Lock()
        self.chunk = self._chunk()
        self._left = 0
        self._until = 0.0
        self.again_at = self.refused_until = 0.0
        self.why = self.limit = ""

    def _chunk(self) -> int:
        shares = []
        if self.limits.rate_per_s is not None:
            shares.append(self.limits.rate_per_s * LEASE_S)
        if self.limits.quota_per_day is not None:
            shares.append(self.limits.quota_per_day * _QUOTA_SHARE)
        return max(1, int(min(shares)))

    def use(self, now: float) -> bool:
        if self.limits.rate_per_s is not None and now >= self._until:
            self._left = 0
        if self._left == 0:
            return False
        self._left -= 1
        return True

    def took(self, found: Allowance, now: float) -> None:
        self._left, self._until = found.granted, now + STALE_S
        if found.granted == 0:
            self.again_at, self.why, self.limit = now + found.wait_s, found.why, found.limit
            # Asked again soon all the same: others may give back, limits may change.
            self.refused_until = now + min(found.wait_s, LEASE_S)


__all__ = ["Admission"]
