"""A load generator for HTTP/1.1: as many keep-alive connections as asked, each with one request under way.

Started as a process of its own: what it costs must not be taken from the server it measures. It speaks just as much
HTTP as an answer with a Content-Length needs. Prints one JSON object: seconds, latencies in ms, answers by status.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit


class Load:
    def __init__(
        self, url: str, body: bytes, *, connections: int, seconds: float, requests: int | None
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or 80
        self._request = (
            f"POST {parts.path or '/'} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body
        self._connections = connections
        self._seconds = seconds
        self._left = requests
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.seconds = 0.0

    async def run(self) -> None:
        began = time.perf_counter()
        self._until = began + self._seconds
        await asyncio.gather(*(self._connection() for _ in range(self._connections)))
        self.seconds = time.perf_counter() - began

    async def _connection(self) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while self._more():
            began = time.perf_counter()
            try:
                if streams is None:
                    streams = await asyncio.open_connection(self._host, self._port)
                status, goes_on = await self._exchange(*streams)
            except (OSError, ValueError, asyncio.IncompleteReadError):
                status, goes_on = "broken", False
            self.latencies.append((time.perf_counter() - began) * 1e3)
            self.statuses[status] += 1
            if not goes_on and streams is not None:
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    def _more(self) -> bool:
        if self._left is None:
            return time.perf_counter() < self._until
        self._left -= 1
        return self._left >= 0

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, bool]:
        writer.write(self._request)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--body", required=True)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--requests", type=int, help="so many in all, however long it takes")
    options = parser.parse_args()
    load = Load(
        options.url,
        options.body.encode(),
        connections=options.connections,
        seconds=options.seconds,
        requests=options.requests,
    )
    asyncio.run(load.run())
    found: dict[str, Any] = {
        "seconds": load.seconds,
        "statuses": dict(load.statuses),
        "latencies_ms": [round(one, 3) for one in load.latencies],
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
