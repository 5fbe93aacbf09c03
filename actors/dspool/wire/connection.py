"""The two ends of a connection between a client and a worker.

The bytes of a connection are a handshake (`handshake`), then records (`records`) of messages (`frames`). Whatever does
not open, does not decode, is too long or comes out of turn ends the connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

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
    encoded,
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
from dspool.wire.outgoing import Outgoing
from dspool.wire.records import (
    HEADER_BYTES,
    MAX_SEALED_BYTES,
    RECORD_BYTES,
    BadRecord,
    Opener,
    Sealer,
    length,
)
from dspool.wire.tcp import keep_alive, unacknowledged_s

HELLO_TIMEOUT_S = 5.0
TURN_BYTES = 64 * 1024
"""After so much was decoded in one turn of the loop, the rest waits for the next."""
USUAL_BYTES = 2 * TURN_BYTES
"""Room for what arrives, until a record is longer. When it is full, that is more than a turn: loops read on and on."""

_log = logging.getLogger(__name__)


class FramedProtocol(asyncio.BufferedProtocol):
    """Hands what the other end says to `greeted` before there are keys, to `received`, decoded, from then on."""

    full_bytes = 8 * 1024 * 1024
    """Beyond this much unsent, it is `full`."""
    dead_bytes = 256 * 1024 * 1024
    """Beyond this much unsent, the other end does not read: the connection ends. Large payloads do not count: clients
    hold them anyway until they are answered, and of a worker there are no more than slots, as whoever is `full` gets
    nothing new. Many of them at once are no sign of anything."""

    def __init__(self, decode: Callable[[bytes | bytearray], Any]) -> None:
        self._decode = decode
        self._buffer = memoryview(bytearray(HEADER_BYTES + MAX_HELLO_BYTES))
        self._arrived = 0
        """Bytes at the beginning of the buffer that are not handled yet."""
        self._limit = MAX_HELLO_BYTES
        self._out: Outgoing | None = None
        self._opener: Opener | None = None
        self.transport: asyncio.Transport | None = None
        self._ending = False
        self.failure = ""
        """Why this end ended the connection, if it did so for what the other one sent, or no longer sends."""
        self.silent_looks = 0
        """How often the connection was looked at since something arrived; see `core.liveness`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # A transport copies what it cannot send at once: it gets the next record when it has sent all.
        self.transport.set_write_buffer_limits(high=RECORD_BYTES, low=0)
        keep_alive(transport.get_extra_info("socket"))
        if self.failure:  # given up before it began
            self.abort()

    def secure(self, *, seal: bytes, open: bytes) -> None:
        """From the next byte on, in both directions, with these keys."""
        assert self.transport is not None
        self._out, self._opener = Outgoing(self.transport, Sealer(seal)), Opener(open, MAX_FRAME_BYTES)
        self._limit = MAX_SEALED_BYTES

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._arrived :]

    def buffer_updated(self, nbytes: int) -> None:
        self.silent_looks = 0
        if self._ending:  # nobody hears it any more, and the buffer must not be full
            return
        self._arrived += nbytes
        self._take()

    def _take(self) -> None:
        """Handle what has arrived, up to `TURN_BYTES`; keep the rest."""
        data, arrived = self._buffer, self._arrived
        start = decoded = wanted = 0
        try:
            while decoded < TURN_BYTES and not self.closing:
                body = start + HEADER_BYTES
                if arrived < body:
                    break
                header = data[start:body]
                size = length(header) if self._opener else int.from_bytes(header, "big")
                if size > self._limit:
                    self.fail("a frame is longer than allowed")
                elif arrived < body + size:
                    wanted = HEADER_BYTES + size
                    break
                else:
                    start = body + size
                    decoded += self._handle(header, data[body:start])
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
            self._keep(start, wanted)
            self.batch_received()

    def _keep(self, start: int, wanted: int) -> None:
        """Keep what arrived from `start` on, and have room for the `wanted` bytes of the record that begins there."""
        rest = self._buffer[start : self._arrived]
        if self._opener is not None and len(self._buffer) < max(wanted, USUAL_BYTES):
            room = USUAL_BYTES if wanted <= USUAL_BYTES else HEADER_BYTES + MAX_SEALED_BYTES
            self._buffer = memoryview(bytearray(room))
        elif start == 0:
            return
        self._arrived = len(rest)
        self._buffer[: len(rest)] = rest

    def _handle(self, header: memoryview, body: memoryview) -> int:
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
            self._take()

    def pause_writing(self) -> None:
        if self._out is not None:
            self._out.pause()

    def resume_writing(self) -> None:
        if self._out is None:
            return
        was_full = self.full
        self._out.resume()
        if was_full and not self.full:
            self.has_room()
        if self._ending:
            # Not now: transports of asyncio close themselves a second time then.
            asyncio.get_running_loop().call_soon(self.close)

    @property
    def full(self) -> bool:
        """The other end does not keep up."""
        return self._out is not None and self._out.waiting_bytes > self.full_bytes

    def greeted(self, body: memoryview) -> None:
        """The next message of the handshake. Raises HandshakeFailed and what decoding raises."""
        raise NotImplementedError

    def received(self, message: Any) -> None:
        raise NotImplementedError

    def batch_received(self) -> None:
        """All that this turn takes of what had arrived is handled."""

    def has_room(self) -> None:
        """The other end has caught up with reading."""

    @property
    def closing(self) -> bool:
        return self._ending or self.transport is None or self.transport.is_closing()

    def send(self, message: FromClient | FromWorker) -> None:
        if self._out is None or self.closing:
            return
        if self._out.small_bytes > self.dead_bytes:
            self.abort()
            return
        self._out.send(encoded(message))

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

    def close(self) -> None:
        """End the connection when all output has left; nothing is handled or sent any more."""
        self._ending = True
        if self.transport is not None and (self._out is None or not self._out.waiting_bytes):
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the payloads: an operation that cannot be stopped still holds the end. Nor is it aborted again."""
        self.transport = self._out = self._opener = None


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

    def greeted(self, body: memoryview) -> None:
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
        was_open = self._opener is not None
        super().connection_lost(exc)
        if not self.opened.done():
            why = (
                self.failure
                or "it closed the connection: another pool's secret, another worker or another version?"
            )
            self.opened.set_exception(HandshakeFailed(f"no connection to worker {self.worker_id}: {why}"))
        if not self.closed.done():
            self.closed.set_result(None)
        if was_open:
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

    def greeted(self, body: memoryview) -> None:
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

    def has_room(self) -> None:
        self._on_room(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self._on_lost(self)
