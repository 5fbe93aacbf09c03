"""What the dashboard's benchmark needs beside a browser, in a process of its own: viewers of the live stream, paced
operations, or both. Runs until its input ends; then prints what it saw as one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
from collections import Counter
from urllib.parse import urlsplit

from benchmarks.http_load import exchange, post
from benchmarks.pools import INPUTS, PROGRAM

PATH = f"/v1/pools/default/programs/{PROGRAM}/execute"
LIVE = "/v1/pools/default/live?topics=overview,events"


class Service:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port, self._netloc = parts.hostname, parts.port or 80, parts.netloc
        self.seen: Counter[str] = Counter()

    async def view(self) -> None:
        """One viewer: reads what it is told, and counts frames."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(f"GET {LIVE} HTTP/1.1\r\nhost: {self._netloc}\r\n\r\n".encode())
        try:
            status = await reader.readline()
            self.seen["viewers" if b" 200 " in status else "refused"] += 1
            while data := await reader.read(65536):
                self.seen["frames"] += data.count(b"event: tick")
                self.seen["bytes"] += len(data)
            self.seen["broken"] += 1
        finally:
            writer.close()

    async def operate(self, every_s: float) -> None:
        """Operations at a steady beat, one after the other on one connection."""
        request = post(PATH, self._netloc, json.dumps({"inputs": INPUTS}).encode())
        streams = await asyncio.open_connection(self._host, self._port)
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            status, _ = await exchange(request, *streams)
            self.seen["operations" if status == "200" else "failed"] += 1
            due += every_s
            await asyncio.sleep(max(0.0, due - loop.time()))


async def run(url: str, viewers: int, rate: float) -> Counter[str]:
    service = Service(url)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    # A thread: the end of our input is how whoever started us says that it is enough, however it ends itself.
    threading.Thread(
        target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)), daemon=True
    ).start()
    work = [service.view() for _ in range(viewers)] + ([service.operate(1 / rate)] if rate else [])
    tasks = [asyncio.create_task(one) for one in work]
    await ended.wait()
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(outcome, asyncio.CancelledError):
            service.seen["broken"] += 1
    return service.seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--viewers", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.0)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(run(options.url, options.viewers, options.rate))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
