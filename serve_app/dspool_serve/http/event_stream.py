"""Answers that are sent piece by piece: server-sent events, with heartbeats and back-pressure.

One event is read from its source only after the one before it was handed to the connection, which takes no more
while the client does not read. The source then stops too: a worker sends at most `stream_window` events ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec

from dspool.errors import DeadlineExceeded
from dspool.messages import StreamEvent
from dspool_serve.http.problems import pool_error_of, problem
from dspool_serve.http.responses import ALWAYS, Response, Send, respond

EVENT_STREAM = b"text/event-stream"
COMMENT = b": heartbeat\n\n"

_encode = msgspec.json.Encoder().encode
_ON_EVERY_STREAM = (
    *ALWAYS,
    (b"content-type", EVENT_STREAM),
    # Proxies that collect answers before they pass them on know this one.
    (b"x-accel-buffering", b"no"),
)


_DEADLINE_PASSED = DeadlineExceeded("the stream did not end within the time that the request allowed")


def event(name: str, data: Any, id: int | None = None) -> bytes:
    """One event; `data` becomes one line of JSON."""
    number = b"" if id is None else b"id: %d\n" % id
    return b"%bevent: %b\ndata: %b\n\n" % (number, name.encode(), _encode(data))


def stream_event(part: StreamEvent) -> bytes:
    """A part of a program's output, as its client reads it."""
    if part.kind == "token":
        return event("token", {"field": part.field, "text": part.value})
    if part.kind == "field":
        return event("field", {"field": part.field, "value": part.value})
    return event("status", {"text": part.value})


class EventStream:
    """An answer of `text/event-stream`.

    Nothing is sent until the first event is there, so that a refusal has a status of its own. But no longer than one
    heartbeat: from then on an error is an `error` event, which ends the stream.
    """

    status = 200

    def __init__(self, events: AsyncGenerator[bytes], *, heartbeat_s: float) -> None:
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        """Further headers of the answer."""
        self.on_end: list[Callable[[], None]] = []
        """Called when the stream ended, however it did."""
        self.on_sent: Callable[[bytes], None] | None = None
        """Called with every event that was sent."""
        self.on_refused: Callable[[Response], None] | None = None
        """Called with the answer that was given in place of a stream."""
        self.before_close: Callable[[], Awaitable[None]] | None = None
        """Awaited before the client learns that a stream, or the refusal in its place, is complete."""
        self.until: float | None = None
        """The deadline, by the loop's time: the stream then ends with an error."""
        self._events = events
        self._heartbeat_s = heartbeat_s
        self._started = False
        self._quiet = True
        # Held around each send: a heartbeat must not come between the head of the answer and its first event.
        self._write_lock = asyncio.Lock()

    async def send(self, send: Send, request_id: bytes | None = None) -> None:
        heartbeat = asyncio.get_running_loop().create_task(self._beat(send, request_id))
        try:
            try:
                async with asyncio.timeout_at(self.until) as limit, aclosing(self._events) as events:
                    async for part in events:
                        await self._write(send, part, request_id)
            except Exception as failed:
                answer = problem(_DEADLINE_PASSED if limit.expired() else pool_error_of(failed))
                if await self._refuse(send, answer, request_id):
                    return
                await self._write(send, b"event: error\ndata: %b\n\n" % answer.body, request_id)
            if self.before_close is not None:
                await self.before_close()
        finally:
            heartbeat.cancel()
            for callback in self.on_end:
                callback()
        async with self._write_lock:
            await self._start(send, request_id)
            await send({"type": "http.response.body", "body": b""})

    async def _refuse(self, send: Send, answer: Response, request_id: bytes | None) -> bool:
        """Answer in the place of the stream; false if that has begun."""
        async with self._write_lock:
            if self._started:
                return False
            self._started = True
            if self.on_refused is not None:
                self.on_refused(answer)
            if self.before_close is not None:
                await self.before_close()
            await respond(send, answer, request_id)
            return True

    async def _write(self, send: Send, data: bytes, request_id: bytes | None) -> None:
        async with self._write_lock:
            self._quiet = False
            await self._start(send, request_id)
            await send({"type": "http.response.body", "body": data, "more_body": True})
        if self.on_sent is not None and data is not COMMENT:
            self.on_sent(data)

    async def _start(self, send: Send, request_id: bytes | None) -> None:
        if self._started:
            return
        self._started = True
        headers = [*_ON_EVERY_STREAM, *self.headers]
        if request_id is not None:
            headers.append((b"x-request-id", request_id))
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _beat(self, send: Send, request_id: bytes | None) -> None:
        while True:
            self._quiet = True
            await asyncio.sleep(self._heartbeat_s)
            if self._quiet:
                await self._write(send, COMMENT, request_id)
