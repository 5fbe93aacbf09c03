"""What a service asks of the pools that it serves, and how it behaves."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from msgspec import Struct

from dspool.config import PoolConfig
from dspool.core.admission.rates import Allowance, RateLimits
from dspool.core.admission.silences import AlertSilence, Silences
from dspool.core.lifecycle.warmup import StepRun, WarmupReport
from dspool.core.metrics.measures import LiveUpdate, Table
from dspool.core.metrics.operation_records import FoundOperations, OperationQuery
from dspool.messages import (
    AnyCommand,
    Deployment,
    PoolStatus,
    Result,
    SessionInfo,
    StorageLimits,
    StoredUsage,
    StoreStatus,
    StreamEvent,
)
from dspool.protocols import PoolAdministration, PoolObservation
from dspool.store.idempotency import Claim, KeptAnswer
from dspool.store.logins import Ended
from dspool.supervisor.warmup import WarmProgress
from dspool.telemetry.log_files import LogTail
from dspool.telemetry.snapshot import Snapshot
from dspool.telemetry.tracing import Tracing


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
        limits: StorageLimits | None = None,
    ) -> Claim: ...
    async def settle_key(
        self, key: str, *, principal: str | None, holder: str, answer: KeptAnswer
    ) -> None: ...
    async def drop_key(self, key: str, *, principal: str | None, holder: str) -> None: ...
    async def end_login(self, token: str, login: str, until: float) -> Ended: ...
    async def ended_logins(self) -> Ended: ...
    async def silence_alert(self, alert: str, silence: AlertSilence | None) -> Silences: ...
    async def silences(self) -> Silences: ...
    async def take_allowance(self, token: str, limits: RateLimits, wanted: int) -> Allowance: ...


class PoolInspection(Protocol):
    """What pages for people ask: live figures, single workers, warm-ups."""

    @property
    def ray_dashboard(self) -> str | None: ...
    async def snapshot(self) -> Snapshot: ...
    async def find_operations(self, query: OperationQuery) -> FoundOperations: ...
    async def live_update(self, after: float | None = None, *, workers: bool = False) -> LiveUpdate: ...
    async def table(
        self,
        duration_s: float,
        *,
        program: str | None = None,
        ordinal: int | None = None,
        worker: str | None = None,
        resolution_s: float = 0.0,
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

    async def rollback(self, program: str, version: int | None = None, *, by: str = "") -> Deployment: ...

    def signing_key(self) -> bytes:
        """A secret that all processes of this pool share."""
        ...

    def room(self) -> int:
        """Operations that may be in the pool at once from one process of the service."""
        ...

    def reached(self) -> int:
        """Workers that this process is connected to."""
        ...

    def seen(self, why: str) -> PoolStatus:
        """The pool as this process sees it, while its supervisor, for this reason, does not say more."""
        ...

    async def run(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        principal: str | None = None,
        traceparent: str | None = None,
        limits: StorageLimits | None = None,
    ) -> Result: ...
    def stream(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        principal: str | None = None,
        traceparent: str | None = None,
        limits: StorageLimits | None = None,
    ) -> AsyncGenerator[StreamEvent | Result]: ...
    async def create_session(
        self, session_id: str, *, principal: str | None = None, limits: StorageLimits | None = None
    ) -> SessionInfo: ...
    async def store_status(self) -> StoreStatus: ...
    async def storage_usage(self) -> tuple[StoredUsage, list[StoredUsage]]: ...
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


class Settings(Struct, frozen=True, kw_only=True):
    """How the HTTP layer behaves; made from `PoolConfig`."""

    max_body_bytes: int = 1_048_576
    operation_timeout_s: float = 30.0
    """The longest deadline a request may ask for, and the one it gets when it asks for none."""
    max_batch: int = 256
    body_timeout_s: float = 30.0
    heartbeat_s: float = 15.0
    idempotency_ttl_s: float = 86_400.0
    execute_code: bool = False
    session_imports: bool = False
    """Callers may name import paths in their sessions; without tokens everybody is an admin anyway."""
    echo_request_id: bool = True
    """Off behind Ray Serve, whose server adds `x-request-id` to every answer itself."""
    tls: bool = False
    """Cookies are marked to travel over TLS only."""
    client_header: str | None = None
    """The header that holds the client's address; None: its address is that of the connection."""
    root_path: str = ""
    """What stands before all paths where the client is."""
    cors_origins: tuple[str, ...] = ()
    """Pages of other origins that may use the API."""


class Pools(Protocol):
    """The pools that one service serves."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    def names(self) -> list[str]: ...

    def get(self, name: str) -> ClusterPool:
        """The pool called `name`.

        Raises:
            UnknownPool: there is none; the message names those there are.
        """
        ...
