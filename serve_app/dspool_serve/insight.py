"""What the dashboard asks of a pool, beyond what the HTTP routes ask.

`dspool_serve.ingress.ray_insight` answers from a running pool, tests and demonstrations answer from what they make up.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

from dspool.config import PoolConfig
from dspool.core.lifecycle.warmup import StepRun, Strategy, WarmupReport
from dspool.core.metrics.measures import LiveUpdate, Table
from dspool.errors import PoolNotReady
from dspool.messages import SessionInfo
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress
from dspool.telemetry.event_log import EventPage
from dspool.telemetry.logs import LogTail
from dspool.telemetry.snapshot import Snapshot
from dspool_serve.pools import ServedPool


class CurrentRollouts(NamedTuple):
    running: Rollout | None
    last: Rollout | None


class Insight(Protocol):
    """Methods raise `PoolError`s only. None is asked while nobody looks, but `reading`, for the alerts."""

    @property
    def config(self) -> PoolConfig: ...

    @property
    def ray_dashboard(self) -> str | None:
        """Where Ray's own dashboard is, if it runs."""
        ...

    def signing_key(self) -> bytes:
        """A secret that all processes of this pool share."""
        ...

    # --- figures ---

    async def look(self, after: float | None, *, workers: bool) -> LiveUpdate: ...

    async def table(
        self, duration_s: float, *, program: str | None = None, ordinal: int | None = None
    ) -> Table: ...

    async def reading(self) -> Snapshot: ...

    async def events(self, since: int, limit: int) -> EventPage: ...

    # --- workers ---

    async def busy(self, worker_id: str) -> list[dict[str, Any]]:
        """What runs in its slots. Raises: UnknownWorker."""
        ...

    async def memory(self, worker_id: str) -> dict[str, float]: ...

    async def log_tail(self, worker_id: str, lines: int) -> LogTail: ...

    async def actor_id(self, worker_id: str) -> str | None: ...

    async def warm_runs(self, worker_id: str) -> list[StepRun]: ...

    # --- the supervisor ---

    async def decisions(self, limit: int) -> list[DecisionRecord]:
        """Newest first."""
        ...

    async def warmup(self) -> WarmupReport: ...

    async def warm_progress(self, since: int) -> list[WarmProgress]: ...

    async def start_warm(self, strategy: Strategy | None) -> None:
        """Begin; what happens is told by `warm_progress`. Raises: Conflict: one is running."""
        ...

    async def rollouts(self) -> CurrentRollouts: ...

    # --- sessions ---

    async def sessions(
        self, *, limit: int, after: str | None, owner: str | None = None, containing: str = ""
    ) -> tuple[list[SessionInfo], str | None]: ...

    async def count_sessions(self) -> int: ...


def insight_of(pool: ServedPool) -> Insight:
    """Raises: PoolNotReady: this kind of pool cannot be looked into."""
    found = getattr(pool, "insight", None)
    if found is None:
        raise PoolNotReady(f"pool {pool.name!r} has no dashboard", pool=pool.name)
    return cast(Insight, found)


__all__ = ["CurrentRollouts", "Insight", "insight_of"]
