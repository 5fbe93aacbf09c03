"""Answers that are sent piece by piece: server-sent events, with heartbeats and back-pressure.

One event is read from its source only after the one before it was handed to the connection, which takes no more
while the client does not read. The source then stops too: a worker sends at most `stream_window` events ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final

import msgspec

from dspool.errors import Cancelled, DeadlineExceeded, PoolError, PoolNotReady
from dspool.messages import StreamEvent
from dspool_serve.http.problems import pool_error_of, problem
from dspool_serve.http.responses import ALWAYS, Message, Response, Send, respond

EVENT_STREAM = b"text/event-stream"
COMMENT = b": heartbeat\n\n"
CLOSE_S: Final = 5.0
"""How long a client that is told to go has to read the end of its stream."""

_encode = msgspec.json.Encoder().encode
_ON_EVERY_STREAM = (
    *ALWAYS,
    (b"content-type", EVENT_STREAM),
    # Proxies that collect answers before they pass them on know this one.
    (b"x-accel-buffering", b"no"),
)


_SERVER_STOPS = PoolNotReady("this server stops; what it told of goes on: ask again how far it is")
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

    def __init__(self, events: AsyncGenerator[bytes], *, heartbeat_s: float, endless: bool = False) -> None:
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        """Further headers of the answer."""
        self.status = 200
        """Of the answer; another one if it was refused in place of the stream."""
        self.failure: PoolError | None = Cancelled("the client went away before the stream ended")
        """Why it is not complete; None if it is. As long as it is not, its client may go away."""
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
        self._endless = endless
        self._started = False
        self._quiet = True
        self._limit: asyncio.Timeout | None = None
        """Set while events are sent."""
        self._ended = False
        self._why: PoolError | None = None
        # Held around each send: a heartbeat must not come between the head of the answer and its first event.
        self._write_lock = asyncio.Lock()

    def end(self, why: PoolError | None = None) -> None:
        """End it now, from outside, with an `error` event that says why; None is an end like any other."""
        self._ended, self._why = True, why
        self._end_now(self._limit)

    def _end_now(self, limit: asyncio.Timeout | None) -> None:
        now = asyncio.get_running_loop().time()
        if limit is None:
            self.until = now
        elif not limit.expired():  # else it is just ending, which may take a worker a while
            limit.reschedule(now)

    def server_stops(self) -> None:
        """The server stops, and waits for its answers: what has no end of its own ends now."""
        if self._endless:
            self.end()

    async def send(self, send: Send, request_id: bytes | None = None) -> None:
        heartbeat = asyncio.get_running_loop().create_task(self._beat(send, request_id))
        try:
            failed = await self._send_events(send, request_id)
            # Who was told to go and does not read is not waited for.
            async with asyncio.timeout(CLOSE_S if self._ended else None):
                if failed is not None:
                    answer = problem(failed)
                    self.failure = failed
                    if await self._refuse(send, answer, request_id):
                        return
                    await self._write(send, b"event: error\ndata: %b\n\n" % answer.body, request_id)
                if self.before_close is not None:
                    await self.before_close()
        finally:
            heartbeat.cancel()
            for callback in self.on_end:
                callback()
        async with asyncio.timeout(CLOSE_S if self._ended else None), self._write_lock:
            await self._start(send, request_id)
            await send({"type": "http.response.body", "body": b""})

    def abandon(self) -> None:
        """End it before it began: nobody is there to send it to."""
        for callback in self.on_end:
            callback()

    async def _send_events(self, send: Send, request_id: bytes | None) -> PoolError | None:
        """Send all events; the error that ended them before their end, if one did."""
        try:
            async with asyncio.timeout_at(self.until) as self._limit, aclosing(self._events) as events:
                async for part in events:
                    await self._write(send, part, request_id)
        except Exception as failed:
            if self._limit is not None and self._limit.expired():
                failure = self._why if self._ended else _DEADLINE_PASSED
            else:
                failure = pool_error_of(failed)
            if failure is not None:
                return failure
        finally:
            self._limit = None
        self.failure = None
        return None

    async def _refuse(self, send: Send, answer: Response, request_id: bytes | None) -> bool:
        """Answer in the place of the stream; false if that has begun."""
        async with self._write_lock:
            if self._started:
                return False
            self._started = True
            self.status = answer.status
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


class ProgressStream(EventStream):
    """Tells of work that is done to its end although nobody listens.

    `before_close` and `on_end` come with the end of the work; the client may have gone long before.
    """

    def __init__(self, events: AsyncGenerator[bytes], *, heartbeat_s: float) -> None:
        super().__init__(events, heartbeat_s=heartbeat_s)
        self._listening: asyncio.Timeout | None = None
        self._until_told: float | None = None

    def end(self, why: PoolError | None = None) -> None:
        self._why = why
        self._end_now(self._listening)

    def server_stops(self) -> None:
        self.end(_SERVER_STOPS)

    async def send(self, send: Send, request_id: bytes | None = None) -> None:
        listener = _Listener(send)
        until, self.until = self.until, None
        work = go_on(super().send(listener.send, request_id))
        try:
            async with asyncio.timeout_at(until) as self._listening:
                await asyncio.shield(work)
            return
        except TimeoutError:
            listener.leave()
        finally:
            self._listening = None
            listener.leave()
        answer = problem(self._why or _DEADLINE_PASSED)
        async with asyncio.timeout(CLOSE_S), listener.sending:
            if self._started:
                body = b"event: error\ndata: %b\n\n" % answer.body
                await send({"type": "http.response.body", "body": body})
            else:
                self._started = True
                await respond(send, answer, request_id)


class _Listener:
    """A client that may leave: from then on nothing is sent to it, nor waited for."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._left = asyncio.Event()
        self.sending = asyncio.Lock()
        """Held while something is sent to it."""

    def leave(self) -> None:
        self._left.set()

    async def send(self, message: Message) -> None:
        async with self.sending:
            if self._left.is_set():
                return
            sending = asyncio.ensure_future(self._send(message))
            leaving = asyncio.ensure_future(self._left.wait())
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            if sending.done():
                sending.result()
            else:
                sending.cancel()


_working: set[asyncio.Task[Any]] = set()
"""Work that goes on although its client may be gone; the event loop itself holds tasks only weakly."""


def go_on(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """`work` as a task that nobody needs to hold."""
    task = asyncio.get_running_loop().create_task(work)
    _working.add(task)
    task.add_done_callback(_working.discard)
    return task
