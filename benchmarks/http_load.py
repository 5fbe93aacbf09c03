"""A load generator for HTTP/1.1: as many keep-alive connections as asked, each with one request under way.

Started as a process of its own: what it costs must not be taken from the server it measures. It speaks just as much
HTTP as an answer with a Content-Length needs. Prints one JSON object: seconds, latencies in ms, answers by status, and
the processor time that it took itself. `--processor` pins it, so that it takes that of one processor and no other's.

With `--rate` requests come when they are due (Poisson), whether or not earlier ones have been answered, and latencies
count from then. `{session}` in the address becomes s0, s1, ...; `--every N --instead BODY` sends another body each
N-th time, and leaves those requests out of the latencies.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import uvloop

from benchmarks.common import ROOT, pin_threads
from benchmarks.load import schedule


class Load:
    def __init__(
        self,
        url: str,
        body: bytes,
        *,
        connections: int,
        seconds: float,
        requests: int | None = None,
        rate: float | None = None,
        sessions: int = 1,
        every: int = 0,
        instead: bytes = b"",
        headers: str = "",
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or 80
        paths = [(parts.path or "/").replace("{session}", f"s{number}") for number in range(sessions)]
        self._usual = [post(path, parts.netloc, body, headers) for path in paths]
        self._every, self._instead = every, post(paths[0], parts.netloc, instead, headers)
        self._connections = connections
        self._seconds = seconds
        self._left = requests
        self._rate = rate
        self._number = -1
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.seconds = 0.0
        self._due: Iterator[float] | None = None

    async def run(self) -> None:
        began = time.perf_counter()
        self._until = began + self._seconds
        # One for all connections: each takes the next request that is due.
        self._due = None if self._rate is None else (began + at for at in schedule(self._rate, self._seconds))
        await asyncio.gather(*(self._connection() for _ in range(self._connections)))
        self.seconds = time.perf_counter() - began

    async def _connection(self) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while (began := self._next()) is not None:
            if (pause := began - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            self._number += 1
            other = self._every and self._number % self._every == self._every - 1
            request = self._instead if other else self._usual[self._number % len(self._usual)]
            try:
                if streams is None:
                    streams = await asyncio.open_connection(self._host, self._port)
                status, goes_on = await exchange(request, *streams)
            except (OSError, ValueError, asyncio.IncompleteReadError):
                status, goes_on = "broken", False
            if not other:
                self.latencies.append((time.perf_counter() - began) * 1e3)
            self.statuses[status] += 1
            if not goes_on and streams is not None:
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    def _next(self) -> float | None:
        """When the next request is, or was, to be sent; None when there is none."""
        if self._due is not None:
            return next(self._due, None)
        now = time.perf_counter()
        if self._left is None:
            return now if now < self._until else None
        self._left -= 1
        return now if self._left >= 0 else None


def post(path: str, host: str, body: bytes, headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{headers}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def exchange(
    request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[str, bool]:
    """The status of the answer, and whether the connection can be used again."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = head[9:12].decode()
    at = head.find(b"content-length:")
    if at >= 0:
        await reader.readexactly(int(head[at + 15 : head.index(b"\r\n", at)]))
    else:
        await _chunks(reader)
    return status, b"connection: close" not in head


async def _chunks(reader: asyncio.StreamReader) -> None:
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
    await reader.readline()


def measure(
    url: str,
    body: str,
    *,
    connections: int,
    seconds: float,
    limit_s: float,
    requests: int | None = None,
    rate: float | None = None,
    sessions: int = 1,
    every: int = 0,
    instead: str = "",
    headers: str = "",
    processor: int | None = None,
) -> dict[str, Any]:
    """What a process of its own found."""
    command = [sys.executable, "-m", "benchmarks.http_load", url, "--body", body]
    command += ["--connections", str(connections), "--seconds", str(seconds), "--sessions", str(sessions)]
    command += ["--every", str(every), "--instead", instead, "--headers", headers]
    command += [] if requests is None else ["--requests", str(requests)]
    command += [] if rate is None else ["--rate", str(rate)]
    command += [] if processor is None else ["--processor", str(processor)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=limit_s)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--body", required=True)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--requests", type=int, help="so many in all, however long it takes")
    parser.add_argument("--rate", type=float, help="requests a second that come whatever happens")
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--every", type=int, default=0)
    parser.add_argument("--instead", default="")
    parser.add_argument("--headers", default="", help="further lines of the head, each with its line end")
    parser.add_argument("--processor", type=int, help="the one that it runs on")
    options = parser.parse_args()
    if options.processor is not None:
        pin_threads(options.processor)
    load = Load(
        options.url,
        options.body.encode(),
        connections=options.connections,
        seconds=options.seconds,
        requests=options.requests,
        rate=options.rate,
        sessions=options.sessions,
        every=options.every,
        instead=options.instead.encode(),
        headers=options.headers,
    )
    before = time.process_time()
    uvloop.run(load.run())
    found: dict[str, Any] = {
        "seconds": load.seconds,
        "cpu_s": time.process_time() - before,
        "statuses": dict(load.statuses),
        "latencies_ms": [round(one, 3) for one in load.latencies],
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
