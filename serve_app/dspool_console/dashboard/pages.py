"""What the page's views show beside the API's own answers: overview, live stream, markers."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from dspool.core.metrics.measures import LiveUpdate
from dspool.errors import InvalidRequest
from dspool.telemetry.event_log import LoggedEvent
from dspool.telemetry.observation import MAX_PAGE
from dspool_console.dashboard import view
from dspool_console.dashboard.hub import TOPICS
from dspool_console.dashboard.service import ConsoleContext, PoolWatch
from dspool_serve.api.common import POOL, answer_packed, or_none, patiently
from dspool_serve.api.events import Marker, markers
from dspool_serve.api.tables import RANGE, RANGE_QUERY, range_of
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

HEARTBEAT_S: Final = 10.0


class MarkerList(Struct):
    markers: Annotated[list[Marker], Meta(description="oldest first")]


async def get_overview(context: ConsoleContext, request: Request) -> Response:
    """`?fresh=1`: the page has just changed something, and what others were told a moment ago may be from before."""
    query = request.query(frozenset({"fresh"}))
    watch = context.watch(request)
    if query.get("fresh"):
        watch.answers.drop("overview")

    async def make() -> view.Row:
        update, status = await asyncio.gather(live_update_of(watch), or_none(watch.pool.status()))
        alerts = watch.alerts
        return view.overview(update, status, watch.pool.config, alerts.summary(), time.time(), alerts.alerts)

    return answer_packed(request, await patiently(watch.answers.get("overview", make)))


async def live_update_of(watch: PoolWatch) -> LiveUpdate | None:
    if not watch.pool.config.enable_metrics:
        return None
    return await or_none(watch.pool.live_update())


async def follow_pool(context: ConsoleContext, request: Request) -> EventStream:
    query = request.query(frozenset({"topics"}))
    watch = context.watch(request)
    topics = frozenset(query.get("topics", "overview").split(","))
    if not topics <= frozenset(TOPICS):
        raise InvalidRequest(f"topics are {', '.join(TOPICS)}", field="topics")
    last = request.headers.get(b"last-event-id")
    frames = watch.hub.follow(topics, None if last is None else last.decode("latin-1"))
    return EventStream(frames, heartbeat_s=min(HEARTBEAT_S, context.settings.heartbeat_s), endless=True)


async def list_markers(context: ConsoleContext, request: Request) -> Response:
    interval = range_of(request.query(frozenset(RANGE)), 3600.0)
    watch = context.measured_watch(request)
    end = interval.end if interval.end is not None else time.time() + 60.0
    start = interval.start if interval.start is not None else time.time() - interval.seconds

    async def make() -> list[LoggedEvent]:
        return [*(await watch.pool.events(0, MAX_PAGE)).events, *watch.alerts.changes]

    events = await patiently(watch.answers.get("events", make))
    return answer_packed(request, MarkerList(markers(events, start=start, end=end)))


_ASKED: Final = ("invalid_request", "pool_not_ready")

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        POOL + "/overview",
        get_overview,
        "The pool at a glance: state, health, figures, totals, programs and alerts",
        Any,
        problems=_ASKED,
        query=(("fresh", {"type": "boolean", "description": "not an answer from before this request"}),),
        role="reader",
    ),
    Route(
        "GET",
        POOL + "/live",
        follow_pool,
        "What changes in the pool, once a second, as differences to what was told before",
        problems=_ASKED,
        query=(("topics", {"type": "string", "description": f"with commas between: {', '.join(TOPICS)}"}),),
        media="text/event-stream",
        role="reader",
    ),
    Route(
        "GET",
        POOL + "/markers",
        list_markers,
        "Resizes, deaths, deployments and alerts, as charts mark them",
        MarkerList,
        problems=(*_ASKED, "not_allowed", "worker_lost"),
        query=RANGE_QUERY,
        role="reader",
    ),
)

__all__ = ["ROUTES", "MarkerList", "live_update_of"]
