"""The metrics of pools over HTTP: as JSON, and of all pools as Prometheus reads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from dspool.core.metrics.measures import ErrorList, HistoryView, MetricsSnapshot
from dspool.errors import PoolError
from dspool.telemetry.exposition import CONTENT_TYPE, expose
from dspool.telemetry.snapshot import Snapshot
from dspool_serve.api.common import POOL, answer_packed, patiently, pool_of
from dspool_serve.context import Context
from dspool_serve.costly import in_thread
from dspool_serve.fresh import Fresh
from dspool_serve.http.requests import Request, number
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route
from dspool_serve.pools import Pools

FRESH_S: Final = 1.0
"""The metrics actors are asked no more often, however many ask us."""
TIMEOUT_S: Final = 2.0
"""A metrics actor that does not answer in this time costs its pool's metrics, not the page."""
MAX_HISTORY_S: Final = 90_000.0
MAX_ORDINAL: Final = 1_000_000

_encode = msgspec.json.Encoder().encode


class Scrapes:
    """Makes the page, at most once in `FRESH_S`; who asks meanwhile gets the same one."""

    def __init__(self, pools: Pools, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pools = pools
        self._pages: Fresh[bytes] = Fresh(FRESH_S, clock=clock)

    async def page(self) -> bytes:
        return await self._pages.get("", self._make)

    async def _make(self) -> bytes:
        names = self._pools.names()
        snapshots = await asyncio.gather(*(self._snapshot(name) for name in names))
        return await asyncio.to_thread(expose, dict(zip(names, snapshots, strict=True)))

    async def _snapshot(self, name: str) -> Snapshot | None:
        try:
            return await asyncio.wait_for(self._pools.get(name).snapshot(), TIMEOUT_S)
        except (PoolError, TimeoutError):
            return None


async def get_metrics(context: Context, request: Request) -> Response:
    request.query(frozenset())
    return Response(200, _encode(await patiently(pool_of(context, request).metrics_snapshot())))


async def list_errors(context: Context, request: Request) -> Response:
    request.query(frozenset())
    return answer_packed(request, await patiently(pool_of(context, request).errors()))


async def get_history(context: Context, request: Request) -> Response:
    query = request.query(frozenset({"duration_s", "program", "slot"}))
    seconds = number(query, "duration_s", 300.0, least=1.0, most=MAX_HISTORY_S)
    ordinal = int(number(query, "slot", 0, least=0, most=MAX_ORDINAL)) if "slot" in query else None
    pool = pool_of(context, request)
    program = query.get("program")

    async def make() -> bytes:
        history = await patiently(pool.metrics_history(seconds, program=program, ordinal=ordinal))
        return await in_thread(lambda: _encode(history))

    return Response(200, await context.service.costly.run(request.principal, make))


_PROBLEMS: Final = ("unknown_pool", "invalid_request", "not_allowed", "pool_not_ready", "worker_lost")
_HISTORY: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("duration_s", {"type": "number", "minimum": 1, "maximum": MAX_HISTORY_S, "default": 300}),
    ("program", {"type": "string"}),
    ("slot", {"type": "integer", "minimum": 0, "maximum": MAX_ORDINAL}),
)


async def metrics(context: Context, request: Request) -> Response:
    request.query(frozenset())
    return Response(200, await context.service.metrics.page(), CONTENT_TYPE.encode())


ROUTES: Final = (
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
        f"{POOL}/errors",
        list_errors,
        "What operations ended with, by exception and line or by the model's error; with counts and examples",
        ErrorList,
        problems=_PROBLEMS,
        role="reader",
    ),
    Route(
        "GET",
        f"{POOL}/metrics/history",
        get_history,
        "The pool's figures over the last seconds, oldest first",
        HistoryView,
        problems=(*_PROBLEMS, "queue_full"),
        query=_HISTORY,
        role="reader",
    ),
    Route("GET", "/metrics", metrics, "Metrics of all pools, in Prometheus' text format", role="reader"),
)
