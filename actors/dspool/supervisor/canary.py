"""The trial of a new version on one worker: what the workers measured of both versions, and the verdict."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from dspool.core.lifecycle.canary import MIN_OPERATIONS, ROLLED_BACK, Verdict, judge
from dspool.errors import PoolError, ProgramError
from dspool.messages import JSON, VersionNumbers
from dspool.messages.versioned_pickle import Message
from dspool.supervisor.ports import Sleep, WorkerHandle, within
from dspool.telemetry.events import emit

log = logging.getLogger("dspool.supervisor")

ANSWER_S = 1.0
"""How long a worker may take to report its numbers."""
CHECK_EVERY_S = 0.25
QUIET_S = 2.0
"""After so long without an operation of the program there is nothing to wait for."""
MAX_SILENCES = 3
"""A canary that fails to answer so often in a row has a blocked event loop, probably by the new version."""


class Comparison(NamedTuple):
    """What both versions did since the trial began."""

    old: VersionNumbers
    new: VersionNumbers
    base: VersionNumbers
    """What the verdict takes for the version before: `old`, or if that is too little (the canary may be the only
    worker), all that it did since it was loaded."""
    idle: bool
    """No operation has used the program since the trial began."""


class Trial:
    """Compares two versions (old, new) of a program on the `workers()` that take traffic.

    Asks the workers themselves: that is exact, and works without metrics.
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
        self._baseline: dict[str, dict[int, VersionNumbers]] = {}
        self._latest: dict[str, dict[int, VersionNumbers]] = {}
        self._silences: dict[str, int] = {}

    async def begin(self) -> None:
        """Take the baseline: earlier operations do not count."""
        self._baseline = self._latest = await self._measure()

    async def watch(
        self,
        canary: WorkerHandle,
        longest_s: float,
        report: Callable[[Comparison, float, str], None],
    ) -> Verdict:
        """Compare until there is a verdict, go on or back; `report(comparison, watched_s, reason)` gets each."""
        began = self._clock()
        while True:
            compared = await self.compare()
            base, new, idle = compared.base, compared.new, compared.idle
            elapsed_s = self._clock() - began
            verdict = judge(base, new, time_over=elapsed_s >= longest_s or (idle and elapsed_s >= QUIET_S))
            if silences := self._silences.get(canary.worker_id, 0):
                verdict = Verdict("wait", "its canary has not answered")
            if silences >= MAX_SILENCES:
                verdict = Verdict("back", f"its canary {canary.worker_id} does not answer any more")
            if canary not in self._workers():
                verdict = Verdict("back", f"its canary {canary.worker_id} left the pool meanwhile")
            report(compared, elapsed_s, verdict.reason)
            if verdict.decision != "wait":
                return verdict
            await self._sleep(CHECK_EVERY_S)

    async def compare(self) -> Comparison:
        # The numbers of a worker that is gone by now still count.
        self._latest = {**self._latest, **await self._measure()}
        old, new = (self._since(version) for version in self._versions)
        idle = not (old.operations or old.running or new.operations or new.running)
        base = old
        if old.operations < MIN_OPERATIONS:
            first = self._versions[0]
            base = _sum(numbers[first] for numbers in self._latest.values() if first in numbers)
        return Comparison(old, new, base, idle)

    def _since(self, version: int) -> VersionNumbers:
        zero = VersionNumbers()
        return _sum(
            _difference(numbers[version], self._baseline.get(worker, {}).get(version, zero))
            for worker, numbers in self._latest.items()
            if version in numbers
        )

    async def _measure(self) -> dict[str, dict[int, VersionNumbers]]:
        handles = self._workers()
        answers = await asyncio.gather(
            *(within(ANSWER_S, handle.versions(self._program), self._sleep) for handle in handles),
            return_exceptions=True,
        )
        numbers = {}
        for handle, answer in zip(handles, answers, strict=True):
            if isinstance(answer, BaseException):
                self._silences[handle.worker_id] = self._silences.get(handle.worker_id, 0) + 1
            else:
                self._silences.pop(handle.worker_id, None)
                numbers[handle.worker_id] = answer
        return numbers


