"""What the routes need of a pool, and where they find it.

The routes know this small interface only, so that they run the same against a real `dspool.Pool`, and
against a double in a test. `RayPools` (in `deployment.py`) gives the real ones.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from msgspec import Struct

from dspool.core.lifecycle.warmup import Strategy, WarmupReport
from dspool.core.metrics.measures import HistoryView, MetricsSnapshot
from dspool.messages import AnyCommand, Deployment, PoolStatus, SessionInfo, StreamEvent
from dspool.store.idempotency import Claim, KeptAnswer
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress
from dspool.telemetry.event_log import EventPage
from dspool.telemetry.snapshot import Snapshot


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


class ServedResult(Protocol):
    """The part of `dspool.pool.Result` that the routes use."""

    @property
    def operation_id(self) -> str: ...
    @property
    def worker(self) -> str: ...
    @property
    def value(self) -> Any: ...
    @property
    def program_version(self) -> int: ...
    @property
    def wait_s(self) -> float: ...
    @property
    def run_s(self) -> float: ...
    @property
    def usage(self) -> dict[str, dict[str, int]]: ...
    @property
    def offline(self) -> bool: ...


class ServedPool(Protocol):
    """A pool as the routes see it. Methods raise `PoolError`s only; cancelling `run` frees its slot."""

    @property
    def name(self) -> str: ...

    async def run(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        principal: str | None = None,
        traceparent: str | None = None,
    ) -> ServedResult: ...

    def stream(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        principal: str | None = None,
        traceparent: str | None = None,
    ) -> AsyncGenerator[StreamEvent | ServedResult]:
        """The events of one command, then its answer. Closing it early cancels the operation."""
        ...

    async def status(self) -> PoolStatus: ...

    # --- what operators ask ---

    def config_view(self) -> dict[str, Any]:
        """The configuration as plain JSON values, without passwords."""
        ...

    async def deployments(self) -> list[Deployment]:
        """All versions of all pool programs."""
        ...

    async def current_versions(self) -> dict[str, int]: ...

    async def deploy(self, deployment: Deployment, *, canary_s: float | None = None) -> Deployment: ...

    async def rollouts(self) -> list[Rollout]:
        """The last deployments, newest first."""
        ...

    async def decisions(self, limit: int) -> list[DecisionRecord]:
        """The last decisions about the size, newest first."""
        ...

    async def rollback(self, program: str, version: int | None) -> Deployment: ...

    async def resize(self, size: int) -> int: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...

    async def drain(self, worker_id: str) -> None:
        """Returns when the worker is gone. Raises: UnknownWorker."""
        ...

    async def restart(self, worker_id: str) -> None:
        """Returns when the worker is gone. Raises: UnknownWorker."""
        ...

    def warm(self, strategy: Strategy | None) -> AsyncGenerator[WarmProgress | WarmupReport]:
        """Run the warm-up steps again; what happens, and the report last. Raises: Conflict: one is running."""
        ...

    # --- sessions ---

    async def create_session(self, id: str, *, principal: str | None = None) -> SessionInfo:
        """Raises: Conflict: there is one."""
        ...

    async def sessions(
        self, *, limit: int = 100, after: str | None = None
    ) -> tuple[list[SessionInfo], str | None]: ...

    async def session_info(self, id: str) -> SessionInfo:
        """Raises: UnknownSession."""
        ...

    async def end_session(self, id: str) -> None:
        """Raises: UnknownSession."""
        ...

    # --- idempotency keys; see `dspool.store.idempotency` ---

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

    # --- what is observed ---

    async def reading(self) -> Snapshot:
        """What its metrics are made from."""
        ...

    async def events(self, since: int = 0, limit: int = 100, *, timeout_s: float = 0.0) -> EventPage:
        """What happened in it after event `since`; waits up to `timeout_s` for something to happen."""
        ...

    async def metrics_snapshot(self) -> MetricsSnapshot: ...

    async def history(self, duration_s: float) -> HistoryView:
        """Points of the last `duration_s` seconds, oldest first."""
        ...


class Pools(Protocol):
    """The pools that one service serves."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    def names(self) -> list[str]: ...

    def get(self, name: str) -> ServedPool:
        """The pool called `name`.

        Raises:
            UnknownPool: there is none; the message names those there are.
        """
        ...
