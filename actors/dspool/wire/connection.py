"""The two ends of a connection between a client and a worker.

The bytes of a connection are a handshake (`handshake`), then records (`records`) of messages (`frames`). Whatever does
not open, does not decode, is too long or comes out of turn ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from dspool.core.liveness import ASK_AFTER_BUSY, Verdict, judge
from dspool.messages.members import CUT_OFF
from dspool.wire.frames import (
    MAX_FRAME_BYTES,
    Cancel,
    Chunk,
    Credit,
    FromClient,
    FromWorker,
    HandOver,
    Report,
    Submit,
    decode_from_client,
    decode_from_worker,
    encode,
)
from dspool.wire.handshake import (
    MAX_HELLO_BYTES,
    VERSION,
    Challenge,
    Handshake,
    HandshakeFailed,
    Hello,
    Welcome,
    decode_challenge,
    decode_hello,
    decode_welcome,
    greeting,
    other_version,
)
from dspool.wire.records import HEADER_BYTES, MAX_SEALED_BYTES, BadRecord, Opener, Sealer, length

HELLO_TIMEOUT_S = 5.0
TURN_BYTES = 64 * 1024
"""After so much was decoded in one turn of the loop, the rest waits for the next."""
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}
"""With these a lost host shows after about ten seconds (by default after hours)."""

_TCP_INFO = struct.Struct("=8x16xI28xI")
"""Of Linux' `struct tcp_info` the segments that are not acknowledged, and milliseconds since the last that was."""

_log = logging.getLogger(__name__)


class FramedProtocol(asyncio.Protocol):
    """Hands what the other end says to `greeted` before there are keys, to `received`, decoded, from then on."""

    full_bytes = 8 * 1024 * 1024
    """Beyond this much unsent, `full` is set: the other end does not keep up."""
    dead_bytes = 256 * 1024 * 1024
    """Beyond this much unsent, the other end does not read: the connection ends."""

    def __init__(self, decode: Callable[[bytes | bytearray], Any]) -> None:
        self._decode = decode
        self._buffer = bytearray()
        self._limit = MAX_HELLO_BYTES
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self.transport: asyncio.Transport | None = None
        self.full = False
        self.failure = ""
        """Why this end ended the connection, if it did so for what the other one sent, or no longer sends."""
        self.silent_looks = 0
        """How often the connection was looked at since something arrived; see `core.liveness`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        transport.set_write_buffer_limits(high=self.full_bytes)  # type: ignore[attr-defined]
        _keep_alive(transport.get_extra_info("socket"))
        if self.failure:  # given up before it began
            self.abort()

    def secure(self, *, seal: bytes, open: bytes) -> None:
        """From the next byte on, in both directions, with these keys."""
        self._sealer, self._opener = Sealer(seal), Opener(open, MAX_FRAME_BYTES)
        self._limit = MAX_SEALED_BYTES

    def data_received(self, data: bytes) -> None:
        self.silent_looks = 0
        if self._buffer:
            self._buffer += data
            self._take(self._buffer)
        else:
            self._take(data)

    def _take(self, data: bytes | bytearray) -> None:
        """Handle what has arrived, up to `TURN_BYTES`; keep the rest."""
        start, arrived, decoded = 0, len(data), 0
        try:
            while decoded < TURN_BYTES and not self.closing:
                body = start + HEADER_BYTES
                if arrived < body:
                    break
                header = data[start:body]
                end = body + (length(header) if self._opener else int.from_bytes(header, "big"))
                if end - body > self._limit:
                    self.fail("a frame is longer than allowed")
                elif arrived < end:
                    break
                else:
                    start = end
                    decoded += self._handle(header, data[body:end])
            else:
                self._go_on_soon()
        except (HandshakeFailed, BadRecord) as refused:
            self.fail(str(refused))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.fail(f"what it says is not of the exchange, version {VERSION}")
        except Exception as defect:
            # The type only: a message may quote what a user sent.
            self.fail(f"handling a message raised {type(defect).__name__}")
            if self._opener is not None:  # others must not fill the log
                _log.error("a connection was dropped: %s", self.failure)
        finally:
            if data is self._buffer:
                del self._buffer[:start]
            elif start < arrived:
                self._buffer += data[start:]
            self.batch_received()

    def _handle(self, header: bytes | bytearray, body: bytes | bytearray) -> int:
        """Returns how many bytes it had to decode."""
        if self._opener is None:
            self.greeted(body)
            return 0
        message = self._opener.open(header, body)
        if message is None:
            return 0
        self.received(self._decode(message))
        return len(message)

    def _go_on_soon(self) -> None:
        if self.transport is not None and not self.closing:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.transport is not None and not self.closing:
            self.transport.resume_reading()
            self._take(self._buffer)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def greeted(self, body: bytes | bytearray) -> None:
        """The next message of the handshake. Raises HandshakeFailed and what decoding raises."""
        raise NotImplementedError

    def received(self, message: Any) -> None:
        raise NotImplementedError

    def batch_received(self) -> None:
        """All that this turn takes of what had arrived is handled."""

    @property
    def closing(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def send(self, message: FromClient | FromWorker) -> None:
        transport, sealer = self.transport, self._sealer
        if transport is None or sealer is None or transport.is_closing():
            return
        if self.full and transport.get_write_buffer_size() > self.dead_bytes:
            self.abort()
            return
        for record in sealer.seal(encode(message)):
            transport.write(record)

    def greet(self, message: Challenge | Hello | Welcome) -> None:
        if self.transport is not None:
            self.transport.write(greeting(message))

    def look(self, *, is_busy: bool) -> Verdict:
        """Called every `LOOK_S`. Ends the connection if it is "gone"; after "ask", send what has an answer."""
        self.silent_looks += 1
        if self.silent_looks <= ASK_AFTER_BUSY:
            # Most connections that are used at all: nothing is asked of the kernel.
            return judge(self.silent_looks, 0.0, is_busy=is_busy)
        verdict = judge(self.silent_looks, unacknowledged_s(self.transport), is_busy=is_busy)
        if verdict == "gone":
            self.fail(CUT_OFF)
        return verdict

    def fail(self, why: str) -> None:
        self.failure = self.failure or why
        self.abort()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class ClientEnd(FramedProtocol):
    """The client's end of one connection, to the worker `worker_id` and no other.

    `on_report` and `on_chunk` get what the worker sends; `on_lost` is called once, when an open connection is gone.
    `opened` completes when both have proven who they are, or fails with `HandshakeFailed`.
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
        self._client = client
        self._handshake = Handshake(secret)
        self._transcript: bytes | None = None
        self._worker_share = b""
        self._on_report, self._on_chunk, self._on_lost = on_report, on_chunk, on_lost
        self.worker_id = worker_id
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        """Completes when nothing of the connection is left."""

    def greeted(self, body: bytes | bytearray) -> None:
        handshake = self._handshake
        if self._transcript is None:
            challenge = decode_challenge(body)
            if challenge.version != VERSION:
                raise HandshakeFailed(other_version(challenge.version))
            self._worker_share = challenge.share
            self._transcript = handshake.transcript(
                worker=self.worker_id,
                worker_share=challenge.share,
                client=self._client,
                client_share=handshake.share,
            )
            proof = handshake.proof("client", self._transcript)
            self.greet(Hello(proof, self._client, handshake.share, VERSION))
            return
        if not handshake.proven("worker", self._transcript, decode_welcome(body).proof):
            raise HandshakeFailed("it does not prove that it is this worker of this pool")
        keys = handshake.keys(self._worker_share, self._transcript)
        self.secure(seal=keys.to_worker, open=keys.to_client)
        if not self.opened.done():
            self.opened.set_result(None)

    def received(self, message: Any) -> None:
        if type(message) is Report:
            self._on_report(self, message)
        else:
            self._on_chunk(self, message)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            why = (
                self.failure
                or "it closed the connection: another pool's secret, another worker or another version?"
            )
            self.opened.set_exception(HandshakeFailed(f"no connection to worker {self.worker_id}: {why}"))
        if not self.closed.done():
            self.closed.set_result(None)
        if self._opener is not None:
            self._on_lost(self, self.failure or (type(exc).__name__ if exc else "connection closed"))