async def try_canary(
    pool: str, canary: WorkerHandle, trial: Trial, rollout: Rollout, clock: Callable[[], float]
) -> None:
    """Watch the canary's trial, for at most `rollout.canary_s`.

    Raises:
        ProgramError: the new version does worse than the one before.
    """
    began = clock()

    def note(compared: Comparison, watched_s: float, reason: str) -> None:
        rollout.old, rollout.new, rollout.reason = compared.old, compared.new, reason
        rollout.base = compared.base if compared.base != compared.old else None
        rollout.watched_s = round(watched_s, 3)

    verdict = await trial.watch(canary, rollout.canary_s, note)
    old = rollout.base or rollout.old or VersionNumbers()
    new = rollout.new or VersionNumbers()
    emit(
        "program.canary",
        {
            "duration_s": clock() - began,
            "operations": new.operations,
            "error_rate": new.error_rate,
            "run_s": new.least_s,
            "error_rate_before": old.error_rate,
            "run_s_before": old.run_s,
        },
        {
            "pool": pool,
            "program": rollout.program,
            "version": rollout.version,
            "worker": canary.worker_id,
            "action": verdict.decision,
            "reason": verdict.reason,
        },
    )
    if verdict.decision == "back":
        rollout.phase = "rolled back"
        raise ProgramError(
            f"version {rollout.version} of {rollout.program} was rolled back: {verdict.reason}",
            program=rollout.program,
            version=rollout.version,
            reason=verdict.reason,
            **{ROLLED_BACK: True},
        )


def _difference(now: VersionNumbers, before: VersionNumbers) -> VersionNumbers:
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


class Rollout(Message, Struct, kw_only=True):
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
    """Longest time of the trial."""
    watched_s: float = 0.0
    """How long the trial took: `old` and `new` are of this time."""
    old: VersionNumbers | None = None
    """What the version before did since the canary took the new one."""
    new: VersionNumbers | None = None
    base: VersionNumbers | None = None
    """What the verdict took for the version before, where `old` was too little: all that it did since it was loaded."""
    reason: str = ""
    kind: Literal["deploy", "rollback"] = "deploy"
    """`rollback`: an earlier version was asked for."""
    by: str = ""
    """The principal who asked; empty: nobody who has a name, or not for whoever reads it."""
    workers_done: int = 0
    workers_total: int = 0


MAX_ROLLOUTS = 50
LONGEST_REASON = 1000
"""Characters."""


class Rollouts:
    """The running rollout and the last ones that ended; `keep` gets them when one begins and when it ends."""

    def __init__(self, wall: Callable[[], float], keep: Callable[[JSON], object] = lambda rows: None) -> None:
        self._wall = wall
        self._keep = keep
        self._running: Rollout | None = None
        self._ended: deque[Rollout] = deque(maxlen=MAX_ROLLOUTS)

    def recent(self) -> list[Rollout]:
        """Newest first, the running one included."""
        running = [msgspec.structs.replace(self._running)] if self._running else []
        return [*running, *reversed(self._ended)]

    def restore(self, rows: JSON) -> None:
        """What was kept by the supervisor before; one that ran when that ended did not come to its end."""
        try:
            kept = msgspec.convert(rows or [], list[Rollout])
        except msgspec.ValidationError as unreadable:
            log.warning("recorded deployments of an earlier supervisor are not readable: %s", unreadable)
            return
        for rollout in reversed(kept):
            if rollout.ended_at is None:
                rollout.ended_at = self._wall()
                rollout.phase, rollout.reason = "failed", "the supervisor ended meanwhile"
            self._ended.append(rollout)

    @contextmanager
    def of(
        self, program: str, version: int, previous: int | None, phase: Phase, **about: Any
    ) -> Iterator[Rollout]:
        """Record a rollout until the block ends; it failed if the block raises."""
        rollout = self._running = Rollout(
            program=program, version=version, previous=previous, phase=phase, began_at=self._wall(), **about
        )
        self._keep(msgspec.to_builtins(self.recent()))
        try:
            yield rollout
        except BaseException as failed:
            if rollout.phase != "rolled back":
                rollout.phase = "failed"
                rollout.reason = failed.message if isinstance(failed, PoolError) else type(failed).__name__
            rollout.reason = rollout.reason[:LONGEST_REASON]
            raise
        else:
            rollout.phase = "done"
        finally:
            rollout.ended_at = self._wall()
            self._running = None
            self._ended.append(rollout)
            self._keep(msgspec.to_builtins(self.recent()))
