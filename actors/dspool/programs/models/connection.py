"""One HTTP/1.1 connection to a model and the answer that it brings, piece by piece."""

from __future__ import annotations

import asyncio
import select
from importlib import import_module
from typing import Any, Final

import httptools

# By name: lm15 says that it is typed, and DSPy around it is not.
_errors: Any = import_module("dspy._vendor.lm15.transports._exceptions")
ProtocolError: Any = _errors.ProtocolError
ReadError: Any = _errors.ReadError
ReadTimeout: Any = _errors.ReadTimeout
WriteError: Any = _errors.WriteError
WriteTimeout: Any = _errors.WriteTimeout
_read_timeout_hint: Any = import_module("dspy._vendor.lm15.transports._limits").read_timeout_hint

_MAX_HEAD: Final = 64 * 1024
"""Bytes of a head, as DSPy has it."""
_MOST_KEPT: Final = 256 * 1024
"""Bytes of an answer that arrive before somebody takes them; then the connection is not read any more."""


class ModelConnection(asyncio.Protocol):
    """One connection and the answer that it brings. Made of one that DSPy has opened, whose protocol it replaces."""

    def __init__(self, opened: Any) -> None:
        self.origin: tuple[str, str, int] = opened.origin
        self.closed = False
        self.head_complete = self.complete = False
        self.headers: list[tuple[str, str]] = []
        self.reason = ""
        self.pieces: list[bytes] = []
        self._opened = opened
        self._transport: Any = opened.writer.transport
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._asked = self._paused = self._full = self._ended = self._keeps_alive = False
        self._received = self._kept = self._body_bytes = 0
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._poll = select.poll()  # not `select.select`: that takes no file number from 1,024 on
        if (socket := self._transport.get_extra_info("socket")) is not None:
            self._poll.register(socket.fileno(), select.POLLIN)
        # A server may say something before it is asked: an answer, as DSPy takes it.
        self._early = bytes(getattr(opened.reader, "_buffer", b""))
        self._transport.set_protocol(self)

    # --- what the pool of connections calls ---

    def is_stale(self) -> bool:
        """Whether it ended, or brought something, since its last answer."""
        return self.closed or self._ended or bool(self._poll.poll(0))

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._opened.close()

    # --- what a request calls ---

    async def send(self, head: bytes, body: bytes | None, timeout_s: float) -> None:
        if self._ended or self.closed:
            raise WriteError("Connection lost")
        self.head_complete = self.complete = False
        self.headers, self.reason, self.pieces = [], "", []
        self._received = self._kept = self._body_bytes = 0
        self._failure = None
        self._asked = True
        self._transport.write(head + body if body else head)
        while self._paused:
            try:
                await self._wait(timeout_s)
            except TimeoutError as late:
                raise WriteTimeout(f"write timed out: {late}") from late
            if self._ended:
                raise WriteError("Connection lost")
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    async def more(self, timeout_s: float, what: str) -> None:
        """Wait until something has arrived or the connection has ended."""
        try:
            await self._wait(timeout_s)
        except TimeoutError as late:
            raise ReadTimeout(f"read timed out {what}{_read_timeout_hint(timeout_s)}") from late

    def check(self) -> None:
        """Raises what stands in the way of the rest of the answer."""
        if self._failure is not None:
            raise self._failure

    def take(self) -> list[bytes]:
        """What has arrived of the body."""
        pieces, self.pieces, self._kept = self.pieces, [], 0
        if self._full:
            self._full = False
            self._transport.resume_reading()
        return pieces

    @property
    def status(self) -> int:
        return self._parser.get_status_code()

    @property
    def http_version(self) -> str:
        return f"HTTP/{self._parser.get_http_version()}"

    @property
    def reusable(self) -> bool:
        return self.complete and self._keeps_alive and not self._ended and not self.closed

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    async def _wait(self, timeout_s: float) -> None:
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, _expire, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- what the event loop calls ---

    def data_received(self, data: bytes) -> None:
        if not self._asked or self.complete:
            # Nobody asked: what follows would be taken for the answer to the next question.
            self._ended = True
            self.close()
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as malformed:
            if self.complete:
                self._ended = True  # something follows that nobody asked for
            else:
                self._fail(ProtocolError(f"malformed response: {malformed}"))
        except httptools.HttpParserUpgrade:
            self._fail(ProtocolError("the server switched protocols, which nobody asked for"))
        if not self.head_complete and self._received > _MAX_HEAD:
            self._fail(ProtocolError(f"response head exceeded limit ({self._received} > {_MAX_HEAD} bytes)"))
        if self._kept > _MOST_KEPT and not self._full and not self.complete:
            self._full = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._paused = False
        if self._asked and not self.complete:
            self._fail(self._end_of_body() if exc is None else ReadError(f"read failed: {exc}"))
        self._wake()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    def _fail(self, failure: Exception | None) -> None:
        self._ended = True
        if self._failure is None:
            self._failure = failure

    def _end_of_body(self) -> Exception | None:
        """What the end of the connection means for an answer that is not complete: an error, or the end of one that
        gives no length."""
        if not self.head_complete:
            return ReadError("server closed connection before sending response")
        if self.header("transfer-encoding"):
            return ProtocolError("connection closed mid-chunk")
        length = self.header("content-length")
        if length is None:
            self.complete = True
            return None
        outstanding = int(length) - self._body_bytes
        return ProtocolError(f"connection closed with {outstanding} body bytes outstanding")

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        if self.complete:
            raise ProtocolError("a second answer")

    def on_status(self, status: bytes) -> None:
        self.reason += status.decode("iso-8859-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_complete:  # what follows a body in chunks is no header of it
            self.headers.append((name.decode("iso-8859-1"), value.decode("iso-8859-1").strip()))

    def on_headers_complete(self) -> None:
        if self.status >= 200:
            self.head_complete = True
            # The parser forgets it with the end of the answer.
            self._keeps_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)
        self._kept += len(body)
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        if self.head_complete:
            self.complete = True
        else:
            # An interim answer (100, 103): the one that counts follows.
            self.headers, self.reason = [], ""


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
