"""A pool over HTTP, with the methods of `Pool`: a program changes sides by one line.

    pool = await Pool.connect("default")                                       # in the cluster
    pool = RemotePool("https://pool.example:8000", token=os.environ["DSPOOL_TOKEN"])  # from anywhere

What was refused before it was begun is sent again after the time that the service names. What may have been done is
sent again only if that cannot do it twice: reading, replacing, and whatever carries an Idempotency-Key, as each POST
from here does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any

import httpx
import msgspec

from dspool.errors import Unreachable
from dspool.messages import (
    JSON,
    AnyCommand,
    EndSession,
    ExecuteProgram,
    ExecuteSandboxed,
    PoolStatus,
    Result,
    SessionInfo,
    StreamEvent,
)
from dspool.remote.base import Remote, connection_error, options_of
from dspool.remote.requests import Events, HttpCall, call_for, pages, pause_s, problem_of, result_of, said
from dspool.session import SessionMethods


class RemotePool(Remote):
    """A pool that is served at `url`. `async with RemotePool(...) as pool`, or `await pool.close()` at the end.

    Args:
        token: access token (`dspool token new`).
        timeout_s: deadline of an operation that names none; retries are within it.
        priority: "batch" lets interactive work of others go first.
        ca_file: certificates to trust instead of the system's, in PEM.
        transport: an httpx transport, for tests.

    Every method raises `PoolError`s: those that `Pool` raises, `Unauthenticated`, `RateLimited` and `Unreachable`.
    """

    def _connect(self, options: dict[str, Any]) -> None:
        self._http = httpx.AsyncClient(**options)

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
        return result_of(command, await self._send(call, timeout_s))

    async def execute(self, program: str, /, *, timeout_s: float | None = None, **inputs: JSON) -> Result:
        """As `Pool.execute`."""
        return await self.run(ExecuteProgram(program, inputs), timeout_s=timeout_s)

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
            self.name,
            command,
            session,
            timeout_s=timeout_s,
            idempotent=True,
            operation_id=operation_id,
        )._replace(repeatable=False)
        deadline = time.monotonic() + timeout_s
        attempt = 0
        while True:
            attempt += 1
            left_s = deadline - time.monotonic()
            try:
                async with self._http.stream(call.method, call.path, **options_of(call, left_s)) as answer:
                    if answer.status_code == 200:
                        async for one in self._events(command, answer):
                            yield one
                        return
                    failed = problem_of(answer.status_code, await answer.aread(), answer.headers)
            except httpx.HTTPError as broken:
                raise connection_error(call, broken) from broken
            pause = pause_s(failed, call, attempt)
            if pause is None or time.monotonic() + pause >= deadline:
                raise failed
            await asyncio.sleep(pause)

    async def _events(
        self, command: AnyCommand, answer: httpx.Response
    ) -> AsyncGenerator[StreamEvent | Result]:
        events = Events()
        async for line in answer.aiter_lines():
            event = events.line(line)
            if event is not None and (one := said(command, *event)) is not None:
                yield one
                if isinstance(one, Result):
                    return
        raise Unreachable("the stream broke off before its end")

    def session(self, session_id: str) -> RemoteSession:
        """As `Pool.session`."""
        return RemoteSession(self, session_id)

    async def status(self) -> PoolStatus:
        """As `Pool.status`."""
        return msgspec.convert(await self._send(HttpCall("GET", self._path(), None, True)), PoolStatus)

    async def sessions(
        self, *, limit: int = 100, after: str | None = None
    ) -> tuple[list[SessionInfo], str | None]:
        """As `Pool.sessions`: one's own."""
        path = pages(self._path("/sessions"), limit, after)
        page = await self._send(HttpCall("GET", path, None, True))
        return msgspec.convert(page["sessions"], list[SessionInfo]), page["next_cursor"]

    async def end_session(self, session_id: str) -> None:
        """As `Pool.end_session`."""
        await self.run(EndSession(), session=session_id)

    async def resize(self, size: int) -> int:
        """As `Pool.resize`. Needs an admin's token, as the next two do."""
        answer = await self._send(HttpCall("POST", self._path("/resize"), {"size": size}, True))
        return int(answer["desired"])

    async def pause(self) -> None:
        await self._send(HttpCall("POST", self._path("/pause"), None, True))

    async def resume(self) -> None:
        await self._send(HttpCall("POST", self._path("/resume"), None, True))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> RemotePool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, call: HttpCall, timeout_s: float | None = None) -> Any:
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        attempt = 0
        while True:
            attempt += 1
            left_s = deadline - time.monotonic()
            try:
                answer = await self._http.request(call.method, call.path, **options_of(call, left_s))
            except httpx.HTTPError as broken:
                failed = connection_error(call, broken)
            else:
                if answer.is_success:
                    return answer.json() if answer.content else None
                failed = problem_of(answer.status_code, answer.content, answer.headers)
            pause = pause_s(failed, call, attempt)
            if pause is None or time.monotonic() + pause >= deadline:
                raise failed
            await asyncio.sleep(pause)


class RemoteSession(SessionMethods):
    """As `SessionHandle`. Holds no state: two handles of one id are the same session."""

    async def execute_code(self, code: str) -> JSON:
        """Run Python, unlike `SessionHandle` in a sandbox. Needs an admin, and `service.execute_code`."""
        return (await self.run(ExecuteSandboxed(code))).value
