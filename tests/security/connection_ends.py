"""The two ends of a connection without a network: nothing moves but what a test passes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from dspool.wire.connection import ClientEnd, WorkerEnd
from dspool.wire.frames import Report
from dspool.wire.handshake import HandshakeFailed
from dspool.wire.records import HEADER_BYTES

SECRET = b"s" * 32
REPORT = Report([], [], [], 0, 8, 0)


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = self.paused = False
        self.unread = bytearray()
        """What has arrived for the end that has this transport, while that reads nothing."""
        self._end: Any = None

    def write(self, data: bytes) -> None:
        self.written += data

    def take(self) -> bytes:
        data, self.written = bytes(self.written), bytearray()
        return data

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        asyncio.get_running_loop().call_soon(self._read)

    def arrive(self, end: Any, data: bytes) -> None:
        """`data` comes in for `end`, whose transport this is."""
        self._end = end
        self.unread += data
        self._read()

    def _read(self) -> None:
        while self.unread and not self.paused and not self.closed:
            room = self._end.get_buffer(-1)
            data = bytes(self.unread[: len(room)])
            del self.unread[: len(data)]
            room[: len(data)] = data
            self._end.buffer_updated(len(data))

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        return None


class Ends:
    """A client and a worker, and the test between them: nothing moves but what it passes on."""

    def __init__(self, *, wants: str = "w0", client_secret: bytes = SECRET) -> None:
        self.at_worker: list[Any] = []
        self.at_client: list[Any] = []
        self.lost: list[str] = []
        self.to_worker, self.to_client = Pipe(), Pipe()
        self.client = ClientEnd(
            client_secret,
            "c1",
            wants,
            on_report=lambda _, report: self.at_client.append(report),
            on_chunk=lambda _, chunk: self.at_client.append(chunk),
            on_lost=lambda _, why: self.lost.append(why),
        )
        self.worker = WorkerEnd(
            SECRET,
            "w0",
            on_message=lambda _, message: self.at_worker.append(message),
            on_batch=lambda: None,
            on_lost=lambda _: None,
            on_room=lambda _: None,
        )
        self.client.connection_made(self.to_worker)  # type: ignore[arg-type]
        self.worker.connection_made(self.to_client)  # type: ignore[arg-type]

    def greet(self, change: Callable[[int, bytes], bytes] = lambda _, data: data) -> Ends:
        """The handshake; `change` may replace each of its three messages, by number."""
        self.arrive_at_client(change(0, self.to_client.take()))
        self.arrive_at_worker(change(1, self.to_worker.take()))
        self.arrive_at_client(change(2, self.to_client.take()))
        return self

    def arrive_at_worker(self, data: bytes) -> None:
        self.to_client.arrive(self.worker, data)

    def arrive_at_client(self, data: bytes) -> None:
        self.to_worker.arrive(self.client, data)

    def refused(self) -> str:
        """What the client says about a connection that never opened."""
        self.client.connection_lost(None)
        error = self.client.opened.exception()
        assert isinstance(error, HandshakeFailed)
        assert self.at_worker == self.at_client == self.lost == []
        return str(error)

    def say(self, *messages: Any) -> list[bytes]:
        """What the client sends for each of these."""
        records = []
        for message in messages:
            self.client.send(message)
            records.append(self.to_worker.take())
        return records


def unframed(data: bytes) -> bytes:
    return data[HEADER_BYTES:]
