"""What became of the workers that were to be forked, and whether the next one is."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from dspool.errors import WorkerStartFailed
from dspool.supervisor.runtime import Sleep, within

T = TypeVar("T")

LIMIT_S = 40.0
"""As long as the first worker may wait for its parent to load."""
EXEC_FOR_S = 60.0


class ForkStarts:
    """The forked starts of one pool. One that does not come has the next workers started by exec for a while."""

    def __init__(
        self,
        init_timeout_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        # Before the pool itself gives the worker up, or nobody would learn that forking was to blame.
        self._limit_s = min(LIMIT_S, init_timeout_s * 2 / 3)
        self._clock, self._sleep = clock, sleep
        self._last_came = clock()
        self._exec_until = clock()
        self._why = ""

    def why_not(self) -> str | None:
        """Why workers are started by exec for the time being; None: they need not be."""
        return self._why if self._clock() < self._exec_until else None

    async def answer_of(
        self, worker_id: str, answer: Awaitable[T], *, unwanted: Callable[[], bool] = lambda: False
    ) -> T:
        """A forked worker's first answer. A failure counts against forking unless the worker is `unwanted` by now.

        Raises:
            WorkerStartFailed: neither this one nor any other came for too long.
        """
        task = asyncio.ensure_future(answer)
        began = self._clock()
        try:
            while not task.done():
                # Ray starts only so many at once: one that waits for its turn is not late while others come.
                left_s = max(began, self._last_came) + self._limit_s - self._clock()
                if left_s <= 0:
                    raise WorkerStartFailed(f"it did not come in {self._limit_s:g} s", worker=worker_id)
                with contextlib.suppress(TimeoutError):
                    await within(left_s, asyncio.shield(task), self._sleep)
            found = task.result()
        except Exception as failed:
            if not unwanted():
                self._give_up(f"the forked worker {worker_id} failed to start: {failed}")
            raise
        finally:
            task.cancel()
        self._last_came = self._clock()
        return found

    def _give_up(self, why: str) -> None:
        self._why, self._exec_until = why, self._clock() + EXEC_FOR_S
