"""The steps of a start: what each waits for, how long it may take, and where the time went."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

SAY_AFTER_S = 5.0
"""Then, and as often, it is said what is waited for."""
RETRY_SHARE = 0.5
"""A step that another's program gave up is tried once more while this share of its time is left."""


class StartStep(Struct, frozen=True):
    """One step. `name` is a word for logs and programs; `what` says what it waits for, for people."""

    name: str
    what: str
    log: str = ""
    """Where to look when it fails: a name, or a part of one, among the logs of Ray."""
    repeatable: bool = False
    """Whether it may be begun again after it failed."""
    keeps_time: bool = False
    """It ends by itself when its time is up, and says more of why than could be said here."""


class StepTiming(Struct, frozen=True):
    """When a step began, in seconds after the start, and how long it took."""

    step: str
    began_s: float
    took_s: float


class StartSteps:
    """The steps of one start, as they begin and end. Each may take `limit_s`."""

    def __init__(self, limit_s: float, *, now: float) -> None:
        self.limit_s = limit_s
        self._start = now
        self._running: dict[str, tuple[StartStep, float]] = {}
        self._ended: list[StepTiming] = []

    def begin(self, step: StartStep, *, now: float) -> None:
        self._running[step.name] = (step, now)

    def end(self, step: StartStep, *, now: float) -> None:
        """It succeeded, or failed for good."""
        _, began = self._running.pop(step.name)
        self._ended.append(StepTiming(step.name, began - self._start, now - began))

    def left_s(self, step: StartStep, *, now: float) -> float:
        """How long it may still take."""
        _, began = self._running[step.name]
        return max(0.0, began + self.limit_s - now)

    def may_repeat(self, step: StartStep, attempt: int, *, now: float) -> bool:
        """Whether it is tried again after its `attempt` (from 1) ended because somebody gave up early."""
        return step.repeatable and attempt == 1 and self.left_s(step, now=now) >= RETRY_SHARE * self.limit_s

    def waiting(self, *, now: float) -> list[str]:
        """What is waited for, and since when, for people."""
        return [
            f"waiting for {step.what}: {now - began:.0f} s of at most {self.limit_s:g} s"
            for step, began in self._running.values()
        ]

    def timings(self) -> list[StepTiming]:
        """The ended steps in the order in which they began."""
        return sorted(self._ended, key=lambda timing: timing.began_s)


def timings_text(timings: Iterable[StepTiming]) -> str:
    """Where the time went, for people: a bar for each step, on one scale."""
    rows = list(timings)
    whole = max((row.began_s + row.took_s for row in rows), default=0.0) or 1.0
    width = max((len(row.step) for row in rows), default=0)
    lines = []
    for row in rows:
        first, last = round(40 * row.began_s / whole), round(40 * (row.began_s + row.took_s) / whole)
        bar = " " * first + "#" * max(1, last - first)
        lines.append(f"{row.step:{width}}  {row.took_s:6.2f} s  {bar}".rstrip())
    return "\n".join(lines)


__all__ = ["RETRY_SHARE", "StartStep", "StartSteps", "StepTiming", "timings_text"]
