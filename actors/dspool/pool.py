"""What users hold: a pool, its sessions, and the blocking twin for scripts."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import ray
from ray.actor import ActorHandle

from dspool.client.client import Client, ControlPlane
from dspool.config import PoolConfig
from dspool.core.metrics.measures import HistoryView, MetricsSnapshot
from dspool.errors import Conflict, InvalidRequest, NotAllowed, WorkerStartFailed
from dspool.messages import (
    JSON,
    AnyCommand,
    Deployment,
    EndSession,
    ExecuteCode,
    ExecuteProgram,
    GetStats,
    PoolStatus,
    Result,
    SessionInfo,
    StreamEvent,
    StreamProgram,
    WorkerId,
)
from dspool.runtime import cluster, lifecycle
from dspool.runtime.cluster import NAMESPACE, actor_name, ask, ask_supervisor
from dspool.runtime.metrics import RemoteMetrics
from dspool.runtime.store import RemoteStore
from dspool.session import SessionMethods
from dspool.supervisor import DecisionRecord
from dspool.supervisor.canary import Rollout
from dspool.telemetry.event_log import EventPage

_DRAIN_S = 30.0
_NAME_LIMIT = 200


class Pool:
    """A client of one pool of workers. Belongs to the event loop that opened it.

    `async with Pool.start(config) as pool` runs a pool for the length of the block; `await Pool.connect(name)` joins
    one that runs (close it with `await pool.close()`: the pool goes on).
    """

    def __init__(self, name: str, client: Client, supervisor: ActorHandle[Any]) -> None:
        self.name = name
        self.client = client
        self.supervisor = supervisor
        """The raw supervisor actor."""

    # --- opening and closing ---

    @classmethod
    @asynccontextmanager
    async def start(
        cls, config: PoolConfig | None = None, *, listen_on: str | None = None, **overrides: Any
    ) -> AsyncIterator[Pool]:
        """Run a pool for the length of the block; drains it at the end.

        Joins the Ray cluster of this process if `ray.init` was called, else starts one of its own on this machine.
        Without a configuration it is the default pool, which answers `qa` offline. Workers listen for clients on
        `listen_on`: by default loopback in a cluster of its own, the address of their node in one that was joined.

        Raises:
            ConfigError: the configuration was refused, or its SQLite store on a cluster of several nodes.
            Conflict: a pool of this name runs on the cluster; nothing was changed.
            WorkerStartFailed: not enough workers were warm after `init_timeout_s`; says why.
        """
        config = config or PoolConfig.default()
        if overrides:
            config = config.override(**overrides)
        own = not ray.is_initialized()
        with cluster.own_cluster() if own else nullcontext():
            host = cluster.LOOPBACK if own and listen_on is None else listen_on
            if config.name in cluster.list_pools():
                raise Conflict(
                    f"pool {config.name!r} runs on this cluster already; "
                    "use Pool.connect to join it, or another name",
                    pool=config.name,
                )
            supervisor = lifecycle.launch(config, secrets.token_bytes(32), host=host)
            try:
                pool = await cls._open(config.name, supervisor)
                try:
                    await pool.wait_ready()
                    yield pool
                finally:
                    await pool.close()
            finally:
                await lifecycle.dismantle(config, timeout_s=_DRAIN_S)

    @classmethod
    async def connect(cls, name: str = "default") -> Pool:
        """Join a pool that runs on this process's Ray cluster.

        Raises:
            UnknownPool: there is none of that name.
        """
        return await cls._open(name, cluster.find_supervisor(name))

    @classmethod
    async def _open(cls, name: str, supervisor: ActorHandle[Any]) -> Pool:
        config, secret = await ask_supervisor(supervisor, "connect_info")
        client = Client(
            config,
            secret,
            ControlPlane(
                watch=lambda version: ask(supervisor, "watch", version),
                report_dead=lambda worker_id, why: ask(supervisor, "report_dead", worker_id, why),
                wake=(lambda: ask(supervisor, "wake")) if config.lazy else None,
                report=RemoteMetrics(name).report if config.enable_metrics else None,
            ),
        )
        await client.start()
        return cls(name, client, supervisor)

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until `min_ready` workers are warm and connected, at most `init_timeout_s`.

        Raises:
            WorkerStartFailed: they are not; says what the supervisor knows.
        """
        config = self.client.config
        if config.lazy:
            return
        limit = config.init_timeout_s if timeout_s is None else timeout_s
        if not await self.client.wait_ready(max(1, config.min_ready), limit):
            status = await self.status()
            raise WorkerStartFailed(
                f"pool {self.name!r} had {status.actual} of {config.min_ready} warm workers after {limit:g} s"
                + (f": {status.reason}" if status.reason else ""),
                pool=self.name,
            )

    async def close(self) -> None:
        """Leave the pool: operations of this client end with `PoolClosed`, the pool goes on."""
        await self.client.close()

    # --- operations ---

    async def run(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        idempotent: bool | None = None,
        operation_id: str | None = None,
        principal: str | None = None,
        traceparent: str | None = None,
    ) -> Result:
        """Run one command on a worker and wait for its end.

        Args:
            session: the session it belongs to; operations of one session run in order, one at a time.
            timeout_s: deadline for queueing, retries and execution together; default `operation_timeout_s`.
            idempotent: whether it may run again if its worker dies while it runs; by default what the
                configuration says of a pool program, yes for commands that only read, no for the rest.
            operation_id: unique; made up if absent.
            traceparent: W3C trace context.

        Raises:
            PoolError: exactly one, if the operation did not succeed; see `dspool.errors`.
        """
        return await self.client.run(
            command,
            session=_checked(session),
            timeout_s=timeout_s,
            idempotent=idempotent,
            operation_id=operation_id,
            principal=principal,
            traceparent=traceparent,
        )

    def stream(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        operation_id: str | None = None,
        principal: str | None = None,
        traceparent: str | None = None,
    ) -> AsyncIterator[StreamEvent | Result]:
        """The events of one command, then its `Result`. Leaving the iteration early cancels the operation."""
        return self.client.stream(
            command,
            session=_checked(session),
            timeout_s=timeout_s,
            operation_id=operation_id,
            principal=principal,
            traceparent=traceparent,
        )

    async def execute(self, program: str, /, *, timeout_s: float | None = None, **inputs: JSON) -> Result:
        """Run a pool program: `(await pool.execute("qa", question="...", context="...")).answer`."""
        return await self.client.run(ExecuteProgram(program, inputs), timeout_s=timeout_s)

    def session(self, session_id: str, *, principal: str | None = None) -> SessionHandle:
        """A handle on a session; it comes into being with its first program or variable."""
        return SessionHandle(self, session_id, principal=principal)

    # --- the pool itself ---

    async def status(self) -> PoolStatus:
        return await ask_supervisor(self.supervisor, "status")

    async def resize(self, size: int) -> int:
        """Ask for `size` workers. Raises: InvalidRequest: outside `min_pool_size`..`max_pool_size`."""
        return await ask_supervisor(self.supervisor, "resize", size)

    async def pause(self) -> None:
        """Refuse new operations (`PoolPaused`); those that were accepted finish."""
        await ask_supervisor(self.supervisor, "pause")

    async def resume(self) -> None:
        await ask_supervisor(self.supervisor, "resume")

    async def drain(self, worker_id: str) -> None:
        """Let the worker finish what it runs, hand its sessions on, and go; it is replaced."""
        await ask(self.supervisor, "drain", worker_id)

    async def restart(self, worker_id: str) -> None:
        """Replace the worker, its replacement warm first. Returns when it is gone."""
        await ask(self.supervisor, "restart", worker_id)

    async def deploy(self, deployment: Deployment, *, canary_s: float | None = None) -> Deployment:
        """Put a new version of a pool program into service, a canary first; the deployment with its version.

        `canary_s` is the longest time that the canary is watched.

        Raises:
            ProgramError: it does not load, or its canary did worse; the version before runs on.
            Conflict: it is what runs already, or source that it names was edited since workers imported it.
        """
        options = {} if canary_s is None else {"canary_s": canary_s}
        done: Deployment = await ask(self.supervisor, "deploy", deployment, **options)
        self.client.heard_of(done.program)
        return done

    async def rollouts(self) -> list[Rollout]:
        """The last deployments with what their canaries did, newest first; one that runs shows how far it is."""
        return await ask_supervisor(self.supervisor, "recent_rollouts")

    async def decisions(self, limit: int = 50) -> list[DecisionRecord]:
        """The last decisions about the size with the numbers that led to them, newest first."""
        return await ask_supervisor(self.supervisor, "decisions", limit)

    async def sessions(
        self, *, limit: int = 100, after: str | None = None, principal: str | None = None
    ) -> tuple[list[SessionInfo], str | None]:
        """A page of sessions by id, and the cursor of the next page."""
        store = RemoteStore(self.name)
        return await store.list(self.name, limit=limit, after=after, principal=principal)

    async def metrics_snapshot(self) -> MetricsSnapshot:
        """The pool now: sizes, load, latencies of the last minute, counters, by program and by worker.

        Raises:
            NotAllowed: `enable_metrics` is off.
            WorkerLost: the metrics actor is being restarted; try again.
        """
        return await self._ask_metrics("snapshot")

    async def metrics_history(
        self, duration_s: float = 60.0, *, program: str | None = None, ordinal: int | None = None
    ) -> HistoryView:
        """Points of the last `duration_s` seconds of the pool, of one program, or of one worker.

        Raises:
            NotAllowed, WorkerLost: as `metrics_snapshot`.
            InvalidRequest: `duration_s` is not a positive number.
        """
        if not duration_s > 0:
            raise InvalidRequest(f"a history has a positive duration_s, got {duration_s}", field="duration_s")
        return await self._ask_metrics("history", duration_s, program=program, ordinal=ordinal)

    async def events(self, since: int = 0, limit: int = 100, *, timeout_s: float = 0.0) -> EventPage:
        """What happened in the whole pool: resizes, deaths, moved sessions, ... (not each operation), oldest first.

        `since` is the `next` of the page before; 0 gives the newest. With `timeout_s` (at most 30) it waits for
        something to happen.

        Raises:
            NotAllowed, WorkerLost: as `metrics_snapshot`.
            InvalidRequest: `limit` is outside 1..1000, or `timeout_s` outside 0..30.
        """
        return await self._ask_metrics("events", since, limit, timeout_s)

    async def _ask_metrics(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if not self.client.config.enable_metrics:
            raise NotAllowed(f"pool {self.name!r} keeps no metrics: enable_metrics is off", pool=self.name)
        return await RemoteMetrics(self.name).ask(method, *args, **kwargs)

    async def end_session(self, session_id: str, *, principal: str | None = None) -> None:
        """Raises: UnknownSession."""
        await self.run(EndSession(), session=session_id, principal=principal)

    @property
    def metrics(self) -> ActorHandle[Any]:
        """The raw metrics actor."""
        return ray.get_actor(actor_name(self.name, "metrics"), namespace=NAMESPACE)

    @property
    def store(self) -> ActorHandle[Any]:
        """The raw store actor."""
        return ray.get_actor(actor_name(self.name, "store"), namespace=NAMESPACE)

    def workers(self) -> dict[str, ActorHandle[Any]]:
        """Raw handles of the workers that take traffic, by worker id."""
        handles = {}
        for member in self.client.membership.workers:
            name = actor_name(self.name, WorkerId.parse(member.worker_id).role)
            handles[member.worker_id] = ray.get_actor(name, namespace=NAMESPACE)
        return handles


class SessionHandle(SessionMethods):
    """One session of a pool. Holds no state: two handles of one id are the same session."""

    def __init__(self, pool: Pool, session_id: str, *, principal: str | None = None) -> None:
        if not session_id or len(session_id) > _NAME_LIMIT:
            raise InvalidRequest(f"a session id has 1 to {_NAME_LIMIT} characters, got {len(session_id)}")
        self.id = session_id
        self._pool, self._principal = pool, principal

    async def run(
        self, command: AnyCommand, *, timeout_s: float | None = None, idempotent: bool | None = None
    ) -> Result:
        return await self._pool.run(
            command, session=self.id, timeout_s=timeout_s, idempotent=idempotent, principal=self._principal
        )

    def stream(
        self, program: str, /, *, timeout_s: float | None = None, **inputs: JSON
    ) -> AsyncIterator[StreamEvent | Result]:
        """The program's output as it comes, then its `Result`."""
        return self._pool.stream(
            StreamProgram(program, inputs), session=self.id, timeout_s=timeout_s, principal=self._principal
        )

    async def stats(self) -> JSON:
        return (await self.run(GetStats())).value

    async def execute_code(self, code: str) -> JSON:
        """Run Python in the worker. Raises: NotAllowed: unless `allow_execute_code` is set."""
        return (await self.run(ExecuteCode(code))).value


def _checked(session: str | None) -> str | None:
    if session is not None and not 0 < len(session) <= _NAME_LIMIT:
        raise InvalidRequest(f"a session id has 1 to {_NAME_LIMIT} characters, got {len(session)}")
    return session
