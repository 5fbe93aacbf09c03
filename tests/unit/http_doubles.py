"""A pool that answers at once and remembers what it was asked, for the HTTP tests."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from dspool.commands import AnyCommand, CreateProgram, ExecuteProgram, PoolStatus, SessionInfo, WorkerStatus
from dspool.errors import PoolError, UnknownPool, UnknownProgram, UnknownSession
from dspool_serve.app import Application
from dspool_serve.pools import Settings


class Answered:
    operation_id = "op-1"
    worker = "default-w0-abcdef"
    program_version = 3
    wait_s = 0.25
    run_s = 0.5
    usage: dict[str, dict[str, int]] = {"m": {"total_tokens": 7}}  # noqa: RUF012
    offline = True

    def __init__(self, value: Any) -> None:
        self.value = value


class FakePool:
    """Program `qa` echoes its inputs; program `slow` never ends; `fail_with` is raised if set."""

    def __init__(self, name: str = "default") -> None:
        self.name = name
        self.ready = True
        self.fail_with: BaseException | None = None
        self.asked: list[dict[str, Any]] = []
        self.cancelled = 0
        self.started = asyncio.Event()
        self.known_sessions = {"ada": SessionInfo("ada", "default-w0-abcdef", 1, 1.0, 2.0, ("answerer",))}

    async def run(self, command: AnyCommand, **options: Any) -> Answered:
        self.asked.append({"command": command, **options})
        if self.fail_with is not None:
            raise self.fail_with
        if isinstance(command, ExecuteProgram):
            if command.program == "slow":
                self.started.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled += 1
            if command.program != "qa":
                raise UnknownProgram(f"no program {command.program!r}")
            return Answered({"outputs": command.inputs})
        if isinstance(command, CreateProgram):
            return Answered({"program": command.program})
        return Answered({"signature": "question -> answer"})

    async def status(self) -> PoolStatus:
        if isinstance(self.fail_with, PoolError):
            raise self.fail_with
        worker = WorkerStatus("default-w0-abcdef", 0, "ready", 42, "10.0.0.1", sessions=2, running=1)
        state = "ready" if self.ready else "starting"
        return PoolStatus(self.name, state, self.ready, 1, 1, 0, 5, (worker,), {"qa": 1}, "warming")

    async def sessions(
        self, *, limit: int = 100, after: str | None = None
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


def client_of(*pools: FakePool, **settings: Any) -> httpx.AsyncClient:
    app = Application(FixedPools(*pools), Settings(**settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://dspool")


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
