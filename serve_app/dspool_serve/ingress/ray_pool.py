"""A pool on Ray as the routes see it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

from dspool.core.admission.rates import Allowance, RateLimits
from dspool.core.lifecycle.warmup import Strategy, WarmupReport
from dspool.core.metrics.measures import HistoryView
from dspool.messages import AnyCommand, Deployment, PoolStatus, SessionInfo, StreamEvent
from dspool.pool import Pool
from dspool.runtime.cluster import ask, ask_supervisor
from dspool.runtime.metrics import RemoteMetrics
from dspool.runtime.store import RemoteStore
from dspool.store.idempotency import Claim, KeptAnswer
from dspool.supervisor.warmup import WarmProgress
from dspool.telemetry.snapshot import Snapshot
from dspool_serve.ingress.ray_insight import RayInsight
from dspool_serve.pools import ServedResult

_LOOK_S = 1.0
"""How long one question for the progress of a warm-up waits; its end is noticed at once all the same."""


class RayPool:
    """A `dspool.Pool` as a `ServedPool`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.name = pool.name
        self.run = pool.run
        self.events = pool.events
        self.metrics_snapshot = pool.metrics_snapshot
        self.metrics_history = pool.metrics_history
        self.deploy = pool.deploy
        self.resize = pool.resize
        self.pause = pool.pause
        self.resume = pool.resume
        self.drain = pool.drain
        self.restart = pool.restart
        self.rollouts = pool.rollouts
        self.decisions = pool.decisions
        self.tracing = pool.client.tracing
        self._metrics = RemoteMetrics(pool.name)
        self._store = RemoteStore(pool.name)
        self.insight = RayInsight(pool)

    def stream(self, command: AnyCommand, **options: Any) -> AsyncGenerator[StreamEvent | ServedResult]:
        return cast(AsyncGenerator[StreamEvent | ServedResult], self._pool.stream(command, **options))

    async def close(self) -> None:
        await self._pool.close()

    # --- what the door in front of it asks ---

    @property
    def operation_timeout_s(self) -> float:
        return self._pool.client.config.operation_timeout_s

    def room(self) -> int:
        """Operations that may be in the pool at once from here: twice what it runs, so that no worker ever waits
        for the next one; little enough that the rest waits where tokens take turns.
        """
        client = self._pool.client
        slots = sum(member.slots for member in client.membership.workers)
        return max(client.config.slots_per_worker, math.ceil(2 * slots / client.config.service.replicas))

    async def take_allowance(self, token: str, limits: RateLimits, wanted: int) -> Allowance:
        """Where a token's operations are counted for all ingress processes."""
        return await self._store.take_allowance(self.name, token, limits, wanted)

    # --- the pool ---

    async def status(self) -> PoolStatus:
        return await self._pool.status()

    def config_view(self) -> dict[str, Any]:
        config: dict[str, Any] = self._pool.client.config.model_dump(mode="json")
        view = _without_passwords(config)
        assert isinstance(view, dict)
        return view

    async def deployments(self) -> list[Deployment]:
        return await self._store.deployments(self.name)

    async def current_versions(self) -> dict[str, int]:
        return await self._store.current_versions(self.name)

    async def rollback(self, program: str, version: int | None) -> Deployment:
        return await ask(self._pool.supervisor, "rollback", program, version)

    async def warm(self, strategy: Strategy | None) -> AsyncGenerator[WarmProgress | WarmupReport]:
        supervisor = self._pool.supervisor
        before: list[WarmProgress] = await ask_supervisor(supervisor, "warm_progress", 0, 0.0)
        seen = before[-1].sequence if before else 0
        # It goes on if nobody listens any more: half a roll-out helps nobody.
        warming = asyncio.ensure_future(ask(supervisor, "warm", strategy))
        news: asyncio.Future[list[WarmProgress]] | None = None
        try:
            while not warming.done():
                news = asyncio.ensure_future(ask(supervisor, "warm_progress", seen, _LOOK_S))
                await asyncio.wait((warming, news), return_when=asyncio.FIRST_COMPLETED)
                if warming.done() and warming.exception() is not None:
                    break
                for moment in await news:
                    seen = moment.sequence
                    yield moment
            yield await warming
        finally:
            for left in (warming, news):
                if left is not None:
                    left.cancel()

    # --- sessions ---

    async def create_session(self, id: str, *, principal: str | None = None) -> SessionInfo:
        return await self._store.create(self.name, id, principal=principal)

    async def sessions(
        self, *, limit: int = 100, after: str | None = None
    ) -> tuple[list[SessionInfo], str | None]:
        return await self._pool.sessions(limit=limit, after=after)

    async def session_info(self, id: str) -> SessionInfo:
        return await self._store.get(self.name, id)

    async def end_session(self, id: str) -> None:
        await self._pool.end_session(id)

    # --- idempotency keys ---

    async def claim_key(self, key: str, **about: Any) -> Claim:
        return await self._store.claim_key(self.name, key, **about)

    async def settle_key(self, key: str, *, principal: str | None, holder: str, answer: KeptAnswer) -> None:
        await self._store.settle_key(self.name, key, principal=principal, holder=holder, answer=answer)

    async def drop_key(self, key: str, *, principal: str | None, holder: str) -> None:
        await self._store.drop_key(self.name, key, principal=principal, holder=holder)

    # --- what is observed ---

    async def reading(self) -> Snapshot:
        return await self._metrics.ask("reading")

    async def history(self, duration_s: float) -> HistoryView:
        return await self._metrics.ask("history", duration_s)


def _without_passwords(value: Any) -> Any:
    """`value` with the user part of every URL in it left out."""
    if isinstance(value, dict):
        return {key: _without_passwords(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_passwords(inner) for inner in value]
    if isinstance(value, str) and "://" in value and "@" in value:
        parts = urlsplit(value)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
    return value


__all__ = ["RayPool"]
