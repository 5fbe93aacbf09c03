"""Events of a whole pool in one place: buffers that take them there, and the log that keeps the newest."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from dspool.core.metrics.tally import MAX_PROGRAMS
from dspool.messages.versioned_pickle import Message
from dspool.telemetry.events import EVENTS, attach, detach

FORWARDED: Final = tuple(
    name
    for name in EVENTS
    # Metrics cover what happens once an operation or once a second.
    if not name.startswith(("operation.", "queue.", "worker.check"))
    and name not in ("pool.utilization", "worker.checkout", "worker.checkin")
)
"""The events that leave their process."""
LIMITS: Final = (
    "max_sessions",
    "max_session_mb",
    "max_stored_mb",
    "max_answers_mb",
    "max_pool_sessions",
    "max_pool_stored_mb",
    "rate_per_s",
    "quota_per_day",
)
"""Limits whose refusals are counted, each by the name of its setting."""
MAX_BUFFERED: Final = 1000
MAX_SENDERS: Final = 4096


class OutgoingEvent(Message, Struct, frozen=True, array_like=True):
    """One event on its way. `at` is wall-clock seconds since the epoch."""

    at: float
    event: str
    measurements: dict[str, float]
    metadata: dict[str, Any]


class EventBatch(Message, Struct, frozen=True, array_like=True):
    """Events of one process; `first` is the number of the first one there: the log keeps once what arrives twice."""

    pool: str
    sender: str
    first: int
    events: list[OutgoingEvent]
    dropped: int = 0
    """Events before these that the full buffer dropped."""


class LoggedEvent(Message, Struct, frozen=True):
    """One event as `EventLog` keeps it. `number` grows with each event, even across restarts of the log."""

    number: int
    at: float
    event: str
    level: str
    source: str
    """The process it happened in: a worker id, "supervisor", "metrics", or a client's id."""
    measurements: dict[str, float]
    metadata: dict[str, Any]


class EventPage(Message, Struct, frozen=True):
    events: list[LoggedEvent]
    next: int
    """The `since` that gives the events that follow."""
    missed: bool = False
    """Some events after `since` are gone: the log keeps a limited number."""
    dropped: int = 0
    """Events lost on their way to the log, since it began."""


class EventBuffer:
    """A handler that keeps this process's forwarded events of one pool until they are sent. Bounded."""

    def __init__(
        self, pool: str, sender: str, *, limit: int = MAX_BUFFERED, wall: Callable[[], float] = time.time
    ) -> None:
        self.pool, self.sender = pool, sender
        self._limit, self._wall = limit, wall
        self._queue: deque[OutgoingEvent] = deque()
        self._first = 1
        self._dropped = 0

    def __call__(self, event: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        if metadata.get("pool", self.pool) != self.pool:
            return
        if event == "worker.health_check" and metadata.get("outcome") == "ok":
            return
        if len(self._queue) >= self._limit:
            self._dropped += 1
            return
        self._queue.append(OutgoingEvent(self._wall(), event, dict(measurements), dict(metadata)))

    def attach(self) -> EventBuffer:
        attach(self, FORWARDED)
        return self

    def detach(self) -> None:
        detach(self)

    def batch(self) -> EventBatch | None:
        """The events in the queue. They stay there until `delivered`, and go out again without it."""
        if not self._queue and not self._dropped:
            return None
        return EventBatch(self.pool, self.sender, self._first, list(self._queue), self._dropped)

    async def deliver(self, report: Callable[[EventBatch], Awaitable[None]]) -> None:
        """Send the queue. What cannot be delivered stays for the next time."""
        batch = self.batch()
        if batch is not None:
            with contextlib.suppress(Exception):
                await report(batch)
                self.delivered(batch)

    def delivered(self, batch: EventBatch) -> None:
        for _ in batch.events:
            self._queue.popleft()
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
        self.refusals: Counter[str] = Counter()
        """Requests that were refused, by the limit that did."""
        self.blocked_s: defaultdict[str, float] = defaultdict(float)
        """Seconds that programs held event loops; those beyond `MAX_PROGRAMS` together, without a name."""
        self.dropped = 0
        self._pool, self._source, self._wall = pool, source, wall
        self._events: deque[LoggedEvent] = deque(maxlen=limit)
        self._last: OrderedDict[str, int] = OrderedDict()
        # Above every number of an earlier life, which used fewer than one a microsecond.
        self._began = self._number = int(wall() * 1e6)

    @property
    def began(self) -> int:
        """Below the number of each of its events."""
        return self._began

    @property
    def newest(self) -> int:
        """The number of the newest event."""
        return self._number

    def __call__(self, event: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        self._keep(self._wall(), event, self._source, dict(measurements), dict(metadata))

    def take(self, batch: EventBatch) -> None:
        """Keep what another process sent, less what came before."""
        if batch.pool != self._pool:
            return
        last_number = self._last.get(batch.sender, 0)
        for number, event in enumerate(batch.events, batch.first):
            if number > last_number and event.event in EVENTS:
                self._keep(event.at, event.event, batch.sender, event.measurements, event.metadata)
        last = batch.first + len(batch.events) - 1
        if last > last_number:
            self.dropped += batch.dropped
        self._last[batch.sender] = max(last_number, last)
        self._last.move_to_end(batch.sender)
        while len(self._last) > MAX_SENDERS:
            self._last.popitem(last=False)

    def after(self, number: int = 0, limit: int | None = None) -> list[LoggedEvent]:
        """The kept events with a higher number, oldest first."""
        events = [event for event in self._events if event.number > number]
        return events if limit is None else events[:limit]

    def page(self, since: int = 0, limit: int = 100) -> EventPage:
        """At most `limit` events after `since`, oldest first; `since` 0 or below: the newest `limit`."""
        events = list(self._events)[-limit:] if since <= 0 else self.after(since, limit)
        oldest = self._events[0].number if self._events else self._number + 1
        return EventPage(
            events,
            events[-1].number if events else max(since, self._number),
            missed=0 < since < oldest - 1,
            dropped=self.dropped,
        )

    def _keep(
        self, at: float, event: str, source: str, measurements: dict[str, float], metadata: dict[str, Any]
    ) -> None:
        self._number += 1
        self.counts[event] += 1
        if event == "limit.refused" and metadata.get("limit") in LIMITS:
            self.refusals[metadata["limit"]] += int(measurements.get("count", 0))
        if event == "worker.loop_blocked":
            program = str(metadata.get("program") or "")
            is_one_more = program not in self.blocked_s and len(self.blocked_s) >= MAX_PROGRAMS
            self.blocked_s["" if is_one_more else program] += measurements.get("duration_s", 0.0)
        level = _LEVELS.get(EVENTS[event].level, "info")
        self._events.append(LoggedEvent(self._number, at, event, level, source, measurements, metadata))


_LEVELS = {10: "debug", 20: "info", 30: "warning", 40: "error"}
