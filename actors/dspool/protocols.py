"""What holds a pool offers, wherever it is: in the cluster (`Pool`), over HTTP (`RemotePool`), in a test.

Each protocol is what one kind of asker needs. An operation has one name in all of them. Methods raise `PoolError`s.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from dspool.config import PoolConfig
from dspool.core.admission.rates import Allowance, RateLimits
from dspool.core.lifecycle.warmup import StepRun, Strategy, WarmupReport
from dspool.core.metrics.measures import HistoryView, LiveUpdate, MetricsSnapshot, Table
from dspool.messages import JSON, AnyCommand, Deployment, PoolStatus, Result, SessionInfo, StreamEvent
from dspool.session import PoolOperations, SessionMethods
from dspool.store.idempotency import Claim, KeptAnswer
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress
from dspool.telemetry.event_log import EventPage
from dspool.telemetry.logs import LogTail
from dspool.telemetry.snapshot import Snapshot
from dspool.telemetry.tracing import Tracing


class PoolAdministration(Protocol):
    """What operators ask. `Pool` says what each method does and raises."""

    async def status(self) -> PoolStatus: ...
    async def resize(self, size: int) -> int: ...
    async def decisions(self, limit: int = 50) -> list[DecisionRecord]: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def drain(self, worker_id: str, *, wait_s: float | None = None) -> bool: ...
    async def restart(self, worker_id: str, *, wait_s: float | None = None) -> bool: ...
    async def deploy(self, deployment: Deployment, *, canary_s: float | None = None) -> Deployment: ...
    def stream_deploy(
        self, deployment: Deployment, *, canary_s: float | None = None
    ) -> AsyncGenerator[Rollout | Deployment]: ...
    async def rollback(self, program: str, version: int | None = None) -> Deployment: ...
    async def rollouts(self) -> list[Rollout]: ...
    async def current_versions(self) -> dict[str, int]: ...
    async def warm(self, strategy: Strategy | None = None) -> WarmupReport: ...
    def stream_warm(
        self, strategy: Strategy | None = None
    ) -> AsyncGenerator[WarmProgress | WarmupReport]: ...


class PoolObservation(Protocol):
    """What a program asks that looks at a pool."""

    async def metrics_snapshot(self) -> MetricsSnapshot: ...
    async def metrics_history(
        self, duration_s: float = 60.0, *, program: str | None = None, ordinal: int | None = None
    ) -> HistoryView: ...
    async def events(self, since: int = 0, limit: int = 100, *, timeout_s: float = 0.0) -> EventPage: ...


class PoolClient(PoolOperations, PoolAdministration, PoolObservation, Protocol):
    """A pool as programs hold it: `Pool` and `RemotePool`."""

    async def execute(self, program: str, /, *, timeout_s: float | None = None, **inputs: JSON) -> Result: ...
    async def map(
        self, program: str, inputs: list[dict[str, JSON]], *, timeout_s: float | None = None
    ) -> list[Result]: ...
    def session(self, session_id: str) -> SessionMethods: ...
    async def create_session(self, session_id: str) -> SessionInfo: ...
    async def sessions(
        self, *, limit: int = 100, after: str | None = None
    ) -> tuple[list[SessionInfo], str | None]: ...
    async def session_info(self, session_id: str) -> SessionInfo: ...
    async def end_session(self, session_id: str) -> None: ...
    async def close(self) -> None: ...


class CallerView(Protocol):
    """What a service asks of a pool in the name of somebody: their operations, their sessions."""

    @property
    def name(self) -> str: ...
    async def run(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> Result: ...
    def stream(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        traceparent: str | None = None,
    ) -> AsyncGenerator[StreamEvent | Result]: ...
    async def create_session(self, session_id: str) -> SessionInfo: ...
    async def sessions(
        self, *, limit: int = 100, after: str | None = None
    ) -> tuple[list[SessionInfo], str | None]: ...
    async def session_info(self, session_id: str) -> SessionInfo: ...
    async def end_session(self, session_id: str) -> None: ...


class PoolStorage(Protocol):
    """What all processes of a service share by the pool's store."""

    async def claim_key(
        self,
        key: str,
        *,
        principal: str | None,
        fingerprint: str,
        holder: str,
        patience_s: float,
        keep_s: float,
    ) -> Claim: ...
    async def settle_key(
        self, key: str, *, principal: str | None, holder: str, answer: KeptAnswer
    ) -> None: ...
    async def drop_key(self, key: str, *, principal: str | None, holder: str) -> None: ...
    async def take_allowance(self, token: str, limits: RateLimits, wanted: int) -> Allowance: ...


class PoolInspection(Protocol):
    """What pages for people ask: live figures, single workers, warm-ups."""

    @property
    def ray_dashboard(self) -> str | None: ...
    async def snapshot(self) -> Snapshot: ...
    async def live_update(self, after: float | None = None, *, workers: bool = False) -> LiveUpdate: ...
    async def table(
        self, duration_s: float, *, program: str | None = None, ordinal: int | None = None
    ) -> Table: ...
    async def worker_operations(self, worker_id: str) -> list[dict[str, Any]]: ...
    async def worker_memory(self, worker_id: str) -> dict[str, float]: ...
    async def worker_log(self, worker_id: str, lines: int = 200) -> LogTail: ...
    async def worker_actor_id(self, worker_id: str) -> str: ...
    async def worker_warm_runs(self, worker_id: str) -> list[StepRun]: ...
    async def warmup_report(self) -> WarmupReport: ...
    async def warm_progress(self, since: int = 0) -> list[WarmProgress]: ...
    async def deployments(self) -> list[Deployment]: ...
    async def count_sessions(self) -> int: ...


class ClusterPool(PoolAdministration, PoolObservation, PoolStorage, PoolInspection, Protocol):
    """A pool as its service holds it: `Pool`, and doubles of it in tests."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> PoolConfig: ...
    @property
    def tracing(self) -> Tracing | None: ...

    def signing_key(self) -> bytes:
        """A secret that all processes of this pool share."""
        ...

    def room(self) -> int:
        """Operations that may be in the pool at once from one process of the service."""
        ...

    async def run(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        principal: str | None = None,
        traceparent: str | None = None,
    ) -> Result: ...
    def stream(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        principal: str | None = None,
        traceparent: str | None = None,
    ) -> AsyncGenerator[StreamEvent | Result]: ...
    async def create_session(self, session_id: str, *, principal: str | None = None) -> SessionInfo: ...
    async def sessions(
        self,
        *,
        limit: int = 100,
        after: str | None = None,
        owner: str | None = None,
        containing: str = "",
    ) -> tuple[list[SessionInfo], str | None]: ...
    async def session_info(self, session_id: str) -> SessionInfo: ...
    async def end_session(self, session_id: str) -> None: ...


__all__ = [
    "CallerView",
    "ClusterPool",
    "PoolAdministration",
    "PoolClient",
    "PoolInspection",
    "PoolObservation",
    "PoolOperations",
    "PoolStorage",
]
