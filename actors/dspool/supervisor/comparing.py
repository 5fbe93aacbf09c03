"""The figures by which a canary is judged: of program versions if the metrics know them, else of whole workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from dspool.commands import WorkerStatus
from dspool.core.pool.rollout import VersionNumbers
from dspool.supervisor.runtime import WorkerHandle

Numbers = Callable[[str, int], Awaitable[VersionNumbers | None]]
"""What a version (program, version) did so far, over all workers, since the pool started."""


class Figures(NamedTuple):
    """What the version before and the new one did since the canary took the new one."""

    old: VersionNumbers
    new: VersionNumbers


class Comparison(Protocol):
    async def begin(self) -> None: ...

    async def look(self) -> Figures: ...


class ByVersion:
    """Compares by the numbers of each version: exact, whatever else the workers do."""

    def __init__(self, numbers: Numbers, program: str, old: int, new: int) -> None:
        self._numbers = numbers
        self._program = program
        self._versions = old, new
        self._before = Figures(VersionNumbers(), VersionNumbers())

    async def begin(self) -> None:
        self._before = await self._ask()

    async def look(self) -> Figures:
        now = await self._ask()
        return Figures(_since(self._before.old, now.old), _since(self._before.new, now.new))

    async def _ask(self) -> Figures:
        old, new = await asyncio.gather(
            *(self._numbers(self._program, version) for version in self._versions)
        )
        return Figures(old or VersionNumbers(), new or VersionNumbers())


class ByWorker:
    """Compares the canary worker with all others: what each did since the beginning, all programs together.

    With no other worker, the canary is compared with what it did before.
    """

    def __init__(self, canary: WorkerHandle, others: Sequence[WorkerHandle]) -> None:
        self._handles = [canary, *others]
        self._before: list[VersionNumbers] = []

    async def begin(self) -> None:
        self._before = await self._ask()

    async def look(self) -> Figures:
        done = [_since(before, now) for before, now in zip(self._before, await self._ask(), strict=True)]
        return Figures(_sum(done[1:]) if done[1:] else self._before[0], done[0])

    async def _ask(self) -> list[VersionNumbers]:
        answers = await asyncio.gather(*(h.health() for h in self._handles), return_exceptions=True)
        # A worker that does not answer adds nothing; that it is gone is for its health checks to find.
        known = self._before or [VersionNumbers()] * len(answers)
        return [
            _of(answer) if isinstance(answer, WorkerStatus) else last
            for answer, last in zip(answers, known, strict=True)
        ]


def _of(status: WorkerStatus) -> VersionNumbers:
    mean_s = status.busy_s / status.operations if status.operations else 0.0
    return VersionNumbers(status.operations, status.errors, mean_s)


def _since(before: VersionNumbers, now: VersionNumbers) -> VersionNumbers:
    operations = now.operations - before.operations
    if operations <= 0:
        return VersionNumbers()
    run_s = (now.run_s * now.operations - before.run_s * before.operations) / operations
    return VersionNumbers(operations, max(0, now.errors - before.errors), max(0.0, run_s))


def _sum(parts: Sequence[VersionNumbers]) -> VersionNumbers:
    operations = sum(part.operations for part in parts)
    run_s = sum(part.run_s * part.operations for part in parts)
    return VersionNumbers(
        operations, sum(part.errors for part in parts), run_s / operations if operations else 0.0
    )
