"""The dashboard's questions about figures, workers, sessions and events. Nothing here changes anything."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final

from dspool.core.metrics.measures import LiveUpdate
from dspool.corrections.uvicorn_connections import on_server_stop
from dspool.errors import InvalidRequest, PoolError, UnknownWorker
from dspool.messages import PoolStatus, WorkerId
from dspool.telemetry.event_log import Seen
from dspool_console.alerts.watch import EVERY_S as ALERTS_EVERY_S
from dspool_console.dashboard import view
from dspool_console.dashboard.common import (
    POOL,
    RANGE,
    answer,
    names_sessions,
    number,
    ordinal_of,
    patiently,
    range_of,
    watched,
    with_metrics,
)
from dspool_console.dashboard.context import ConsoleContext
from dspool_console.dashboard.event_text import event_row, markers
from dspool_console.dashboard.hub import TOPICS
from dspool_console.dashboard.service import WORKERS_AT_ONCE, Watched
from dspool_console.dashboard.tables import encode_table
from dspool_serve.api.pool import look_at_all
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

HEARTBEAT_S: Final = 10.0
EVENTS_AT_ONCE: Final = 1000
SESSIONS_OF_A_WORKER: Final = 100
LONGEST_SEARCH: Final = 200
LOG_LINES: Final = 1000


# --- overview ---


async def pools(context: ConsoleContext, request: Request) -> Response:
    request.query(frozenset())
    rows = [
        {
            "name": state.name,
            "state": state.state,
            "ready": state.ready,
            "desired": state.desired,
            "actual": state.actual,
            "reason": state.reason,
        }
        for state in await look_at_all(context)
    ]
    return answer(request, {"pools": rows})


async def overview(context: ConsoleContext, request: Request) -> Response:
    """`?fresh=1`: the page has just changed something, and what others were told a moment ago may be from before."""
    asked = request.query(frozenset({"fresh"}))
    one = watched(context, request)
    if asked.get("fresh"):
        one.answers.drop("overview")

    async def make() -> view.Row:
        look, status = await asyncio.gather(_look(one), _status(one))
        return view.overview(look, status, one.pool.config, one.alerts.summary(), time.time())

    return answer(request, await patiently(one.answers.get("overview", make)))


async def _look(one: Watched) -> LiveUpdate | None:
    if one.pool.config.enable_metrics:
        with contextlib.suppress(PoolError, TimeoutError):
            return await asyncio.wait_for(one.pool.live_update(None, workers=False), 2.0)
    return None


async def _status(one: Watched) -> PoolStatus | None:
    with contextlib.suppress(PoolError, TimeoutError):
        return await asyncio.wait_for(one.pool.status(), 2.0)
    return None


async def history(context: ConsoleContext, request: Request) -> Response:
    query = request.query(frozenset({*RANGE, "program", "slot"}))
    one = with_metrics(watched(context, request))
    asked = range_of(query)
    program, ordinal = query.get("program"), ordinal_of(query)
    if asked.start is None:
        return answer(request, await patiently(one.table(asked.seconds, program, ordinal)))
    table = await patiently(one.pool.table(asked.seconds, program=program, ordinal=ordinal))
    return answer(request, encode_table(one.pool.name, table, start=asked.start, end=asked.end))


async def live(context: ConsoleContext, request: Request) -> EventStream:
    query = request.query(frozenset({"topics"}))
    one = watched(context, request)
    topics = frozenset(query.get("topics", "overview").split(","))
    if not topics <= frozenset(TOPICS):
        raise InvalidRequest(f"topics are {', '.join(TOPICS)}", field="topics")
    on_server_stop(request.scope, one.hub.turn_out)
    last = request.headers.get(b"last-event-id")
    frames = one.hub.follow(topics, None if last is None else last.decode("latin-1"))
    return EventStream(frames, heartbeat_s=min(HEARTBEAT_S, context.settings.heartbeat_s))


# --- workers ---


async def workers(context: ConsoleContext, request: Request) -> Response:
    request.query(frozenset())
    rows = await patiently(watched(context, request).worker_rows())
    return answer(request, {"at": time.time(), "workers": rows})


async def cells(context: ConsoleContext, request: Request) -> Response:
    query = request.query(frozenset({"workers"}))
    one = watched(context, request)
    asked = [id for id in query.get("workers", "").split(",") if id]
    if len(asked) > WORKERS_AT_ONCE:
        raise InvalidRequest(f"at most {WORKERS_AT_ONCE} workers at once, got {len(asked)}", field="workers")
    found = await patiently(asyncio.gather(*(_cells(one, id, request) for id in asked)))
    return answer(request, {"at": time.time(), "workers": dict(zip(asked, found, strict=True))})


async def _cells(one: Watched, worker_id: str, request: Request) -> view.Row | None:
    busy, memory = await asyncio.gather(one.busy(worker_id), one.memory(worker_id))
    if busy is None:
        return None
    shown = view.cells(busy, names_sessions=names_sessions(request))
    return {"cells": shown, "memory": memory, "at": time.time()}


async def worker(context: ConsoleContext, request: Request) -> Response:
    request.query(frozenset())
    one = watched(context, request)
    id = request.params["worker"]
    row = await patiently(one.worker(id))
    look, runs, status, held, link = await patiently(
        asyncio.gather(
            _cells(one, id, request),
            one.pool.worker_warm_runs(id),
            _status(one),
            one.pool.sessions(limit=SESSIONS_OF_A_WORKER, after=None, owner=id),
            _link(one, id),
        )
    )
    return answer(
        request,
        {
            "worker": {**row, "ray_url": link},
            "cells": look["cells"] if look else None,
            "memory": look["memory"] if look else None,
            "warmup": [
                {"step": run.step, "index": run.index, "duration_s": run.duration_s, "error": run.error}
                for run in runs
            ],
            "programs": status.programs if status else {},
            "sessions": [view.shown_session(info.id, names_sessions(request)) for info in held[0]],
            "ray_url": link,
        },
    )


async def _link(one: Watched, worker_id: str) -> str | None:
    """Its page in Ray's own dashboard."""
    base = one.pool.ray_dashboard
    if base is None:
        return None
    try:
        return f"{base}/#/actors/{await one.pool.worker_actor_id(worker_id)}"
    except PoolError:
        return None