class WorkerEnd(FramedProtocol):
    """The worker's end of one connection: the first message must be a valid `Hello`.

    `client` is who has proven itself; None until then. `on_lost` is called once for every connection.
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
        self._worker_id = worker_id
        self._handshake = Handshake(secret)
        self._on_message, self._on_batch, self._on_lost = on_message, on_batch, on_lost
        self._on_room = on_room
        self._hello_timer: asyncio.TimerHandle | None = None
        self.client: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._hello_timer = asyncio.get_running_loop().call_later(
            HELLO_TIMEOUT_S, self.fail, f"no hello within {HELLO_TIMEOUT_S:g} s"
        )
        self.greet(Challenge(self._handshake.share, VERSION))

    def greeted(self, body: bytes | bytearray) -> None:
        handshake, hello = self._handshake, decode_hello(body)
        if hello.version != VERSION:
            raise HandshakeFailed(other_version(hello.version))
        transcript = handshake.transcript(
            worker=self._worker_id,
            worker_share=handshake.share,
            client=hello.client,
            client_share=hello.share,
        )
        if not handshake.proven("client", transcript, hello.proof):
            raise HandshakeFailed("its proof is wrong: another pool's secret, or it wants another worker")
        keys = handshake.keys(hello.share, transcript)
        self.greet(Welcome(handshake.proof("worker", transcript)))
        self.secure(seal=keys.to_client, open=keys.to_worker)
        self.client = hello.client
        if self._hello_timer is not None:
            self._hello_timer.cancel()

    def received(self, message: Any) -> None:
        self._on_message(self, message)

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


def unacknowledged_s(transport: asyncio.Transport | None) -> float | None:
    """For how long the other end's kernel has not acknowledged what was sent; 0: it has all. None: not known here."""
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        unacked, last_ack_ms = _TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return None
    return last_ack_ms / 1000 if unacked else 0.0


def _keep_alive(sock: socket.socket | None) -> None:
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
