"""A pool over HTTP, with the methods of `Pool`: a program changes sides by one line.

    pool = await Pool.connect("default")                                       # in the cluster
    pool = RemotePool("https://pool.example:8000", token=os.environ["DSPOOL_TOKEN"])  # from anywhere

What was refused before it was begun is sent again after the time that the service names. What may have been done is
sent again only if that cannot do it twice: reading, replacing, and whatever carries an Idempotency-Key, as each POST
that runs or deploys a program does.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import msgspec

from dspool.batch import BatchCall, BatchMethods, Outcome
from dspool.blocking import BlockingClient, waiting
from dspool.core.lifecycle.warmup import Strategy, WarmupReport
from dspool.errors import InvalidRequest, UnknownWorker, Unreachable
from dspool.messages import (
    JSON,
    AnyCommand,
    Deployment,
    EndSession,
    ExecuteProgram,
    ExecuteSandboxed,
    PoolStatus,
    Result,
    SessionInfo,
    StreamEvent,
    is_ordinal,
)
from dspool.remote.observation import RemoteObservation
from dspool.remote.requests import (
    ATTEMPTS,
    HttpCall,
    batch_for,
    batch_outcomes,
    call_for,
    deploy_for,
    event_of,
    part,
    result_of,
)
from dspool.remote.service import HttpService
from dspool.session import SessionMethods
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress

T = TypeVar("T")

TIMEOUT_S = 30.0
MAX_BATCH = 256
"""Sets of inputs that are sent at once; a service that takes fewer (`service.max_batch`) says so."""
WAIT_EACH_S = 10.0
"""How long one request waits for a worker to be gone; asked again until the whole wait is over."""
PAGE = 1000


class _SessionPage(msgspec.Struct):
    sessions: list[SessionInfo]
    next_cursor: str | None = None


class RemotePool(BatchMethods, RemoteObservation):
    """A pool that is served at `url`. `async with RemotePool(...) as pool`, or `await pool.close()` at the end.

    Args:
        token: access token (`dspool token new`).
        timeout_s: deadline of an operation that names none; retries are within it.
        priority: "batch" lets interactive work of others go first.
        attempts: how often a request is sent at most.
        ca_file: certificates to trust instead of the system's, in PEM.
        transport: an httpx transport, for tests.

    Every method raises `PoolError`s: those that `Pool` raises, `Unauthenticated`, `RateLimited` and `Unreachable`.
    What operators ask needs an admin's token.
    """

    def __init__(
        self,
        url: str,
        *,
        pool: str = "default",
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        priority: str | None = None,
        attempts: int = ATTEMPTS,
        ca_file: Path | str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.name = pool
        self.timeout_s = timeout_s
        self._path = f"/v1/pools/{part(pool)}"
        self._batch = MAX_BATCH
        self._service = HttpService(
            url,
            token=token,
            timeout_s=timeout_s,
            priority=priority,
            attempts=attempts,
            ca_file=ca_file,
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._service.place!r}, pool={self.name!r})"

    async def close(self) -> None:
        """Close the connections; the pool goes on."""
        await self._service.close()

    async def __aenter__(self) -> RemotePool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- operations ---

    async def run(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        idempotent: bool | None = None,
        operation_id: str | None = None,
    ) -> Result:
        """As `Pool.run`. With `idempotent=True` no key is sent, which is faster; it may then be done twice."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        call = call_for(
            self.name,
            command,
            session,
            timeout_s=timeout_s,
            idempotent=idempotent,
            operation_id=operation_id,
        )
        return result_of(command, self._service.decoded(await self._service.send(call, timeout_s), object))

    async def stream(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        operation_id: str | None = None,
    ) -> AsyncGenerator[StreamEvent | Result]:
        """As `Pool.stream`: never sent again once it has begun. Leaving the iteration cancels the operation."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        # No key: a stream that is read again from the start is not the same stream.
        call = call_for(
            self.name, command, session, timeout_s=timeout_s, idempotent=True, operation_id=operation_id
        )._replace(repeatable=False)
        async with aclosing(self._service.events(call, timeout_s)) as events:
            async for name, data in events:
                if (event := event_of(command, name, data)) is not None:
                    yield event

    async def execute(
        self,
        program: str,
        /,
        *,
        timeout_s: float | None = None,
        lm: dict[str, JSON] | None = None,
        **inputs: JSON,
    ) -> Result:
        """As `Pool.execute`."""
        return await self.run(ExecuteProgram(program, inputs, lm=lm), timeout_s=timeout_s)

    async def _outcomes(self, batch: BatchCall) -> list[Outcome]:
        # In requests of as many sets of inputs as the service takes at once.
        outcomes: list[Outcome] = []
        limit_s = self.timeout_s if batch.timeout_s is None else batch.timeout_s
        while len(outcomes) < len(batch.inputs):
            sent = batch.inputs[len(outcomes) : len(outcomes) + self._batch]
            call = batch_for(self.name, batch.program, sent, batch.timeout_s, batch.lm)
            try:
                answer = await self._service.send(call, limit_s)
            except InvalidRequest as refused:
                limit = refused.details.get("limit")
                if type(limit) is not int or not 0 < limit < len(sent):
                    raise
                self._batch = limit
                continue
            outcomes += map(batch.ended, batch_outcomes(batch.program, self._service.decoded(answer, object)))
        return outcomes

    # --- sessions ---

    def session(self, session_id: str) -> RemoteSession:
        """As `Pool.session`."""
        return RemoteSession(self, session_id)

    async def create_session(self, session_id: str) -> SessionInfo:
        """As `Pool.create_session`."""
        return await self._service.post(
            self._path + "/sessions", {"id": session_id}, SessionInfo, repeatable=False
        )

    async def sessions(
        self, *, limit: int = 100, after: str | None = None
    ) -> tuple[list[SessionInfo], str | None]:
        """As `Pool.sessions`: one's own."""
        page = await self._service.get(self._path + "/sessions", _SessionPage, limit=limit, cursor=after)
        return page.sessions, page.next_cursor

    async def session_info(self, session_id: str) -> SessionInfo:
        """As `Pool.session_info`."""
        return await self._service.get(self._path + f"/sessions/{part(session_id)}", SessionInfo)

    async def end_session(self, session_id: str) -> None:
        """As `Pool.end_session`."""
        await self.run(EndSession(), session=session_id)

    # --- what operators ask ---

    async def status(self) -> PoolStatus:
        """As `Pool.status`."""
        return await self._service.get(self._path + "", PoolStatus)

    async def resize(self, size: int) -> int:
        """As `Pool.resize`."""
        return (await self._service.post(self._path + "/resize", {"size": size}, dict[str, int]))["desired"]

    async def decisions(self, limit: int = 50) -> list[DecisionRecord]:
        """As `Pool.decisions`."""
        found = await self._service.get(
            self._path + "/decisions", dict[str, list[DecisionRecord]], limit=limit
        )
        return found["decisions"]

    async def pause(self) -> None:
        """As `Pool.pause`."""
        await self._service.post(self._path + "/pause", None, dict)

    async def resume(self) -> None:
        """As `Pool.resume`."""
        await self._service.post(self._path + "/resume", None, dict)

    async def drain(self, worker_id: str | int, *, wait_s: float | None = None) -> bool:
        """As `Pool.drain`."""
        return await self._until_gone("drain", worker_id, wait_s)

    async def restart(self, worker_id: str | int, *, wait_s: float | None = None) -> bool:
        """As `Pool.restart`."""
        return await self._until_gone("restart", worker_id, wait_s)

    async def _until_gone(self, verb: str, worker_id: str | int, wait_s: float | None) -> bool:
        if is_ordinal(worker_id):
            # Once: the one that has it then may be the one that took its place.
            worker_id = (await self.status()).worker_id(worker_id)
        until = math.inf if wait_s is None else time.monotonic() + wait_s
        path = f"{self._path}/workers/{part(str(worker_id))}/{verb}"
        asked = False
        while True:
            each = max(0.0, min(WAIT_EACH_S, until - time.monotonic()))
            try:
                body: dict[str, JSON] = {"wait_s": each}
                answer = await self._service.post(path, body, dict[str, Any], timeout_s=each + TIMEOUT_S)
            except UnknownWorker:
                if not asked:
                    raise
                return True  # it went between two questions
            asked = True
            if answer["gone"] or time.monotonic() >= until:
                return bool(answer["gone"])
            await asyncio.sleep(0)

    async def deploy(
        self, deployment: Deployment, *, canary_s: float | None = None, new: bool | None = None
    ) -> Deployment:
        """As `Pool.deploy`."""
        call = deploy_for(self.name, deployment, canary_s, new)
        done = self._service.decoded(await self._service.send(call, math.inf), dict[str, Any])
        return msgspec.structs.replace(deployment, version=done["version"])

    async def stream_deploy(
        self, deployment: Deployment, *, canary_s: float | None = None, new: bool | None = None
    ) -> AsyncGenerator[Rollout | Deployment]:
        """As `Pool.stream_deploy`."""
        call = deploy_for(self.name, deployment, canary_s, new)._replace(key=None, repeatable=False)
        async with aclosing(self._service.events(call, math.inf)) as events:
            async for name, data in events:
                if name == "final":
                    yield msgspec.structs.replace(deployment, version=data["version"])
                else:
                    yield msgspec.convert(data, Rollout)

    async def rollback(self, program: str, version: int | None = None) -> Deployment:
        """As `Pool.rollback`; of the deployment only program and version are known here."""
        body = {} if version is None else {"version": version}
        return await self._service.post(
            self._path + f"/programs/{part(program)}/rollback",
            body,
            Deployment,
            repeatable=False,
            timeout_s=math.inf,
        )

    async def rollouts(self) -> list[Rollout]:
        """As `Pool.rollouts`."""
        return (await self._service.get(self._path + "/rollouts", dict[str, list[Rollout]]))["rollouts"]

    async def current_versions(self) -> dict[str, int]:
        """As `Pool.current_versions`."""
        return {one["program"]: one["version"] for one in await self.programs()}

    async def programs(self) -> list[dict[str, Any]]:
        """The pool programs with their versions, as `GET .../programs` shows them."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = await self._service.get(
                self._path + "/programs", dict[str, Any], limit=PAGE, cursor=cursor
            )
            found += page["programs"]
            cursor = page["next_cursor"]
            if cursor is None:
                return found

    async def warm(self, strategy: Strategy | None = None) -> WarmupReport:
        """As `Pool.warm`."""
        async with aclosing(self.stream_warm(strategy)) as events:
            async for event in events:
                if isinstance(event, WarmupReport):
                    return event
        raise Unreachable("the service ended before the warm-up did")

    async def stream_warm(
        self, strategy: Strategy | None = None
    ) -> AsyncGenerator[WarmProgress | WarmupReport]:
        """As `Pool.stream_warm`."""
        call = HttpCall("POST", f"{self._path}/warm", {"strategy": strategy})
        async with aclosing(self._service.events(call, math.inf)) as events:
            async for name, data in events:
                yield (
                    msgspec.convert(data, WarmupReport)
                    if name == "final"
                    else msgspec.convert(data, WarmProgress)
                )


class RemoteSession(SessionMethods):
    """As `SessionHandle`. Holds no state: two handles of one id are the same session."""

    async def execute_code(self, code: str) -> JSON:
        """Run Python, unlike `SessionHandle` in a sandbox. Needs an admin, and `service.execute_code`."""
        return (await self.run(ExecuteSandboxed(code))).value


class BlockingRemotePool(BlockingClient[RemotePool]):
    """As `RemotePool`, without asyncio. Safe to use from several threads."""

    look = waiting(RemotePool.look)

    def __init__(
        self,
        url: str,
        *,
        pool: str = "default",
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        priority: str | None = None,
        attempts: int = ATTEMPTS,
        ca_file: Path | str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(
            RemotePool(
                url,
                pool=pool,
                token=token,
                timeout_s=timeout_s,
                priority=priority,
                attempts=attempts,
                ca_file=ca_file,
                transport=transport,
            )
        )

    programs = waiting(RemotePool.programs)


__all__ = ["BlockingRemotePool", "RemotePool", "RemoteSession"]
