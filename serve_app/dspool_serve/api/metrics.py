"""Looking at a pool over HTTP: its metrics and events as JSON."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from dspool.core.metrics.measures import HistoryView, MetricsSnapshot
from dspool.telemetry.observation import MAX_PAGE, MAX_POLL_S
from dspool_serve.api.common import ANSWER_S, POOL, patiently, pool_of
from dspool_serve.api.event_text import EventRows, event_rows
from dspool_serve.context import Context
from dspool_serve.http.requests import Request, number
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

MAX_HISTORY_S: Final = 90_000.0
MAX_ORDINAL: Final = 1_000_000

_encode = msgspec.json.Encoder().encode


async def get_metrics(context: Context, request: Request) -> Response:
    request.query(frozenset())
    return Response(200, _encode(await patiently(pool_of(context, request).metrics_snapshot())))


async def get_history(context: Context, request: Request) -> Response:
    query = request.query(frozenset({"duration_s", "program", "slot"}))
    seconds = number(query, "duration_s", 300.0, least=1.0, most=MAX_HISTORY_S)
    ordinal = int(number(query, "slot", 0, least=0, most=MAX_ORDINAL)) if "slot" in query else None
    pool = pool_of(context, request)
    asked = pool.metrics_history(seconds, program=query.get("program"), ordinal=ordinal)
    return Response(200, _encode(await patiently(asked)))


async def get_events(context: Context, request: Request) -> Response:
    query = request.query(frozenset({"since", "limit", "timeout_s"}))
    since = int(number(query, "since", 0, least=0, most=2**53))
    limit = int(number(query, "limit", 100, least=1, most=MAX_PAGE))
    wait_s = number(query, "timeout_s", 0.0, least=0.0, most=MAX_POLL_S)
    pool = pool_of(context, request)
    page = await patiently(pool.events(since, limit, timeout_s=wait_s), ANSWER_S + wait_s)
    return Response(200, _encode(event_rows(page)))


_PROBLEMS: Final = ("unknown_pool", "invalid_request", "not_allowed", "pool_not_ready", "worker_lost")
_EVENTS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("since", {"type": "integer", "minimum": 0, "default": 0}),
    ("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100}),
    ("timeout_s", {"type": "number", "minimum": 0, "maximum": MAX_POLL_S, "default": 0}),
)
_HISTORY: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("duration_s", {"type": "number", "minimum": 1, "maximum": MAX_HISTORY_S, "default": 300}),
    ("program", {"type": "string"}),
    ("slot", {"type": "integer", "minimum": 0, "maximum": MAX_ORDINAL}),
)

OBSERVING: Final = (
    Route(
        "GET",
        f"{POOL}/metrics",
        get_metrics,
        "The pool's figures now",
        MetricsSnapshot,
        problems=_PROBLEMS,
        role="reader",
    ),
    Route(
        "GET",
        f"{POOL}/metrics/history",
        get_history,
        "The pool's figures over the last seconds, oldest first",
        HistoryView,
        problems=_PROBLEMS,
        query=_HISTORY,
        role="reader",
    ),
    Route(
        "GET",
        f"{POOL}/events",
        get_events,
        "What happened in the pool; waits for the next event with timeout_s",
        EventRows,
        problems=_PROBLEMS,
        query=_EVENTS,
        role="reader",
    ),
)

__all__ = ["OBSERVING"]