async def log(context: ConsoleContext, request: Request) -> Response:
    query = request.query(frozenset({"lines"}))
    lines = int(number(query, "lines", 200, 1, LOG_LINES))
    id = request.params["worker"]
    if len(id) > LONGEST_SEARCH:
        raise UnknownWorker("there is no such worker")
    return answer(request, await patiently(watched(context, request).pool.worker_log(id, lines)))


# --- sessions ---


def _is_worker(text: str, pool: str) -> bool:
    with contextlib.suppress(UnknownWorker):
        return WorkerId.parse(text).pool == pool
    return False


async def sessions(context: ConsoleContext, request: Request) -> Response:
    query = request.query(frozenset({"search", "limit", "cursor"}))
    one = watched(context, request)
    search = query.get("search", "")[:LONGEST_SEARCH]
    limit = int(number(query, "limit", 100, 1, 1000))
    named = names_sessions(request)
    if not named:
        # What may not be seen must not be guessed by searching for it either.
        search = search if _is_worker(search, one.pool.name) else ""
    found, following = await patiently(
        one.pool.sessions(limit=limit, after=query.get("cursor") if named else None, containing=search)
    )
    total = await patiently(one.pool.count_sessions())
    rows = [view.session_row(info, names_sessions=named) for info in found]
    # A cursor is the last id: only for those who may see ids.
    return answer(request, {"sessions": rows, "next_cursor": following if named else None, "total": total})


# --- events and alerts ---


async def events(context: ConsoleContext, request: Request) -> Response:
    query = request.query(frozenset({"since", "limit"}))
    one = with_metrics(watched(context, request))
    since = int(number(query, "since", 0, 0, 2**63))
    limit = int(number(query, "limit", 200, 1, EVENTS_AT_ONCE))
    page = await patiently(one.pool.events(since, limit))
    rows = [event_row(seen) for seen in page.events]
    if since <= 0:
        rows = sorted([*rows, *map(event_row, one.alerts.changes)], key=lambda row: float(row["at"]))
    found: Any = {"events": rows, "next": page.next, "missed": page.missed, "dropped": page.dropped}
    return answer(request, found)


async def get_markers(context: ConsoleContext, request: Request) -> Response:
    asked = range_of(request.query(frozenset(RANGE)), 3600.0)
    one = with_metrics(watched(context, request))
    end = asked.end if asked.end is not None else time.time() + 60.0
    start = asked.start if asked.start is not None else time.time() - asked.seconds

    async def make() -> list[Seen]:
        return [*(await one.pool.events(0, EVENTS_AT_ONCE)).events, *one.alerts.changes]

    seen = await patiently(one.answers.get("seen", make))
    return answer(request, {"markers": markers(seen, start=start, end=end)})


async def alerts(context: ConsoleContext, request: Request) -> Response:
    request.query(frozenset())
    one = watched(context, request)
    if one.alerts.evaluated_at is None and one.pool.config.enable_metrics:
        one.start()
    about = {"evaluated_at": one.alerts.evaluated_at, "every_s": ALERTS_EVERY_S, "alerts": one.alerts.alerts}
    return answer(request, about)


LOOKING: Final = tuple(
    Route("GET", path, handler, summary, role="admin" if path.endswith("/log") else "reader")
    for path, handler, summary in (
        ("/dashboard/api/pools", pools, "The pools"),
        (f"{POOL}/overview", overview, "The pool now"),
        (f"{POOL}/history", history, "Figures over time, by column"),
        (f"{POOL}/live", live, "What changes, as it changes"),
        (f"{POOL}/markers", get_markers, "What is marked on charts"),
        (f"{POOL}/workers", workers, "All workers"),
        (f"{POOL}/cells", cells, "What runs in the slots of some workers"),
        (f"{POOL}/workers/{{worker}}", worker, "One worker"),
        (f"{POOL}/workers/{{worker}}/log", log, "The end of a worker's log"),
        (f"{POOL}/sessions", sessions, "Sessions"),
        (f"{POOL}/events", events, "What happened"),
        (f"{POOL}/alerts", alerts, "Alerts as they stand"),
    )
)

__all__ = ["LOOKING"]
