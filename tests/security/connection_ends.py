"""The two ends of a connection without a network: nothing moves but what a test passes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dspool.wire.connection import ClientEnd, WorkerEnd
from dspool.wire.frames import Report
from dspool.wire.handshake import HandshakeFailed
from dspool.wire.records import HEADER_BYTES

SECRET = b"s" * 32
REPORT = Report([], [], [], 0, 8, 0)


class Pipe:
    """A transport that keeps what is written; `unread` is what the other end has not taken."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = self.paused = False
        self.unread = 0

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

    def get_write_buffer_size(self) -> int:
        return self.unread

    def set_write_buffer_limits(self, high: int) -> None:
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
        self.client.data_received(change(0, self.to_client.take()))
        self.worker.data_received(change(1, self.to_worker.take()))
        self.client.data_received(change(2, self.to_client.take()))
        return self

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
