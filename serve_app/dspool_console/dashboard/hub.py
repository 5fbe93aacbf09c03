"""What changes in one pool, sent to all who look: asked once a second, encoded once, the same bytes for every viewer.

Nothing is asked while nobody looks. A viewer is a place in a short row of frames; one that reads too slowly loses its
place, and is told so, instead of holding up others or memory.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final, NamedTuple

import msgspec

from dspool.errors import PoolNotReady
from dspool_console.dashboard.changes import EVERYBODY, Changes
from dspool_serve.http.problems import pool_error_of, problem_body

EVERY_S: Final = 1.0
ANSWER_S: Final = 4.0
LINGER_S: Final = 15.0
"""A page that is loaded again finds its place."""
FRAMES_KEPT: Final = 900
BYTES_KEPT: Final = 4 * 2**20
JOINED_KEPT: Final = 16
"""Places whose frames are kept joined: viewers who keep up share one, and whoever comes back names any."""
TOPICS: Final = ("overview", "workers", "events", "warmup", "sizing", "alerts")

_encode = msgspec.json.Encoder().encode


class Frame(NamedTuple):
    number: int
    topic: str
    data: bytes


class Hub:
    """`changes.beat(topics)` gives what is new as (topic, event, data); one event loop owns it."""

    def __init__(
        self,
        changes: Changes,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._changes, self._clock, self._wall, self._sleep = changes, clock, wall, sleep
        self._life = secrets.token_hex(4)
        self._number = 0
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._viewers: dict[object, frozenset[str]] = {}
        self._left_at = clock()
        self._signal = asyncio.Event()
        self._beating: asyncio.Task[None] | None = None
        self._failing = False
        self._joined: dict[tuple[int, frozenset[str]], bytes] = {}

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    def close(self) -> None:
        if self._beating is not None:
            self._beating.cancel()

    async def follow(self, topics: frozenset[str], last_id: str | None) -> AsyncGenerator[bytes]:
        """The frames of these topics from now on, or after `last_id` if they are still here."""
        viewer = object()
        self._viewers[viewer] = topics
        try:
            if self._beating is None or self._beating.done():
                self._begin_anew()
                self._beating = asyncio.get_running_loop().create_task(self._beat())
            place, resumed = self._place(last_id)
            yield self._event("hello", {"resumed": resumed, "at": self._wall()}, place)
            while True:
                signal = self._signal
                if place < self._number:
                    data = self._after(place, topics)
                    place = self._number
                    if data:
                        yield data
                else:
                    await signal.wait()
        finally:
            del self._viewers[viewer]
            self._left_at = self._clock()

    def _begin_anew(self) -> None:
        # What was sent before is too old to go on from.
        self._life = secrets.token_hex(4)
        self._frames.clear()
        self._bytes = 0
        self._joined.clear()
        self._changes.forget()

    def _place(self, last_id: str | None) -> tuple[int, bool]:
        life, _, number = (last_id or "").partition("-")
        if (
            life == self._life
            and number.isascii()
            and number.isdigit()
            and len(number) < 16
            and self._has(int(number))
        ):
            return int(number), True
        return self._number, False

    def _has(self, place: int) -> bool:
        """Whether everything after `place` is still here."""
        oldest = self._frames[0].number if self._frames else self._number + 1
        return oldest - 1 <= place <= self._number

    def _after(self, place: int, topics: frozenset[str]) -> bytes:
        if not self._has(place):
            return self._event("reset", {}, self._number)
        # Viewers who keep up are all at the same place: what they get is put together once.
        joined = self._joined.get((place, topics))
        if joined is None:
            joined = b"".join(
                frame.data
                for frame in self._frames
                if frame.number > place and (frame.topic in topics or frame.topic == EVERYBODY)
            )
            if len(self._joined) < JOINED_KEPT:
                self._joined[place, topics] = joined
        return joined

    # --- the beat ---

    async def _beat(self) -> None:
        due = self._clock()
        while self._viewers or self._clock() - self._left_at < LINGER_S:
            await self._ask()
            due = max(due + EVERY_S, self._clock())
            await self._sleep(due - self._clock())

    async def _ask(self) -> None:
        topics = frozenset().union(*self._viewers.values())
        if not topics:
            return
        try:
            # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with the answer.
            async with asyncio.timeout(ANSWER_S):
                items = await self._changes.beat(topics)
            self._publish(items)
            self._failing = False
        except Exception as failed:
            if not self._failing:
                self._failing = True
                error = _LATE if isinstance(failed, TimeoutError) else pool_error_of(failed)
                self._publish([(EVERYBODY, "error", problem_body(error))])

    def _publish(self, items: list[tuple[str, str, Any]]) -> None:
        """Put `items` before all viewers."""
        if not items:
            return
        # All are encoded before the first one counts: a number without its frame would look like a lost place.
        frames = [
            Frame(number, topic, self._event(name, data, number))
            for number, (topic, name, data) in enumerate(items, self._number + 1)
        ]
        self._frames.extend(frames)
        self._number = frames[-1].number
        self._bytes += sum(len(frame.data) for frame in frames)
        while len(self._frames) > FRAMES_KEPT or (self._bytes > BYTES_KEPT and len(self._frames) > 1):
            self._bytes -= len(self._frames.popleft().data)
        self._joined.clear()
        self._wake()

    def _wake(self) -> None:
        signal, self._signal = self._signal, asyncio.Event()
        signal.set()

    def _event(self, name: str, data: Any, number: int) -> bytes:
        return b"id: %b-%d\nevent: %b\ndata: %b\n\n" % (
            self._life.encode(),
            number,
            name.encode(),
            data if isinstance(data, bytes) else _encode(data),
        )


_LATE = PoolNotReady("the pool does not answer; the page tries again", retry_after_s=1.0)

__all__ = ["EVERY_S", "TOPICS", "Hub"]
