"""What happens in a pool, as it happens."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from dspool_serve.api.common import POOL, number, pool_of, streamed
from dspool_serve.api.event_text import EventRow, event_row
from dspool_serve.context import Context
from dspool_serve.http.event_stream import EventStream, event
from dspool_serve.http.requests import Request
from dspool_serve.http.routing import Route

POLL_S = 10.0
"""How long one question for news waits for an answer."""
AT_ONCE = 200
_LARGEST = 2**63 - 1


async def follow_events(context: Context, request: Request) -> EventStream:
    query = request.query(frozenset({"since"}))
    # A browser's EventSource that connects again says so in this header.
    last = request.headers.get(b"last-event-id")
    if last is not None and "since" not in query:
        query = {"since": last.decode("latin-1")}
    since = number(query, "since", 0, _LARGEST, 0) or 0
    pool = pool_of(context, request)
    page = await pool.events(since, AT_ONCE)

    async def events() -> AsyncGenerator[bytes]:
        found = page
        # At once, so that the client knows it is connected, and whether it missed something.
        yield event("status", {"text": "missed" if found.missed else "connected"}, since)
        while True:
            for seen in found.events:
                yield event("event", event_row(seen), seen.number)
            found = await pool.events(found.next, AT_ONCE, timeout_s=POLL_S)

    return streamed(context, events())


ROUTES: tuple[Route, ...] = (
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
