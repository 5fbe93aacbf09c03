"""Events of a whole pool in one place: buffers that carry them there, and the log that keeps the newest."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from dspool.telemetry.events import EVENTS, attach, detach

FORWARDED: Final = tuple(
    name
    for name in EVENTS
    # Once an operation, or once a second: these are what metrics are for.
    if not name.startswith(("operation.", "queue.", "worker.check"))
    and name not in ("pool.utilization", "worker.checkout", "worker.checkin")
)
"""The events that leave their process."""
MAX_BUFFERED: Final = 1000
MAX_SENDERS: Final = 4096


class Sent(Struct, frozen=True, array_like=True):
    """One event on its way. `at` is wall-clock seconds since the epoch."""

    at: float
    event: str
    measurements: dict[str, float]
    metadata: dict[str, Any]


class EventBatch(Struct, frozen=True, array_like=True):
    """Events of one process, the first of which is its `first`-th: what arrives twice is kept once."""

    pool: str
    sender: str
    first: int
    events: list[Sent]
    dropped: int = 0
    """Events before these that found the buffer full."""


class Seen(Struct, frozen=True):
    """One event as `EventLog` keeps it. `number` grows with each event, also over the log's own death."""

    number: int
    at: float
    event: str
    level: str
    source: str
    """The process it happened in: a worker id, "supervisor", "metrics", or a client's id."""
    measurements: dict[str, float]
    metadata: dict[str, Any]


class EventPage(Struct, frozen=True):
    events: list[Seen]
    next: int
    """What to give as `since` for the events that follow."""
    missed: bool = False
    """Events after `since` are gone: the log keeps a limited number."""
    dropped: int = 0
    """Events that were lost on their way to the log, since it began."""


class EventBuffer:
    """A handler that keeps the rare events of one pool in this process until they are sent. Bounded."""

    def __init__(
        self, pool: str, sender: str, *, limit: int = MAX_BUFFERED, wall: Callable[[], float] = time.time
    ) -> None:
        self.pool, self.sender = pool, sender
        self._limit, self._wall = limit, wall
        self._waiting: deque[Sent] = deque()
        self._first = 1
        self._dropped = 0

    def __call__(self, event: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        if metadata.get("pool", self.pool) != self.pool:
            return
        if event == "worker.health_check" and metadata.get("outcome") == "ok":
            return
        if len(self._waiting) >= self._limit:
            self._dropped += 1
            return
        self._waiting.append(Sent(self._wall(), event, dict(measurements), dict(metadata)))

    def attach(self) -> EventBuffer:
        attach(self, FORWARDED)
        return self

    def detach(self) -> None:
        detach(self)

    def batch(self) -> EventBatch | None:
        """What waits. It stays here until `delivered`: sent again if nobody says that it arrived."""
        if not self._waiting and not self._dropped:
            return None
        return EventBatch(self.pool, self.sender, self._first, list(self._waiting), self._dropped)

    async def deliver(self, report: Callable[[EventBatch], Awaitable[None]]) -> None:
        """Send what waits. What cannot be delivered stays for the next time."""
        batch = self.batch()
        if batch is not None:
            with contextlib.suppress(Exception):
                await report(batch)
                self.delivered(batch)

    def delivered(self, batch: EventBatch) -> None:
        for _ in batch.events:
            self._waiting.popleft()
        self._first += len(batch.events)
        self._dropped -= batch.dropped


class EventLog:
    """Keeps the newest events of a pool, at most `limit`, and how often each came."""

    def __init__(
        self,
        pool: str = "",
        limit: int = 2000,
        *,
        source: str = "metrics",
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.dropped = 0
        self._pool, self._source, self._wall = pool, source, wall
        self._kept: deque[Seen] = deque(maxlen=limit)
        self._had: OrderedDict[str, int] = OrderedDict()
        # Above every number of an earlier life, which gave out fewer than one a microsecond.
        self._began = self._number = int(wall() * 1e6)

    @property
    def began(self) -> int:
        """Below the number of every event that it had."""
        return self._began

    @property
    def newest(self) -> int:
        """The last number given out."""
        return self._number

    def __call__(self, event: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        self._keep(self._wall(), event, self._source, dict(measurements), dict(metadata))

    def take(self, batch: EventBatch) -> None:
        """Keep what another process sent; what came before is left out."""
        if batch.pool != self._pool:
            return
        had = self._had.get(batch.sender, 0)
        for number, sent in enumerate(batch.events, batch.first):
            if number > had and sent.event in EVENTS:
                self._keep(sent.at, sent.event, batch.sender, sent.measurements, sent.metadata)
        last = batch.first + len(batch.events) - 1
        if last > had:
            self.dropped += batch.dropped
        self._had[batch.sender] = max(had, last)
        self._had.move_to_end(batch.sender)
        while len(self._had) > MAX_SENDERS:
            self._had.popitem(last=False)

    def after(self, number: int = 0, limit: int | None = None) -> list[Seen]:
        """The kept events with a higher number, oldest first."""
        found = [seen for seen in self._kept if seen.number > number]
        return found if limit is None else found[:limit]

    def page(self, since: int = 0, limit: int = 100) -> EventPage:
        """At most `limit` events after `since`, oldest first; `since` 0 or below: the newest `limit`."""
        found = list(self._kept)[-limit:] if since <= 0 else self.after(since, limit)
        oldest = self._kept[0].number if self._kept else self._number + 1
        return EventPage(
            found,
            found[-1].number if found else max(since, self._number),
            missed=0 < since < oldest - 1,
            dropped=self.dropped,
        )

    def _keep(
        self, at: float, event: str, source: str, measurements: dict[str, float], metadata: dict[str, Any]
    ) -> None:
        self._number += 1
        self.counts[event] += 1
        level = _LEVELS.get(EVENTS[event].level, "info")
        self._kept.append(Seen(self._number, at, event, level, source, measurements, metadata))


_LEVELS = {10: "debug", 20: "info", 30: "warning", 40: "error"}
