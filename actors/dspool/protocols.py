"""What every form of a pool offers: in the cluster (`Pool`), over HTTP (`RemotePool`), and blocking.

An operation has one name in all of them; `Pool` says what it does and raises. Methods raise `PoolError`s only.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, Unpack

from dspool.batch import BatchMethods
from dspool.core.lifecycle.warmup import Strategy, WarmupReport
from dspool.core.metrics.measures import ErrorList, HistoryView, MetricsSnapshot
from dspool.core.metrics.operation_records import OperationFilters, OperationPage
from dspool.messages import JSON, Deployment, PoolStatus, Result, SessionInfo
from dspool.session import PoolOperations, SessionMethods
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress
from dspool.telemetry.event_log import EventPage
from dspool.telemetry.log_files import LogPage


class PoolAdministration(Protocol):
    """What operators ask. `Pool` says what each method does and raises."""

    async def status(self) -> PoolStatus: ...
    async def resize(self, size: int) -> int: ...
    async def decisions(self, limit: int = 50) -> list[DecisionRecord]: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def drain(self, worker_id: str | int, *, wait_s: float | None = None) -> bool: ...
    async def restart(self, worker_id: str | int, *, wait_s: float | None = None) -> bool: ...
    async def deploy(
        self, deployment: Deployment, *, canary_s: float | None = None, new: bool | None = None
    ) -> Deployment: ...
    def stream_deploy(
        self, deployment: Deployment, *, canary_s: float | None = None, new: bool | None = None
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
    async def errors(self) -> ErrorList: ...
    async def metrics_history(
        self, duration_s: float = 60.0, *, program: str | None = None, ordinal: int | None = None
    ) -> HistoryView: ...
    async def operations(self, **filters: Unpack[OperationFilters]) -> OperationPage: ...
    async def events(self, since: int = 0, limit: int = 100, *, timeout_s: float = 0.0) -> EventPage: ...
    async def logs(
        self,
        *,
        operation: str | None = None,
        worker: str | int | None = None,
        after: float = 0.0,
        limit: int = 200,
    ) -> LogPage: ...


class PoolClient(BatchMethods, PoolOperations, PoolAdministration, PoolObservation, Protocol):
    """A pool as programs hold it: `Pool` and `RemotePool`."""

    async def execute(
        self,
        program: str,
        /,
        *,
        timeout_s: float | None = None,
        lm: dict[str, JSON] | None = None,
        **inputs: JSON,
    ) -> Result: ...
    def session(self, session_id: str) -> SessionMethods: ...
    async def create_session(self, session_id: str) -> SessionInfo: ...
    async def sessions(
        self, *, limit: int = 100, after: str | None = None
    ) -> tuple[list[SessionInfo], str | None]: ...
    async def session_info(self, session_id: str) -> SessionInfo: ...
    async def end_session(self, session_id: str) -> None: ...
    async def close(self) -> None: ...


__all__ = ["PoolAdministration", "PoolClient", "PoolObservation", "PoolOperations"]
