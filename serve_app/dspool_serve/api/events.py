"""Events as people read them, those that charts mark, and their routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from dspool.telemetry.event_log import EventPage, LoggedEvent
from dspool.telemetry.event_text import resize_text, sentence
from dspool.telemetry.observation import MAX_PAGE, MAX_POLL_S
from dspool_serve.api.common import ANSWER_S, POOL, patiently, pool_of, whole_number
from dspool_serve.context import Context
from dspool_serve.http.event_stream import EventStream, event, go_on
from dspool_serve.http.requests import Request, number
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route
from dspool_serve.pools import ClusterPool

POLL_S = 10.0
"""How long one question for news waits for an answer."""
AT_ONCE = 200
_LARGEST = 2**63 - 1


MARKERS_KEPT: Final = 500
_EXPECTED: Final = ("the pool shrinks", "no longer needed", "the pool is closed", "the pool was closed", "recycled",
    "drained", "restarted", "was draining")  # fmt: skip
"""How the reason of an ending begins that nobody need worry about."""


class Marker(Struct, frozen=True):
    """What a chart shows of an event."""

    at: float
    """Wall-clock seconds."""
    kind: str
    """`resize`, `death`, `recovery`, `deployment` or `alert`."""
    label: str
    level: str


class EventRow(LoggedEvent, frozen=True):
    """One event with the sentence that people read, and its mark on charts if it has one."""

    text: str
    marker: Marker | None


class EventRows(Struct, frozen=True):
    """A page of events, oldest first; the fields are those of `EventPage`."""

    events: list[EventRow]
    next: int
    """What to give as `since` for the events that follow."""
    missed: bool
    """Events after `since` are gone: the log keeps a limited number."""
    dropped: int
    """Events that were lost on their way to the log, since it began."""


def event_row(seen: LoggedEvent) -> EventRow:
    return EventRow(**msgspec.structs.asdict(seen), text=sentence(seen), marker=marker_of(seen))


def event_rows(page: EventPage) -> EventRows:
    return EventRows([event_row(seen) for seen in page.events], page.next, page.missed, page.dropped)


def marker_of(seen: LoggedEvent) -> Marker | None:
    """What charts show of it; None for most events."""
    numbers, about = seen.measurements, seen.metadata
    if seen.event == "pool.resize":
        return _marker(seen, "resize", resize_text(numbers, about), "info")
    if seen.event == "worker.terminate" and not _expected(about):
        return _marker(seen, "death", f"{_name(about)} ended: {about.get('reason') or 'unknown'}", "error")
    if seen.event == "pool.recovery":
        took = f" after {numbers['duration_s']:.2f} s" if "duration_s" in numbers else ""
        return _marker(seen, "recovery", f"{about.get('replaced', 'a worker')} was replaced{took}", "info")
    if seen.event == "program.deployed":
        label = f"{about.get('program')} version {about.get('version')}"
        return _marker(seen, "deployment", label, "info")
    if seen.event in ("alert.firing", "alert.resolved"):
        level = seen.level if seen.event == "alert.firing" else "info"
        verb = "fires" if seen.event == "alert.firing" else "is over"
        return _marker(seen, "alert", f"{about.get('alert')} {verb}", level)
    return None


def markers(
    events: Iterable[LoggedEvent], *, start: float | None = None, end: float | None = None
) -> list[Marker]:
    found = (
        marker_of(seen)
        for seen in sorted(events, key=lambda seen: seen.at)
        if (start is None or seen.at >= start) and (end is None or seen.at <= end)
    )
    return [marker for marker in found if marker is not None][-MARKERS_KEPT:]


def _expected(about: Mapping[str, Any]) -> bool:
    reason = str(about.get("reason") or "")
    return reason.startswith(_EXPECTED)


def _name(about: Mapping[str, Any]) -> str:
    return str(about.get("worker") or "a worker")


def _marker(seen: LoggedEvent, kind: str, label: str, level: str) -> Marker:
    return Marker(seen.at, kind, label[:300], level)


async def _news(
    context: Context, request: Request, pool: ClusterPool, since: int, limit: int, wait_s: float
) -> EventPage:
    """Events after `since`, of which there may be none for `wait_s`.

    It counts until the pool has answered, also when nobody waits for that any more: a question to an actor cannot be
    called off, and as many as the actor takes at once would keep everybody's figures from it.
    """
    waits, principal = context.service.waits, request.principal or "local"
    waits.enter(principal)

    async def ask() -> EventPage:
        try:
            return await pool.events(since, limit, timeout_s=wait_s)
        finally:
            waits.leave(principal)

    asking = go_on(ask())
    # When nobody heard of an error, asyncio need not complain.
    asking.add_done_callback(lambda done: done.cancelled() or done.exception())
    page: EventPage = await asyncio.shield(asking)
    return page


async def get_events(context: Context, request: Request) -> Response:
    query = request.query(frozenset({"since", "limit", "timeout_s"}))
    since = int(number(query, "since", 0, least=0, most=2**53))
    limit = int(number(query, "limit", 100, least=1, most=MAX_PAGE))
    wait_s = number(query, "timeout_s", 0.0, least=0.0, most=MAX_POLL_S)
    pool = pool_of(context, request)
    page = await patiently(_news(context, request, pool, since, limit, wait_s), ANSWER_S + wait_s)
    return Response(200, msgspec.json.encode(event_rows(page)))


async def follow_events(context: Context, request: Request) -> EventStream:
    query = request.query(frozenset({"since"}))
    # A browser's EventSource that connects again says so in this header, and repeats the address with its `since`.
    last = request.headers.get(b"last-event-id")
    if last is not None:
        query = {"since": last.decode("latin-1")}
    since = whole_number(query, "since", 0, _LARGEST, 0) or 0
    pool = pool_of(context, request)
    page = await patiently(pool.events(since, AT_ONCE))

    async def events() -> AsyncGenerator[bytes]:
        found = page
        # At once, so that the client knows it is connected, and whether it missed something.
        yield event("status", {"text": "missed" if found.missed else "connected"}, since)
        while True:
            for seen in found.events:
                yield event("event", event_row(seen), seen.number)
            found = await _news(context, request, pool, found.next, AT_ONCE, POLL_S)

    return EventStream(events(), heartbeat_s=context.settings.heartbeat_s, endless=True)


_PAGE_QUERY: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("since", {"type": "integer", "minimum": 0, "default": 0}),
    ("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100}),
    ("timeout_s", {"type": "number", "minimum": 0, "maximum": MAX_POLL_S, "default": 0}),
)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        f"{POOL}/events",
        get_events,
        "What happened in the pool; waits for the next event with timeout_s",
        EventRows,
        problems=(
            "unknown_pool",
            "invalid_request",
            "not_allowed",
            "rate_limited",
            "pool_not_ready",
            "worker_lost",
        ),
        query=_PAGE_QUERY,
        role="reader",
    ),
    Route(
        "GET",
        POOL + "/events/stream",
        follow_events,
        "What happens in the pool, as it happens; begins with the newest that are kept, or after `since`",
        EventRow,
        problems=("not_allowed", "worker_lost", "invalid_request"),
        query=(("since", {"type": "integer", "minimum": 0}),),
        stream="events",
        role="reader",
    ),
)

__all__ = [
    "ROUTES",
    "EventRow",
    "EventRows",
    "Marker",
    "event_row",
    "event_rows",
    "marker_of",
    "markers",
]
