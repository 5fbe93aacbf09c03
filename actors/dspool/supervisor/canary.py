"""Trying a new version on one worker: what both versions did, as the workers measured it, and what follows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from dspool.core.lifecycle.canary import MIN_OPERATIONS, Verdict, judge
from dspool.errors import PoolError
from dspool.messages import VersionNumbers
from dspool.supervisor.runtime import Sleep, WorkerHandle, within

ANSWER_S = 1.0
"""How long a worker may take to say what it measured."""
LOOK_EVERY_S = 0.25
QUIET_S = 2.0
"""With not one operation of the program seen for so long, there is nothing to wait for."""
SILENT_LOOKS = 3
"""A canary that does not answer so often in a row has its event loop blocked, for all we know by the new version."""


class Figures(NamedTuple):
    old: VersionNumbers
    """What the version before did since the beginning; if that is too little (the canary may be the only worker),
    what it did in all."""
    new: VersionNumbers
    idle: bool
    """Nobody has asked for the program since the beginning."""


class Trial:
    """Compares two versions (old, new) of a program on the `workers()` that take traffic.

    Asks the workers themselves: exact, whatever else they do, and no metrics are needed.
    """

    def __init__(
        self,
        program: str,
        versions: tuple[int, int],
        workers: Callable[[], Sequence[WorkerHandle]],
        *,
        clock: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self._program = program
        self._versions = versions
        self._workers = workers
        self._clock = clock
        self._sleep = sleep
        self._before: dict[str, dict[int, VersionNumbers]] = {}
        self._last: dict[str, dict[int, VersionNumbers]] = {}
        self._silent: dict[str, int] = {}

    async def begin(self) -> None:
        """What was done until now does not count."""
        self._before = self._last = await self._ask()

    async def watch(
        self,
        canary: WorkerHandle,
        longest_s: float,
        note: Callable[[VersionNumbers, VersionNumbers, str], None],
    ) -> Verdict:
        """Go on or back; `note` hears of each look at the two versions, and what was made of it."""
        began = self._clock()
        while True:
            old, new, idle = await self.look()
            waited = self._clock() - began
            verdict = judge(old, new, time_over=waited >= longest_s or (idle and waited >= QUIET_S))
            if silent := self._silent.get(canary.worker_id, 0):
                verdict = Verdict("wait", "its canary has not answered")
            if silent >= SILENT_LOOKS:
                verdict = Verdict("back", f"its canary {canary.worker_id} does not answer any more")
            if canary not in self._workers():
                verdict = Verdict("back", f"its canary {canary.worker_id} left the pool meanwhile")
            note(old, new, verdict.reason)
            if verdict.decision != "wait":
                return verdict
            await self._sleep(LOOK_EVERY_S)

    async def look(self) -> Figures:
        # What a worker that has gone since then did still counts.
        self._last = {**self._last, **await self._ask()}
        old, new = (self._since(version) for version in self._versions)
        idle = not (old.operations or old.running or new.operations or new.running)
        if old.operations < MIN_OPERATIONS:
            first = self._versions[0]
            old = _sum(numbers[first] for numbers in self._last.values() if first in numbers)
        return Figures(old, new, idle)

    def _since(self, version: int) -> VersionNumbers:
        nothing = VersionNumbers()
        return _sum(
            _less(numbers[version], self._before.get(worker, {}).get(version, nothing))
            for worker, numbers in self._last.items()
            if version in numbers
        )

    async def _ask(self) -> dict[str, dict[int, VersionNumbers]]:
        handles = self._workers()
        answers = await asyncio.gather(
            *(within(ANSWER_S, handle.versions(self._program), self._sleep) for handle in handles),
            return_exceptions=True,
        )
        found = {}
        for handle, answer in zip(handles, answers, strict=True):
            if isinstance(answer, BaseException):
                self._silent[handle.worker_id] = self._silent.get(handle.worker_id, 0) + 1
            else:
                self._silent.pop(handle.worker_id, None)
                found[handle.worker_id] = answer
        return found


def _less(now: VersionNumbers, before: VersionNumbers) -> VersionNumbers:
    operations = now.operations - before.operations
    if operations <= 0:
        return msgspec.structs.replace(now, operations=0, errors=0, run_s=0.0)
    run_s = (now.run_s * now.operations - before.run_s * before.operations) / operations
    return msgspec.structs.replace(
        now, operations=operations, errors=max(0, now.errors - before.errors), run_s=max(0.0, run_s)
    )


def _sum(parts: Iterable[VersionNumbers]) -> VersionNumbers:
    parts = list(parts)
    operations, running = sum(part.operations for part in parts), sum(part.running for part in parts)
    run_s = sum(part.run_s * part.operations for part in parts)
    running_s = sum(part.running_s * part.running for part in parts)
    return VersionNumbers(
        operations,
        sum(part.errors for part in parts),
        run_s / operations if operations else 0.0,
        running,
        running_s / running if running else 0.0,
    )


Phase = Literal["loading", "canary", "rolling out", "done", "rolled back", "failed"]


class Rollout(Struct, kw_only=True):
    """One deployment or roll-back. Times are wall-clock seconds."""

    program: str
    version: int
    previous: int | None
    phase: Phase
    began_at: float
    ended_at: float | None = None
    canary: str | None = None
    """The worker that tries the new version."""
    canary_s: float = 0.0
    """Longest time that it is watched."""
    old: VersionNumbers | None = None
    """What the version before did since the canary took the new one."""
    new: VersionNumbers | None = None
    reason: str = ""
    workers_done: int = 0
    workers_total: int = 0


ROLLOUTS_KEPT = 50


class Rollouts:
    """The one that runs and the last ones that ended."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._running: Rollout | None = None
        self._ended: deque[Rollout] = deque(maxlen=ROLLOUTS_KEPT)

    @property
    def running(self) -> Rollout | None:
        return msgspec.structs.replace(self._running) if self._running else None

    @property
    def last(self) -> Rollout | None:
        return self._ended[-1] if self._ended else None

    def recent(self) -> list[Rollout]:
        """Newest first, the one that runs included."""
        running = self.running
        return [*([running] if running else []), *reversed(self._ended)]

    @contextmanager
    def of(self, program: str, version: int, previous: int | None, phase: Phase) -> Iterator[Rollout]:
        """Follow one until the end of the block; it went well unless the block raises."""
        rollout = self._running = Rollout(
            program=program, version=version, previous=previous, phase=phase, began_at=self._wall()
        )
        try:
            yield rollout
        except BaseException as failed:
            if rollout.phase != "rolled back":
                rollout.phase = "failed"
                rollout.reason = failed.message if isinstance(failed, PoolError) else type(failed).__name__
            raise
        else:
            rollout.phase = "done"
        finally:
            rollout.ended_at = self._wall()
            self._running = None
            self._ended.append(rollout)


__all__ = ["Phase", "Rollout", "Rollouts"]
