"""One service over HTTP: sends requests, and sends them again where that cannot do a thing twice."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from dspool.errors import DeadlineExceeded, PoolError, Unreachable
from dspool.messages import JSON
from dspool.proxies import is_loopback
from dspool.remote.requests import ATTEMPTS, Events, HttpCall, pause_s, problem_of, with_query

T = TypeVar("T")

CONNECT_S = 5.0
GRACE_S = 2.0
"""How much longer than the deadline we wait for the service to say that it passed."""


class HttpService:
    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float,
        priority: str | None = None,
        attempts: int = ATTEMPTS,
        ca_file: Path | str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"accept": "application/json"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        if priority is not None:
            headers["x-dspool-priority"] = priority
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers=headers,
            verify=True if ca_file is None else ssl.create_default_context(cafile=str(ca_file)),
            # Never follow a redirect: the token would go along.
            follow_redirects=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
            transport=transport,
            # Never through a proxy of the environment.
            mounts=_direct(url),
        )
        at = self._http.base_url
        self.place = f"{at.scheme}://{at.netloc.decode()}"
        """For messages: without what may be secret in an address."""

    async def close(self) -> None:
        await self._http.aclose()

    async def get(
        self, path: str, kind: type[T], *, wait_s: float | None = None, **query: str | float | None
    ) -> T:
        """What is at `path`. Raises as `send`."""
        call = HttpCall("GET", with_query(path, **query), None, True)
        return self.decoded(await self.send(call, wait_s or self._timeout_s), kind)

    async def post(
        self,
        path: str,
        body: dict[str, JSON] | None,
        kind: type[T],
        *,
        repeatable: bool = True,
        timeout_s: float | None = None,
    ) -> T:
        """The answer to `body`. Raises as `send`."""
        call = HttpCall("POST", path, body, repeatable)
        return self.decoded(await self.send(call, timeout_s or self._timeout_s), kind)

    def decoded(self, body: bytes, kind: type[T]) -> T:
        """Raises: PoolError: the body of this answer is no `kind`."""
        try:
            # What answers without a body has nothing to say.
            return msgspec.json.decode(body or b"null", type=kind)
        except msgspec.MsgspecError as odd:
            raise PoolError(f"{self.place} answered, and not as dspool does: {odd}") from odd

    async def send(self, call: HttpCall, timeout_s: float) -> bytes:
        """The body of the answer. An infinite `timeout_s` waits as long as the service takes.

        Raises:
            PoolError: what the service refused with.
            Unreachable, DeadlineExceeded: there was no answer; it may have been done all the same.
        """
        deadline = time.monotonic() + timeout_s
        attempt = 0
        while True:
            attempt += 1
            left_s = deadline - time.monotonic()
            try:
                answer = await self._http.request(call.method, call.path, **_options(call, left_s))
            except httpx.HTTPError as broken:
                failed = self._broken(call, broken)
            else:
                if answer.is_success:
                    return answer.content
                failed = self._problem(answer, answer.content)
            await self._pause(failed, call, attempt, deadline)

    async def events(self, call: HttpCall, timeout_s: float) -> AsyncGenerator[tuple[str, Any]]:
        """The events of the answer, name and data, to the one that is called "final". Leaving early ends the request.

        Raises:
            PoolError: as `send`; or the stream ended with an error.
            Unreachable: it broke off before its end.
        """
        deadline = time.monotonic() + timeout_s
        attempt = 0
        while True:
            attempt += 1
            options = _options(call, deadline - time.monotonic())
            options["headers"]["accept"] = "text/event-stream"
            try:
                async with self._http.stream(call.method, call.path, **options) as answer:
                    if answer.status_code == 200:
                        events = Events()
                        async for part in answer.aiter_bytes():
                            for event in events.feed(part):
                                if event[0] == "error":
                                    raise events.error(event[1])
                                yield event
                                if event[0] == "final":
                                    return
                        raise Unreachable(f"the stream of {self.place} broke off before its end")
                    failed = self._problem(answer, await answer.aread())
            except httpx.HTTPError as broken:
                # Never begun twice: what was read cannot be unread.
                raise self._broken(call, broken) from broken
            await self._pause(failed, call, attempt, deadline)

    async def _pause(self, failed: PoolError, call: HttpCall, attempt: int, deadline: float) -> None:
        """Wait until `call` may be sent again. Raises `failed` if it may not."""
        pause = pause_s(failed, call, attempt, attempts=self._attempts)
        if pause is None or time.monotonic() + pause >= deadline:
            raise failed
        await asyncio.sleep(pause)

    def _problem(self, answer: httpx.Response, body: bytes) -> PoolError:
        return problem_of(answer.status_code, body, answer.headers, self.place)

    def _broken(self, call: HttpCall, failed: httpx.HTTPError) -> PoolError:
        kind = type(failed).__name__
        if isinstance(failed, httpx.ConnectError):
            return Unreachable(f"{self.place} does not answer ({kind})", status=503)
        if isinstance(failed, httpx.TimeoutException):
            what = f"{call.method} {call.path.partition('?')[0]}"
            return DeadlineExceeded(f"{self.place} does not answer {what} in time")
        return Unreachable(f"the connection to {self.place} broke ({kind})")


def _options(call: HttpCall, left_s: float) -> dict[str, Any]:
    wait_s = None if left_s == math.inf else left_s + GRACE_S
    return {
        "json": call.body,
        "headers": call.headers(None if left_s == math.inf else max(0.001, left_s)),
        "timeout": httpx.Timeout(wait_s, connect=CONNECT_S if wait_s is None else min(CONNECT_S, wait_s)),
    }


__all__ = ["HttpService"]


def _direct(url: str) -> dict[str, None]:
    """For httpx: what of `url` goes through no proxy."""
    host = urlsplit(url).hostname or ""
    return {f"all://[{host}]" if ":" in host else f"all://{host}": None} if is_loopback(host) else {}
