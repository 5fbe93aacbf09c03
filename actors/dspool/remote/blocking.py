"""`RemotePool` and `RemoteSession` for programs without asyncio."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, cast

import httpx
import msgspec

from dspool.errors import InvalidRequest, Unreachable
from dspool.messages import (
    JSON,
    AnyCommand,
    ExecuteProgram,
    PoolStatus,
    Result,
    StreamEvent,
    StreamProgram,
)
from dspool.remote.base import MAX_BATCH, Remote, connection_error, options_of
from dspool.remote.pool import RemotePool, RemoteSession
from dspool.remote.requests import (
    Events,
    HttpCall,
    batch_for,
    batch_results,
    call_for,
    pause_s,
    problem_of,
    result_of,
    said,
)


class BlockingRemotePool(Remote):
    """As `RemotePool`, without asyncio; with the methods of `BlockingPool`. Safe to use from several threads."""

    def _connect(self, options: dict[str, Any]) -> None:
        self._http = httpx.Client(**options)
        self._most_at_once = MAX_BATCH

    def run(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        idempotent: bool | None = None,
        operation_id: str | None = None,
    ) -> Result:
        """As `RemotePool.run`."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        call = call_for(
            self.name,
            command,
            session,
            timeout_s=timeout_s,
            idempotent=idempotent,
            operation_id=operation_id,
        )
        return result_of(command, self._send(call, timeout_s))

    def execute(self, program: str, /, *, timeout_s: float | None = None, **inputs: JSON) -> Result:
        return self.run(ExecuteProgram(program, inputs), timeout_s=timeout_s)

    def map(
        self, program: str, inputs: list[dict[str, JSON]], *, timeout_s: float | None = None
    ) -> list[Result]:
        """As `BlockingPool.map`, in requests of as many sets of inputs as the service takes at once.

        Raises:
            PoolError: the first failure.
        """
        results: list[Result] = []
        at = 0
        while at < len(inputs):
            sent = inputs[at : at + self._most_at_once]
            try:
                answer = self._send(batch_for(self.name, program, sent, timeout_s), timeout_s)
            except InvalidRequest as refused:
                limit = refused.details.get("limit")
                if type(limit) is not int or not 0 < limit < len(sent):
                    raise
                self._most_at_once = limit
                continue
            results += batch_results(program, answer)
            at += len(sent)
        return results

    def stream(
        self, command: AnyCommand, *, session: str | None = None, timeout_s: float | None = None
    ) -> Iterator[StreamEvent | Result]:
        """As `RemotePool.stream`."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        call = call_for(
            self.name, command, session, timeout_s=timeout_s, idempotent=True, operation_id=None
        )._replace(repeatable=False)
        events = Events()
        try:
            with self._http.stream(call.method, call.path, **options_of(call, timeout_s)) as answer:
                if answer.status_code != 200:
                    raise problem_of(answer.status_code, answer.read(), answer.headers)
                for line in answer.iter_lines():
                    event = events.line(line)
                    if event is not None and (one := said(command, *event)) is not None:
                        yield one
                        if isinstance(one, Result):
                            return
        except httpx.HTTPError as broken:
            raise connection_error(call, broken) from broken
        raise Unreachable("the stream broke off before its end")

    def session(self, session_id: str) -> BlockingRemoteSession:
        return BlockingRemoteSession(self, session_id)

    def status(self) -> PoolStatus:
        return msgspec.convert(self._send(HttpCall("GET", self._path(), None, True)), PoolStatus)

    def resize(self, size: int) -> int:
        """As `Pool.resize`. Needs an admin's token, as the next two do."""
        return int(self._send(HttpCall("POST", self._path("/resize"), {"size": size}, True))["desired"])

    def pause(self) -> None:
        self._send(HttpCall("POST", self._path("/pause"), None, True))

    def resume(self) -> None:
        self._send(HttpCall("POST", self._path("/resume"), None, True))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> BlockingRemotePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, call: HttpCall, timeout_s: float | None = None) -> Any:
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        attempt = 0
        while True:
            attempt += 1
            left_s = deadline - time.monotonic()
            try:
                answer = self._http.request(call.method, call.path, **options_of(call, left_s))
            except httpx.HTTPError as broken:
                failed = connection_error(call, broken)
            else:
                if answer.is_success:
                    return answer.json() if answer.content else None
                failed = problem_of(answer.status_code, answer.content, answer.headers)
            pause = pause_s(failed, call, attempt)
            if pause is None or time.monotonic() + pause >= deadline:
                raise failed
            time.sleep(pause)


class BlockingRemoteSession:
    """As `RemoteSession`: every method of it, waiting for the answer."""

    def __init__(self, pool: BlockingRemotePool, session_id: str) -> None:
        self.id = session_id
        self._pool = pool
        # The same methods build the same commands; only this one sends them.
        self._handle = RemoteSession(cast(RemotePool, _AtOnce(pool)), session_id)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._handle, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            work = method(*args, **kwargs)
            try:
                work.send(None)
            except StopIteration as done:
                return done.value
            raise RuntimeError("a blocking call waited for an event loop")

        return call

    def stream(
        self, program: str, /, *, timeout_s: float | None = None, **inputs: JSON
    ) -> Iterator[StreamEvent | Result]:
        return self._pool.stream(StreamProgram(program, inputs), session=self.id, timeout_s=timeout_s)


class _AtOnce:
    """A blocking pool in an asynchronous coat: its coroutines never wait, so they run without an event loop."""

    def __init__(self, pool: BlockingRemotePool) -> None:
        self._pool = pool

    async def run(self, command: AnyCommand, **options: Any) -> Result:
        return self._pool.run(command, **options)
