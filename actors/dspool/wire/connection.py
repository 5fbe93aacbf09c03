"""The two ends of a connection between a client and a worker.

Each proves to the other that it knows the pool's secret before anything else: `Challenge`, `Hello`,
`Welcome`. What does not decode, is too long or comes out of turn ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from dspool.wire.frames import (
    MAX_FRAME_BYTES,
    Cancel,
    Challenge,
    Chunk,
    Credit,
    FromClient,
    FromWorker,
    HandOver,
    Hello,
    Report,
    Submit,
    Welcome,
    decode_from_client,
    decode_from_worker,
    frame,
    prove,
    proven,
)

HELLO_TIMEOUT_S = 5.0
_NONCE_BYTES = 16
_MAX_HELLO_BYTES = 1024
_CLIENT, _WORKER = "client", "worker"
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}
"""With these a lost host shows after about ten seconds (by default after hours)."""

_log = logging.getLogger(__name__)


class FramedProtocol(asyncio.Protocol):
    """Cuts the byte stream into frames and hands each, decoded, to `received`."""

    full_bytes = 8 * 1024 * 1024
    """Beyond this much unsent, `full` is set: the other end does not keep up."""
    dead_bytes = 256 * 1024 * 1024
    """Beyond this much unsent, the other end does not read: the connection ends."""

    def __init__(self, decode: Callable[[bytes], Any]) -> None:
        self._decode = decode
        self._buffer = bytearray()
        self._limit = MAX_FRAME_BYTES
        self.transport: asyncio.Transport | None = None
        self.full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        transport.set_write_buffer_limits(high=self.full_bytes)  # type: ignore[attr-defined]
        _keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            self._buffer += data
            data = self._buffer  # type: ignore[assignment]
        start, end = 0, len(data)
        try:
            while end - start >= 4 and not self.closing:
                size = int.from_bytes(data[start : start + 4], "big")
                if size > self._limit:
                    self.abort()
                    break
                if end - start - 4 < size:
                    break
                message = self._decode(data[start + 4 : start + 4 + size])
                start += 4 + size
                self.received(message)
        except (msgspec.DecodeError, RecursionError):
            self.abort()
        except Exception as defect:
            # The type only: a message may quote what a user sent.
            _log.error("a connection was dropped: handling a message raised %s", type(defect).__name__)
            self.abort()
        finally:
            if data is self._buffer:
                del self._buffer[:start]  # in place: a long frame arrives in many pieces
            elif start < end:
                self._buffer += data[start:]
            self.batch_received()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def received(self, message: Any) -> None:
        raise NotImplementedError

    def batch_received(self) -> None:
        """All that had arrived is handled."""

    @property
    def closing(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def send(self, message: FromClient | FromWorker) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self.full and transport.get_write_buffer_size() > self.dead_bytes:
            self.abort()
            return
        transport.write(frame(message))

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class ClientEnd(FramedProtocol):
    """The client's end of one connection, to the worker `worker_id` and no other.

    `on_report` and `on_chunk` get what the worker sends; `on_lost` is called once, when an open connection is gone.
    `opened` completes when both have proven who they are, or fails with `ConnectionError`.
    """

    def __init__(
        self,
        secret: bytes,
        client: str,
        worker_id: str,
        *,
        on_report: Callable[[ClientEnd, Report], None],
        on_chunk: Callable[[ClientEnd, Chunk], None],
        on_lost: Callable[[ClientEnd, str], None],
    ) -> None:
        super().__init__(decode_from_worker)
        self._limit = _MAX_HELLO_BYTES
        self._secret, self._client = secret, client
        self._nonce: bytes | None = None
        self._on_report, self._on_chunk, self._on_lost = on_report, on_chunk, on_lost
        self.worker_id = worker_id
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        """Completes when nothing of the connection is left."""
        self._welcomed = False

    def received(self, message: Any) -> None:
        kind = type(message)
        if self._welcomed and kind is Report:
            self._on_report(self, message)
        elif self._welcomed and kind is Chunk:
            self._on_chunk(self, message)
        elif self._nonce is None and kind is Challenge:
            self._nonce = secrets.token_bytes(_NONCE_BYTES)
            self.send(Hello(prove(self._secret, _CLIENT, message.nonce), self._client, self._nonce))
        elif self._nonce is not None and not self._welcomed and kind is Welcome:
            self._welcome(message, self._nonce)
        else:
            self.abort()

    def _welcome(self, welcome: Welcome, nonce: bytes) -> None:
        if not proven(self._secret, _WORKER, nonce, welcome.proof):
            self._refuse("the other end does not know the pool's secret")
        elif welcome.worker != self.worker_id:
            self._refuse(f"the other end is {welcome.worker}")
        else:
            self._welcomed = True
            self._limit = MAX_FRAME_BYTES
            if not self.opened.done():
                self.opened.set_result(None)

    def _refuse(self, why: str) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionError(f"not worker {self.worker_id}: {why}"))
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("the other end closed the connection: wrong secret?"))
        if not self.closed.done():
            self.closed.set_result(None)
        if self._welcomed:
            self._on_lost(self, type(exc).__name__ if exc else "connection closed")


class WorkerEnd(FramedProtocol):
    """The worker's end of one connection: the first message must be a valid `Hello`.

    `on_lost` is called once for every connection, authenticated or not.
    """

    def __init__(
        self,
        secret: bytes,
        worker_id: str,
        *,
        on_message: Callable[[WorkerEnd, Submit | Cancel | Credit | HandOver], None],
        on_batch: Callable[[], None],
        on_lost: Callable[[WorkerEnd], None],
        on_room: Callable[[WorkerEnd], None],
    ) -> None:
        super().__init__(decode_from_client)
        self._secret, self._worker_id = secret, worker_id
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._on_message, self._on_batch, self._on_lost = on_message, on_batch, on_lost
        self._on_room = on_room
        self._limit = _MAX_HELLO_BYTES
        self._hello_timer: asyncio.TimerHandle | None = None
        self.client: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._hello_timer = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self.abort)
        self.send(Challenge(self._nonce))

    def received(self, message: Any) -> None:
        if self.client is not None:
            if type(message) is Hello:
                self.abort()
            else:
                self._on_message(self, message)
            return
        if type(message) is not Hello or not proven(self._secret, _CLIENT, self._nonce, message.proof):
            self.abort()
            return
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self.client = message.client
        self._limit = MAX_FRAME_BYTES
        self.send(Welcome(prove(self._secret, _WORKER, message.nonce), self._worker_id))

    def batch_received(self) -> None:
        if self.client is not None:
            self._on_batch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._on_room(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self._on_lost(self)


def _keep_alive(sock: socket.socket | None) -> None:
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
