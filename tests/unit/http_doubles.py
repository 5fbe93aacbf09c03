"""A pool that answers at once and remembers what it was asked, for the HTTP tests."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx

from dspool.config import PoolConfig
from dspool.core.admission.rates import Allowance, RateLimits
from dspool.core.admission.silences import AlertSilence, Silences, changed
from dspool.core.lifecycle.versions import check_known
from dspool.core.lifecycle.warmup import WarmupReport
from dspool.errors import (
    Conflict,
    PoolError,
    StoreFailed,
    UnknownName,
    UnknownPool,
    UnknownProgram,
    UnknownSession,
    UnknownWorker,
    WorkerLost,
)
from dspool.messages import (
    AnyCommand,
    CreateProgram,
    Deployment,
    ExecuteProgram,
    ExecuteSandboxed,
    GetHistory,
    GetVariable,
    ListPrograms,
    ListVariables,
    PoolStatus,
    Result,
    SessionInfo,
    StorageLimits,
    StoredUsage,
    StoreStatus,
    StreamEvent,
    VersionNumbers,
    WorkerStatus,
)
from dspool.store.idempotency import Claim, KeptAnswer
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress
from dspool.telemetry.event_log import EventPage, LoggedEvent
from dspool.telemetry.log_files import LogLine, LogPage
from dspool_console import Console
from dspool_serve.access.security import Security
from dspool_serve.api.application import Application
from dspool_serve.pools import Settings


def answered(value: Any) -> Result:
    usage = {"m": {"total_tokens": 7}}
    return Result("op-1", "default-w0-abcdef", value, 3, 0.25, 0.5, usage, offline=True)


class FakePool:
    """Program `qa` echoes its inputs; program `slow` never ends; `fail_with` is raised if set."""

    tracing: Any = None

    def __init__(self, name: str = "default") -> None:
        self.name = name
        self.config = PoolConfig(name=name, enable_metrics=False)
        self.ready = True
        self.fail_with: BaseException | None = None
        self.asked: list[dict[str, Any]] = []
        self.cancelled = 0
        self.started = asyncio.Event()
        self.told: list[StreamEvent] = []
        self.taken = 0
        self.runs = 0
        self.hold: asyncio.Event | None = None
        """`qa` waits for it."""
        self.keys: dict[tuple[str | None, str], tuple[str, str, KeptAnswer | None]] = {}
        self.size = 1
        self.workers_reached = 1
        self.ended_by_token: dict[str, dict[str, float]] = {}
        self.silenced: Silences = {}
        self.gone = asyncio.Event()
        self.gone.set()
        self.known_sessions = {"ada": SessionInfo("ada", "default-w0-abcdef", 1, 1.0, 2.0, ("answerer",))}

    async def run(self, command: AnyCommand, **options: Any) -> Result:
        self.asked.append({"command": command, **options})
        if self.fail_with is not None:
            raise self.fail_with
        if isinstance(command, ExecuteProgram):
            self.runs += 1
            if self.hold is not None:
                await self.hold.wait()
            if command.program == "slow":
                self.started.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled += 1
            if command.program != "qa":
                raise UnknownProgram(f"no program {command.program!r}")
            return answered({"outputs": command.inputs})
        if isinstance(command, CreateProgram):
            return answered({"program": command.program})
        if isinstance(command, ExecuteSandboxed):
            return answered({"stdout": "hi", "result": 2})
        if isinstance(command, ListVariables):
            return answered({"variables": ["b", "a", "c"]})
        if isinstance(command, GetVariable):
            return answered({"name": command.name, "value": [1]})
        if isinstance(command, GetHistory):
            return answered({"operations": [{"command": "execute_program"}][: command.limit]})
        if isinstance(command, ListPrograms):
            return answered({"programs": [{"program": "qa", "scope": "pool", "version": 1}]})
        return answered({"signature": "question -> answer"})

    async def stream(self, command: AnyCommand, **options: Any) -> Any:
        self.asked.append({"command": command, **options})
        try:
            if command.program == "slow":
                self.started.set()
                await asyncio.Event().wait()
            for one in self.told:
                self.taken += 1
                yield one
            if self.fail_with is not None:
                raise self.fail_with
            yield answered({"outputs": command.inputs})
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise

    # --- operators ---

    def signing_key(self) -> bytes:
        return b"k" * 32

    def room(self) -> int:
        return sys.maxsize

    def reached(self) -> int:
        return self.workers_reached

    def seen(self, why: str) -> PoolStatus:
        reached = self.workers_reached
        return PoolStatus(self.name, "unknown", reached > 0, 2, reached, 0, 1, reason=why)

    async def end_login(self, token: str, login: str, until: float) -> dict[str, dict[str, float]]:
        self.ended_by_token.setdefault(token, {})[login] = until
        return await self.ended_logins()

    async def ended_logins(self) -> dict[str, dict[str, float]]:
        return {token: dict(logins) for token, logins in self.ended_by_token.items()}

    async def silence_alert(self, alert: str, silence: AlertSilence | None) -> Silences:
        self.silenced = changed(self.silenced, alert, silence, now=time.time())
        return self.silenced

    async def silences(self) -> Silences:
        return self.silenced

    async def take_allowance(self, token: str, limits: RateLimits, wanted: int) -> Allowance:
        raise StoreFailed("nobody counts for all here")

    async def deployments(self) -> list[Deployment]:
        return [Deployment("qa", 1, spec={}), Deployment("qa", 2, spec={}), Deployment("zz", 1, spec={})]

    async def current_versions(self) -> dict[str, int]:
        return {"qa": 2, "zz": 1}

    async def deploy(self, deployment: Deployment, *, canary_s=None, new: bool | None = None) -> Deployment:
        if new is False:
            check_known(deployment.program, await self.current_versions())
        self.asked.append({"deploy": deployment, "canary_s": canary_s})
        return Deployment(deployment.program, 3, spec=deployment.spec)

    async def stream_deploy(self, deployment: Deployment, *, canary_s=None, new: bool | None = None) -> Any:
        if isinstance(self.fail_with, PoolError):
            raise self.fail_with
        for phase in ("canary", "done"):
            yield Rollout(program=deployment.program, version=3, previous=2, phase=phase, began_at=1.0)
        yield await self.deploy(deployment, canary_s=canary_s, new=new)

    async def rollback(self, program: str, version: int | None = None, *, by: str = "") -> Deployment:
        self.asked.append({"rollback": program, "version": version, "by": by})
        return Deployment(program, version or 1, spec={})

    async def rollouts(self) -> list[Rollout]:
        new = VersionNumbers(20, 1, 0.5)
        about = {"program": "qa", "version": 3, "previous": 2, "phase": "rolled back", "began_at": 1.0}
        return [Rollout(**about, canary="w0", reason="slower", new=new)]

    async def decisions(self, limit: int = 50) -> list[DecisionRecord]:
        record = DecisionRecord(1.0, 3, 0, 2, "grow", "backlog needs 3 workers", {"backlog": 20.0})
        return [record] * min(limit, 3)

    async def resize(self, size: int) -> int:
        self.size = size
        return size

    async def pause(self) -> None:
        self.asked.append({"pause": True})

    async def resume(self) -> None:
        self.asked.append({"pause": False})

    async def drain(self, worker_id: str, *, wait_s: float | None = None) -> bool:
        if worker_id != "default-w0-abcdef":
            raise UnknownWorker(f"no worker {worker_id!r}")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.gone.wait(), wait_s)
        return self.gone.is_set()

    restart = drain

    async def cancel(self, operation_id: str) -> str:
        if operation_id != "runs":
            raise UnknownName(f"no worker runs {operation_id}")
        return "default-w0-a"

    async def stream_warm(self, strategy: str | None = None) -> Any:
        yield WarmProgress(1, "begin", total=1)
        yield WarmProgress(2, "end")
        yield WarmupReport(strategy or "parallel")

    async def store_status(self) -> StoreStatus:
        return StoreStatus(
            database="postgresql",
            place="db1:5432, db2:5432/dspool",
            identity="5f0c",
            schema_version=4,
            epoch=2,
            server="process 7 on node1",
            node="ab12",
            pinned=False,
        )

    async def storage_usage(self) -> tuple[StoredUsage, list[StoredUsage]]:
        return StoredUsage(None, 3, 1.5, 0.5), [
            StoredUsage("ada", 1, 1.0, 0.0),
            StoredUsage("bob", 2, 0.5, 0.5),
        ]

    async def create_session(
        self, id: str, *, principal: str | None = None, limits: StorageLimits | None = None
    ) -> SessionInfo:
        if id in self.known_sessions:
            raise Conflict("it is there")
        self.known_sessions[id] = SessionInfo(id, None, 0, 1.0, 1.0)
        return self.known_sessions[id]

    async def events(self, since: int = 0, limit: int = 100, *, timeout_s: float = 0.0) -> EventPage:
        self.asked.append({"since": since})
        if timeout_s:
            await asyncio.Event().wait()
        return EventPage(
            [LoggedEvent(since + 1, 1.0, "pool.resized", "info", "supervisor", {}, {})], since + 1
        )

    async def logs(self, *, operation=None, worker=None, after=0.0, limit=200) -> LogPage:
        self.asked.append({"operation": operation, "worker": worker, "after": after, "limit": limit})
        line = LogLine(after + 1.0, "error", "shop", worker or "w0", operation, "it failed")
        return LogPage([line], after + 1.0, False, True)

    async def errors(self) -> Any:
        raise WorkerLost("the metrics actor is away")

    async def metrics_snapshot(self) -> Any:
        raise WorkerLost("the metrics actor is away")

    # --- idempotency keys, as the store keeps them ---

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
    ) -> Claim:
        found = self.keys.get((principal, key))
        if found is None:
            self.keys[principal, key] = (fingerprint, holder, None)
            return Claim("new")
        if found[0] != fingerprint:
            return Claim("other")
        return Claim("running") if found[2] is None else Claim("done", found[2])

    async def settle_key(self, key: str, *, principal: str | None, holder: str, answer: KeptAnswer) -> None:
        if isinstance(self.fail_settling, PoolError):
            raise self.fail_settling
        fingerprint, held_by, _ = self.keys[principal, key]
        assert held_by == holder
        self.keys[principal, key] = (fingerprint, holder, answer)

    fail_settling: PoolError | None = None

    async def drop_key(self, key: str, *, principal: str | None, holder: str) -> None:
        assert self.keys.pop((principal, key))[1] == holder

    async def status(self) -> PoolStatus:
        if isinstance(self.fail_with, PoolError):
            raise self.fail_with
        worker = WorkerStatus("default-w0-abcdef", 0, "ready", 42, "10.0.0.1", sessions=2, running=1)
        state = "ready" if self.ready else "starting"
        return PoolStatus(self.name, state, self.ready, 1, 1, 0, 5, (worker,), {"qa": 1}, "warming")

    ray_dashboard: str | None = None

    async def worker_operations(self, worker_id: str) -> list[dict[str, Any]]:
        raise WorkerLost("nobody works here")

    worker_memory = worker_warm_runs = worker_operations

    async def sessions(
        self, *, limit: int = 100, after: str | None = None, owner: str | None = None
    ) -> tuple[list[SessionInfo], str | None]:
        self.asked.append({"limit": limit, "after": after})
        return list(self.known_sessions.values())[:limit], "next"

    async def session_info(self, id: str) -> SessionInfo:
        if id not in self.known_sessions:
            raise UnknownSession(f"no session {id!r}")
        return self.known_sessions[id]

    async def end_session(self, id: str) -> None:
        await self.session_info(id)
        del self.known_sessions[id]


class FixedPools:
    def __init__(self, *pools: FakePool) -> None:
        self._pools = {pool.name: pool for pool in pools}
        self.opened = self.closed = 0

    async def open(self) -> None:
        self.opened += 1

    async def close(self) -> None:
        self.closed += 1

    def names(self) -> list[str]:
        return list(self._pools)

    def get(self, name: str) -> FakePool:
        if name not in self._pools:
            raise UnknownPool(f"there is no pool {name!r}")
        return self._pools[name]


def served(
    *pools: FakePool, settings: Settings | None = None, security: Security | None = None
) -> Application:
    """The whole service over doubles, with its console."""
    held, security = FixedPools(*pools), security or Security()
    return Application(held, settings or Settings(), security, Console(held, security))


JSON = {"content-type": "application/json"}


def client_of(*pools: FakePool, **settings: Any) -> httpx.AsyncClient:
    app = served(*pools, settings=Settings(**settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://dspool", headers=JSON)


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"urn:dspool:problem:{code}"
    assert body["code"] == code
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until `condition` holds."""
    while not condition():  # noqa: ASYNC110 - what it waits for has no event
        await asyncio.sleep(0)
