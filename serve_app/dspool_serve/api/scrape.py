"""`GET /metrics`: the metrics of all pools of this service, as Prometheus reads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from dspool.errors import PoolError
from dspool.telemetry.exposition import CONTENT_TYPE, expose
from dspool.telemetry.snapshot import Snapshot
from dspool_serve.context import Context
from dspool_serve.fresh import Fresh
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route
from dspool_serve.pools import Pools

FRESH_S: Final = 1.0
"""The metrics actors are asked no more often, however many ask us."""
TIMEOUT_S: Final = 2.0
"""A metrics actor that does not answer in this time costs its pool's metrics, not the page."""


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
        return expose(dict(zip(names, snapshots, strict=True)))

    async def _snapshot(self, name: str) -> Snapshot | None:
        try:
            return await asyncio.wait_for(self._pools.get(name).snapshot(), TIMEOUT_S)
        except (PoolError, TimeoutError):
            return None


async def metrics(context: Context, request: Request) -> Response:
    request.query(frozenset())
    return Response(200, await context.service.metrics.page(), CONTENT_TYPE.encode())


SCRAPING: Final = (
    Route("GET", "/metrics", metrics, "Metrics of all pools, in Prometheus' text format", role="reader"),
)
