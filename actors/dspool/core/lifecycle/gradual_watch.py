"""What a change does that goes step by step, look by look: whether the new workers do worse than those before. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from msgspec import Struct

from dspool.core.lifecycle.canary import MIN_OPERATIONS, judge
from dspool.errors import ConfigError
from dspool.messages import PoolStatus, VersionNumbers, WorkerStatus

STEPS: Final = "10,50,100"
HOLD_S: Final = 60.0
OF_REPLACEMENT: Final = frozenset({"DspoolNoWarmSpare"})
"""Alerts about what every replacement of workers brings: they count once it is over."""


class Course(NamedTuple):
    """How to go."""

    steps: tuple[int, ...]
    """Percent of the operations; the last is 100."""
    hold_s: float
    """How long to look after each step but the last."""


def course_of(steps: str, hold_s: float) -> Course:
    """Raises: ConfigError: it is none; names the value."""
    found: list[int] = []
    for text in steps.split(","):
        percent = int(text) if text.strip().isascii() and text.strip().isdigit() else 0
        if not 1 <= percent <= 100:
            raise ConfigError(
                f"--steps: a whole number from 1 to 100, got {text.strip()[:40]!r}", key="steps"
            )
        found.append(percent)
    for one, following in itertools.pairwise(found):
        if following <= one:
            raise ConfigError(
                f"--steps: each must be more than the one before, got {one},{following}", key="steps"
            )
    if found[-1] != 100:
        raise ConfigError(f"--steps: the last must be 100, got {found[-1]}", key="steps")
    if not 0 < hold_s < float("inf"):
        raise ConfigError(f"--hold-s: must be more than 0, got {hold_s:g}", key="hold_s")
    return Course(tuple(found), hold_s)


class HeldAlert(NamedTuple):
    """An alert whose condition holds, whether it fires yet or not."""

    name: str
    value: float | None
    when: str

    def __str__(self) -> str:
        value = "" if self.value is None else f": {self.value:.4g}"
        return f"alert {self.name}{value} {self.when}"


class StepFacts(Struct, frozen=True, kw_only=True):
    """What one step of one pool was like."""

    pool: str
    percent: int
    workers_new: int
    workers_old: int
    held_s: float
    operations_new: int
    """Since the step began, as are the next three."""
    errors_new: int
    operations_old: int
    errors_old: int

    def __str__(self) -> str:
        new = f"{self.errors_new} of {self.operations_new} operations failed on the new workers"
        return f"{self.percent} %: {new}, {self.errors_old} of {self.operations_old} on those before"


class GradualWatch:
    """Looks at one pool. `before` it was so and had these `alerts`; `settings` is the mark of the new ones."""

    def __init__(self, before: PoolStatus, settings: str, *, alerts: Collection[str]) -> None:
        self._pool, self._settings = before.name, settings
        self._old_ids = frozenset(worker.id for worker in before.workers)
        self._alerts_before = frozenset(alerts)
        self._new: set[str] = set()
        self._counts: dict[str, tuple[int, int]] = {}
        """Operations and errors of each worker, those that are gone as they were last seen."""
        self._at_start: dict[str, tuple[int, int]] = {}
        self._last: frozenset[str] = frozenset()
        self._status = before
        self._percent, self._began = 0, 0.0
        for worker in before.workers:
            self._count(worker)

    def begin(self, percent: int, now: float) -> None:
        """A step begins: what was before does not count for it."""
        self._percent, self._began = percent, now
        self._at_start = dict(self._counts)

    def look(
        self, status: PoolStatus, held: Iterable[HeldAlert], *, replaced: bool, time_over: bool = False
    ) -> str:
        """Why to go back; empty: no reason yet. `replaced`: all workers of this step are there.

        An alert has to hold twice in a row, and not to have held before the change.
        """
        self._status = status
        for worker in status.workers:
            self._count(worker)
        for gone in status.ended:
            if not gone.expected and gone.id not in self._old_ids:
                return f"worker {gone.id}, which had the new settings, failed: {gone.cause}"
        skipped = self._alerts_before if replaced else self._alerts_before | OF_REPLACEMENT
        standing = {one.name: one for one in held if one.name not in skipped}
        twice = [one for name, one in standing.items() if name in self._last]
        self._last = frozenset(standing)
        if twice:
            return "; ".join(str(one) for one in twice)
        verdict = judge(self._base(), self._since(new=True), time_over=time_over)
        return f"the new workers did worse: {verdict.reason}" if verdict.decision == "back" else ""

    def facts(self, now: float) -> StepFacts:
        """The step so far."""
        new, old = self._since(new=True), self._since(new=False)
        ready = [w for w in self._status.workers if w.state == "ready"]
        count = sum(w.id in self._new for w in ready)
        return StepFacts(
            pool=self._pool,
            percent=self._percent,
            workers_new=count,
            workers_old=len(ready) - count,
            held_s=round(now - self._began, 3),
            operations_new=new.operations,
            errors_new=new.errors,
            operations_old=old.operations,
            errors_old=old.errors,
        )

    def _count(self, worker: WorkerStatus) -> None:
        if worker.settings == self._settings:
            self._new.add(worker.id)
        self._counts[worker.id] = (worker.operations, worker.errors)

    def _base(self) -> VersionNumbers:
        """What the workers before did in this step, or, if that is too little, in all their time."""
        old = self._since(new=False)
        return old if old.operations >= MIN_OPERATIONS else self._sum(new=False, since={})

    def _since(self, *, new: bool) -> VersionNumbers:
        return self._sum(new=new, since=self._at_start)

    def _sum(self, *, new: bool, since: dict[str, tuple[int, int]]) -> VersionNumbers:
        # Not their run times: sessions stay where they are, so both do different work.
        operations = errors = 0
        for worker, (ended, failed) in self._counts.items():
            if (worker in self._new) is new:
                ended_before, failed_before = since.get(worker, (0, 0))
                operations += ended - ended_before
                errors += failed - failed_before
        return VersionNumbers(operations, errors)


__all__ = ["HOLD_S", "STEPS", "Course", "GradualWatch", "HeldAlert", "StepFacts", "course_of"]
