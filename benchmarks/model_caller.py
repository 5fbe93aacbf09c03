"""A process that calls a model behind HTTP as a worker does, and says what processor time that took.

    python -m benchmarks.model_caller PORT TRANSPORT

TRANSPORT is `installed`, what DSPy makes by itself under the corrections of the environment, or one that is put in its
place to compare it: `aiohttp`, `httpx`. It answers each line of stdin (`{"part": ..., "calls": N, "callers": N}`) with
the processor time of a call in microseconds, `{"us": ...}`, and ends with stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import dspy
import httpx
import uvloop
from dspy._vendor.lm15 import transports

from benchmarks.services import model_settings
from dspool.config import PoolConfig
from dspool.messages import Deployment, ExecuteProgram, StreamEvent, StreamProgram
from dspool.programs.sessions.host import SessionHost

MESSAGES = [
    {"role": "system", "content": "Your input fields are:\n1. `question` (str):\n" + "Answer briefly. " * 40},
    {
        "role": "user",
        "content": "[[ ## question ## ]]\nRome is big. What is big?\n\nRespond with the answer.",
    },
]

ASKED = {"question": "Rome is big. What is big?"}


class Foreign:
    """DSPy's interface of a transport before another library's client."""

    def __init__(self, **_: Any) -> None:
        self._client: Any = None

    def stream(self, request: Any) -> Foreign.Asked:
        return self.Asked(self, request)

    async def aclose(self) -> None:
        raise NotImplementedError

    async def send(self, request: Any) -> Any:
        raise NotImplementedError

    class Asked:
        def __init__(self, transport: Foreign, request: Any) -> None:
            self._transport, self._request = transport, request

        async def __aenter__(self) -> Any:
            self._response = await self._transport.send(self._request)
            return self._response

        async def __aexit__(self, *_: object) -> None:
            await self._response.aclose()


class Aiohttp(Foreign):
    async def send(self, request: Any) -> Any:
        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=100),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=600),
            )
        found = await self._client.request(
            request.method, request.url, data=request.body, headers=request.headers, allow_redirects=False
        )
        headers = [(name, value) for name, value in found.headers.items()]
        return Answered(found.status, headers, found.read, found.content.iter_any, _released(found.release))

    async def aclose(self) -> None:
        await self._client.close()


class Httpx(Foreign):
    async def send(self, request: Any) -> Any:
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=600)
        asked = self._client.build_request(
            request.method, request.url, content=request.body, headers=request.headers
        )
        found = await self._client.send(asked, stream=True)
        return Answered(
            found.status_code, found.headers.multi_items(), found.aread, found.aiter_bytes, found.aclose
        )

    async def aclose(self) -> None:
        await self._client.aclose()


class Answered:
    reason, http_version = "OK", "HTTP/1.1"

    def __init__(
        self,
        status: int,
        headers: list[tuple[str, str]],
        read: Callable[[], Awaitable[bytes]],
        pieces: Callable[[], AsyncIterator[bytes]],
        close: Callable[[], Awaitable[Any]],
    ) -> None:
        self.status, self.headers = status, headers
        self.read, self._pieces, self.aclose = read, pieces, close

    async def aiter_lines(self) -> AsyncIterator[bytes]:
        rest = b""
        async for piece in self._pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line + b"\n"
        if rest:
            yield rest


def _released(release: Callable[[], Any]) -> Callable[[], Awaitable[None]]:
    async def released() -> None:
        release()

    return released


FOREIGN: dict[str, type[Foreign]] = {"aiohttp": Aiohttp, "httpx": Httpx}


async def measured(call: Callable[[], Awaitable[Any]], calls: int, callers: int) -> float:
    numbers = iter(range(calls))

    async def caller() -> None:
        for _ in numbers:
            await call()

    began = time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return (time.process_time() - began) / calls * 1e6


async def serve(host: SessionHost) -> None:
    lm = host.lms.get(None)

    async def call() -> None:
        with dspy.context(disable_history=True, trace=None):
            await lm.acall(messages=MESSAGES)

    async def execute() -> None:
        await host.run_async(ExecuteProgram("ask", ASKED), None)

    async def stream() -> None:
        await host.run_async(StreamProgram("ask", ASKED), None, _drop)

    parts: dict[str, Callable[[], Awaitable[Any]]] = {"call": call, "program": execute, "stream": stream}
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        us = await measured(parts[asked["part"]], asked["calls"], asked["callers"])
        print(json.dumps({"us": us}), flush=True)
    await host.lms.aclose()


async def _drop(_: StreamEvent) -> None:
    """Nobody listens: what it costs to send an event belongs to another benchmark."""


def main() -> None:
    port, transport = int(sys.argv[1]), sys.argv[2]
    if transport in FOREIGN:
        transports.StdlibAsyncTransport = FOREIGN[transport]  # type: ignore[misc,assignment]
    settings = model_settings(port)
    # A name that DSPy knows a price of.
    settings["lm_profiles"]["model"]["model"] = "openai/gpt-4o-mini"
    host = SessionHost(PoolConfig(slots_per_worker=64, **settings))
    host.deploy(Deployment("ask", 1, spec={"signature": "question -> answer"}))
    uvloop.run(serve(host))


if __name__ == "__main__":
    main()
