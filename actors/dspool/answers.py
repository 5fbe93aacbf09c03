"""The answer cache of a pool: one for all of its workers, in the memory of one process and nowhere else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Protocol

from dspool.config import CacheConfig
from dspool.core.answers import SILENT_S, Answers, CacheReply


class SharedAnswers:
    """Safe to use from any thread."""

    def __init__(self, config: CacheConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._answers = Answers(max_bytes=int(config.max_mb * 2**20), ttl_s=config.ttl_s)
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[bytes, Future[None]] = {}
        self._tidy_at = 0.0

    def look_up(self, key: bytes, asker: str) -> CacheReply:
        with self._lock:
            return self._answers.look_up(key, asker, self._clock())

    def waiter(self, key: bytes) -> Future[None]:
        """Done when the question under way has ended, one way or the other. Look it up again then."""
        with self._lock:
            if self._answers.is_asked(key):
                return self._waiting.setdefault(key, Future())
        # It ended meanwhile: nobody would wake who waits, nor forget that they do.
        ended: Future[None] = Future()
        ended.set_result(None)
        return ended

    def keep(self, key: bytes, asker: str, answer: bytes) -> None:
        silent: list[bytes] = []
        with self._lock:
            now = self._clock()
            self._answers.keep(key, asker, answer, now)
            if now >= self._tidy_at:
                self._tidy_at = now + SILENT_S
                silent = self._answers.tidy(now)
        for one in (key, *silent):
            self._wake(one)

    def give_up(self, key: bytes, asker: str) -> None:
        with self._lock:
            gone = self._answers.give_up(key, asker)
        if gone:
            self._wake(key)

    def heard(self, askers: Iterable[str]) -> None:
        with self._lock:
            self._answers.heard(frozenset(askers), self._clock())

    def _wake(self, key: bytes) -> None:
        with self._lock:
            waiter = self._waiting.pop(key, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class AnswersLink(Protocol):
    """How a worker reaches the pool's answers. All may fail in any way; then there is no cache."""

    async def look_up(self, key: bytes, asker: str) -> CacheReply: ...

    def look_up_blocking(self, key: bytes, asker: str) -> CacheReply: ...

    async def wait(self, key: bytes, wait_s: float) -> None: ...

    def wait_blocking(self, key: bytes, wait_s: float) -> None: ...

    def keep(self, key: bytes, asker: str, answer: bytes) -> None:
        """Waits for nothing, as the two below."""
        ...

    def give_up(self, key: bytes, asker: str) -> None: ...

    def heard(self, askers: list[str]) -> None: ...


class LocalAnswers:
    """An `AnswersLink` within one process."""

    def __init__(self, answers: SharedAnswers) -> None:
        self._answers = answers
        self.keep = answers.keep
        self.give_up = answers.give_up
        self.look_up_blocking = answers.look_up

    async def look_up(self, key: bytes, asker: str) -> CacheReply:
        return self._answers.look_up(key, asker)

    async def wait(self, key: bytes, wait_s: float) -> None:
        await asyncio.wait((asyncio.wrap_future(self._answers.waiter(key)),), timeout=wait_s)

    def wait_blocking(self, key: bytes, wait_s: float) -> None:
        waiter, ended = self._answers.waiter(key), threading.Event()
        waiter.add_done_callback(lambda _: ended.set())
        ended.wait(wait_s)

    def heard(self, askers: list[str]) -> None:
        self._answers.heard(askers)
