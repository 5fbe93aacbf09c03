"""What users hold in the cluster: a pool, its sessions, and the blocking form of both."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Self

import ray
from ray.actor import ActorHandle

from dspool.batch import BatchCall, BatchMethods, Outcome
from dspool.blocking import BlockingClient, BlockingSession, iterating, waiting
from dspool.client.client import Client, ControlPlane
from dspool.config import PoolConfig
from dspool.errors import Conflict, PoolError, WorkerStartFailed
from dspool.messages import (
    JSON,
    AnyCommand,
    EndSession,
    ExecuteCode,
    ExecuteProgram,
    Result,
    StorageLimits,
    StreamEvent,
    StreamProgram,
    WorkerId,
)
from dspool.runtime import cluster, lifecycle
from dspool.runtime.administration import Administration
from dspool.runtime.cluster import NAMESPACE, actor_name, ask, ask_supervisor
from dspool.runtime.inspection import Inspection
from dspool.runtime.metrics import RemoteMetrics
from dspool.runtime.storage import Storage
from dspool.runtime.store import RemoteStore
from dspool.session import SessionMethods, checked_id
from dspool.telemetry.pseudonyms import try_read_key
from dspool.telemetry.tracing import Tracing

_DRAIN_S = 30.0
_MAP_AT_ONCE = 256
"""Operations of one `map` in flight: more would wait in the queue and gain nothing."""


class Pool(BatchMethods, Administration, Inspection, Storage):
    """A client of one pool of workers. Belongs to the event loop that opened it.

    `async with Pool.start(config) as pool` runs a pool for the length of the block; `await Pool.connect(name)` joins
    one that runs (close it with `await pool.close()`: the pool goes on).
    """

    def __init__(self, name: str, client: Client, supervisor: ActorHandle[Any]) -> None:
        Inspection.__init__(self, name)
        Storage.__init__(self, name)
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
        `listen_on`: by default the address of their node, which is loopback in a cluster of its own.

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
            if config.name in cluster.list_pools():
                raise Conflict(
                    f"pool {config.name!r} runs on this cluster already; "
                    "use Pool.connect to join it, or another name",
                    pool=config.name,
                )
            supervisor = lifecycle.launch(config, secrets.token_bytes(32), host=listen_on)
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
        await try_read_key(name, RemoteStore(name).get_record)
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
        limits: StorageLimits | None = None,
    ) -> Result:
        """Run one command on a worker and wait for its end.

        Args:
            session: the session it belongs to; operations of one session run in order, one at a time.
            timeout_s: deadline for queueing, retries and execution together; default `operation_timeout_s`.
            idempotent: whether it may run again if its worker dies while it runs; by default what the
                configuration says of a pool program, yes for commands that only read, no for the rest.
            operation_id: unique; made up if absent.
            traceparent: W3C trace context.
            limits: how much `principal` may keep, where that is not what the configuration says.

        Raises:
            PoolError: exactly one, if the operation did not succeed; see `dspool.errors`.
        """
        return await self.client.run(
            command,
            session=None if session is None else checked_id(session),
            timeout_s=timeout_s,
            idempotent=idempotent,
            operation_id=operation_id,
            principal=principal,
            traceparent=traceparent,
            limits=limits,
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
        limits: StorageLimits | None = None,
    ) -> AsyncGenerator[StreamEvent | Result]:
        """The events of one command, then its `Result`. Leaving the iteration early cancels the operation."""
        return self.client.stream(
            command,
            session=None if session is None else checked_id(session),
            timeout_s=timeout_s,
            operation_id=operation_id,
            principal=principal,
            traceparent=traceparent,
            limits=limits,
        )

    async def execute(self, program: str, /, *, timeout_s: float | None = None, **inputs: JSON) -> Result:
        """Run a pool program: `(await pool.execute("qa", question="...", context="...")).answer`."""
        return await self.client.run(ExecuteProgram(program, inputs), timeout_s=timeout_s)

    async def _outcomes(self, batch: BatchCall) -> list[Outcome]:
        outcomes: list[Any] = [None] * len(batch.inputs)
        left = iter(enumerate(batch.inputs))

        async def caller() -> None:
            for index, one in left:
                command = ExecuteProgram(batch.program, one)
                try:
                    outcome: Outcome = await self.run(command, timeout_s=batch.timeout_s)
                except PoolError as failed:
                    outcome = failed
                outcomes[index] = batch.ended(outcome)

        # Half the queue: other callers of this pool have inputs too.
        callers = max(1, min(len(batch.inputs), _MAP_AT_ONCE, self.config.max_queue // 2))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(callers):
                    group.create_task(caller())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return outcomes

    def session(self, session_id: str, *, principal: str | None = None) -> SessionHandle:
        """A handle on a session; it comes into being with its first program or variable."""
        return SessionHandle(self, session_id, principal=principal)

    async def end_session(self, session_id: str, *, principal: str | None = None) -> None:
        """Raises: UnknownSession."""
        await self.run(EndSession(), session=session_id, principal=principal)

    # --- what its service needs ---

    @property
    def config(self) -> PoolConfig:
        return self.client.config

    @property
    def tracing(self) -> Tracing:
        return self.client.tracing

    def signing_key(self) -> bytes:
        """A secret that all processes of this pool share, for cookies."""
        return self.client.derived_key("dashboard")

    def room(self) -> int:
        """Operations that may be in the pool at once from one process of its service: twice what it runs, so that no
        worker ever waits for the next one; little enough that the rest waits where tokens take turns.
        """
        slots = sum(member.slots for member in self.client.membership.workers)
        return max(self.config.slots_per_worker, math.ceil(2 * slots / self.config.service.replicas))

    # --- raw actors ---

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
        super().__init__(pool, session_id)
        self._pool: Pool = pool
        self._principal = principal

    async def run(
        self, command: AnyCommand, *, timeout_s: float | None = None, idempotent: bool | None = None
    ) -> Result:
        return await self._pool.run(
            command, session=self.id, timeout_s=timeout_s, idempotent=idempotent, principal=self._principal
        )

    def stream(
        self, program: str, /, *, timeout_s: float | None = None, **inputs: JSON
    ) -> AsyncGenerator[StreamEvent | Result]:
        """The program's output as it comes, then its `Result`."""
        return self._pool.stream(
            StreamProgram(program, inputs), session=self.id, timeout_s=timeout_s, principal=self._principal
        )

    async def execute_code(self, code: str) -> JSON:
        """Run Python in the worker. Raises: NotAllowed: unless `allow_execute_code` is set."""
        return (await self.run(ExecuteCode(code))).value


class BlockingPool(BlockingClient[Pool]):
    """`with BlockingPool.start(config) as pool: pool.execute("qa", question=...)`. Safe to use from several threads."""

    @classmethod
    def start(cls, config: PoolConfig | None = None, **overrides: Any) -> Self:
        """As `Pool.start`. The pool ends with the `with` block, or with `close()`."""
        return cls(Pool.start(config, **overrides))

    @classmethod
    def connect(cls, name: str = "default") -> Self:
        """As `Pool.connect`."""
        return cls(_connected(name))

    run = waiting(Pool.run)
    stream = iterating(Pool.stream)
    sessions = waiting(Pool.sessions)
    end_session = waiting(Pool.end_session)
    create_session = waiting(Pool.create_session)

    def session(self, session_id: str, *, principal: str | None = None) -> BlockingSession:
        """As `Pool.session`."""
        return BlockingSession(self._portal, self.pool.session(session_id, principal=principal))


@asynccontextmanager
async def _connected(name: str) -> AsyncIterator[Pool]:
    pool = await Pool.connect(name)
    try:
        yield pool
    finally:
        await pool.close()
