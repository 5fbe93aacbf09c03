"""A pool whose operations go from this process straight to its workers, and its sessions."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from typing import Any

from dspool.batch import BatchCall, BatchMethods, Outcome
from dspool.client.client import Client
from dspool.config import PoolConfig
from dspool.errors import PoolError
from dspool.messages import (
    JSON,
    AnyCommand,
    EndSession,
    ExecuteCode,
    ExecuteProgram,
    Member,
    PoolStatus,
    Result,
    StorageLimits,
    StreamEvent,
    StreamProgram,
    WorkerState,
    WorkerStatus,
)
from dspool.session import SessionMethods, checked_id
from dspool.telemetry.tracing import Tracing

_MAP_AT_ONCE = 256
"""Operations of one `map` in flight: more would wait in the queue and gain nothing."""


class DirectPool(BatchMethods):
    """The operations of a pool, through a client in this process. Belongs to the client's event loop."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self.client = client

    def __repr__(self) -> str:
        members = self.client.membership.workers
        return f"{type(self).__name__}({self.name!r}, workers={len(members)})"

    async def close(self) -> None:
        """Leave the pool: operations of this client end with `PoolClosed`."""
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

    async def execute(
        self,
        program: str,
        /,
        *,
        timeout_s: float | None = None,
        lm: dict[str, JSON] | None = None,
        **inputs: JSON,
    ) -> Result:
        """Run a pool program: `(await pool.execute("qa", question="...", context="...")).answer`.

        `lm`: profile and settings of generation for this operation, as far as `request_lm` allows.
        """
        return await self.client.run(ExecuteProgram(program, inputs, lm=lm), timeout_s=timeout_s)

    async def _outcomes(self, batch: BatchCall) -> list[Outcome]:
        outcomes: list[Any] = [None] * len(batch.inputs)
        left = iter(enumerate(batch.inputs))

        async def caller() -> None:
            for index, one in left:
                command = ExecuteProgram(batch.program, one, lm=batch.lm)
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
        workers = self.client.membership.workers
        slots = sum(member.slots for member in workers)
        processes = self.config.ingress_processes(max(1, len({member.node for member in workers})))
        return max(self.config.slots_per_worker, math.ceil(2 * slots / processes))

    def reached(self) -> int:
        """Workers that this process is connected to."""
        return len(self.client.connected)

    def seen(self, why: str) -> PoolStatus:
        """The pool as this process sees it while its supervisor, for this reason, does not say more: the workers that
        take traffic, `ready` where it is connected to them and else `failed`."""
        membership, connected = self.client.membership, self.client.connected
        workers = tuple(
            [_seen(member, reached=member.worker_id in connected) for member in membership.workers]
        )
        actual = sum(one.state == "ready" for one in workers)
        return PoolStatus(
            name=self.client.config.name,
            state="unknown",
            ready=actual >= max(1, self.config.min_ready),
            desired=len(workers),
            actual=actual,
            spares=0,
            membership_version=membership.version,
            workers=workers,
            programs=membership.programs,
            reason=why,
        )


def _seen(member: Member, *, reached: bool) -> WorkerStatus:
    state: WorkerState = "ready" if reached else "failed"
    return WorkerStatus(
        member.worker_id,
        member.ordinal,
        state,
        pid=member.pid,
        node=member.node,
        slots=member.slots,
        reason="" if reached else "this process does not reach it",
    )


class SessionHandle(SessionMethods):
    """One session of a pool. Holds no state: two handles of one id are the same session."""

    def __init__(self, pool: DirectPool, session_id: str, *, principal: str | None = None) -> None:
        super().__init__(pool, session_id)
        self._pool: DirectPool = pool
        self._principal = principal

    async def run(
        self, command: AnyCommand, *, timeout_s: float | None = None, idempotent: bool | None = None
    ) -> Result:
        return await self._pool.run(
            command, session=self.id, timeout_s=timeout_s, idempotent=idempotent, principal=self._principal
        )

    def stream(
        self,
        program: str,
        /,
        *,
        timeout_s: float | None = None,
        lm: dict[str, JSON] | None = None,
        **inputs: JSON,
    ) -> AsyncGenerator[StreamEvent | Result]:
        """The program's output as it comes, then its `Result`."""
        return self._pool.stream(
            StreamProgram(program, inputs, lm=lm),
            session=self.id,
            timeout_s=timeout_s,
            principal=self._principal,
        )

    async def execute_code(self, code: str) -> JSON:
        """Run Python in the worker. Raises: NotAllowed: unless `allow_execute_code` is set."""
        return (await self.run(ExecuteCode(code))).value


__all__ = ["DirectPool", "SessionHandle"]
