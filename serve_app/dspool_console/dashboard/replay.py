"""The load of the last hour once more through the sizing policy, second by second: plain code, without any clock.

History has seconds, not operations, so the load is replayed as a flow: so many operations a second come in, each takes
as long as it took then, and what finds no slot waits. That shows how the policy follows the load and what waiting the
size would have caused; bursts within a second, sessions and the speed of a larger pool it cannot show. Both the pool's
own bounds and the others go through the same flow, so that they can be compared. What waited although the flow says
that slots were free (a burst within a second, a session whose operations come one by one) is measured and added: no
bounds are shown to have less of it than there was, but for slots that are added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from msgspec import Struct

from dspool.core.autoscale.inputs import SizingConfig, SizingInputs, SizingState, Window
from dspool.core.autoscale.sizing import decide

STEPS: Final = 900
"""As many as an hour has at 4 s; shorter ranges are replayed in finer steps."""
WAITS: Final = ("wait_mean_s", "wait_p95_s", "wait_p99_s")


class MeasuredWait(NamedTuple):
    mean_s: float
    p95_s: float
    p99_s: float

    def late(self, goal_s: float) -> float:
        """The least share of operations that must have waited longer than `goal_s`."""
        if self.p99_s <= goal_s:
            return 0.0
        if self.p95_s <= goal_s:
            return 0.01
        return 0.5 if self.mean_s > goal_s else 0.05


class ReplayLoad(NamedTuple):
    """What happened in each step."""

    at: Sequence[float]
    arrivals_per_s: Sequence[float]
    service_s: Sequence[float]
    size: Sequence[float]
    """The size that the pool really had."""
    step_s: float
    waits: Sequence[MeasuredWait] = ()
    """What operations really waited; empty: nobody measured it."""


class ReplayRun(Struct):
    """One replay, step by step."""

    size: list[int]
    wait_s: list[float]
    utilization: list[float]
    resizes: int = 0
    late: float = 0.0
    """Operations that waited longer than the goal."""
    operations: float = 0.0


def load_of(
    at: Sequence[float], columns: dict[str, Sequence[float | None]], resolution_s: float
) -> ReplayLoad:
    """The load by steps, from the columns of history.

    Busy slots are utilization x slots there were, so `columns["slots"]` are those; arrivals are what ended.
    """
    each = max(1, math.ceil(len(at) / STEPS))
    count = len(at) // each
    times, arrivals, services, sizes = [], [], [], []
    waits: list[MeasuredWait] = []
    service = 0.0
    for step in range(count):
        rows = range(step * each, (step + 1) * each)
        seconds = each * resolution_s
        ended = sum(columns["operations"][row] or 0.0 for row in rows)
        busy = (
            sum((columns["utilization"][row] or 0.0) * (columns["slots"][row] or 0.0) for row in rows) / each
        )
        # Nothing ended: what runs takes as long as what ran before.
        service = busy * seconds / ended if ended else service
        rate = ended / seconds if ended else (busy / service if service else 0.0)
        times.append(at[rows[-1]])
        arrivals.append(rate)
        services.append(service)
        sizes.append(max(columns["size"][row] or 0.0 for row in rows))
        if all(name in columns for name in WAITS):
            waits.append(
                MeasuredWait(
                    *(
                        sum((columns["operations"][row] or 0.0) * (columns[name][row] or 0.0) for row in rows)
                        / (ended or 1.0)
                        for name in WAITS
                    )
                )
            )
    return ReplayLoad(times, arrivals, services, sizes, each * resolution_s, waits)


def late_share(load: ReplayLoad, goal_s: float) -> float | None:
    """The share of operations that waited longer than the goal, as it was measured."""
    came = sum(load.arrivals_per_s)
    if not load.waits or not came:
        return None
    late = sum(rate * wait.late(goal_s) for rate, wait in zip(load.arrivals_per_s, load.waits, strict=True))
    return round(late / came, 5)


class _ReplayWorkers:
    """Workers of one kind: those that are warm, and when those on their way will be."""

    def __init__(self, warm: int) -> None:
        self.warm = warm
        self._coming: list[float] = []

    @property
    def wanted(self) -> int:
        return self.warm + len(self._coming)

    def arrive(self, now: float) -> None:
        late = [at for at in self._coming if at > now]
        self.warm += len(self._coming) - len(late)
        self._coming = late

    def want(self, number: int, warm_at: float) -> None:
        """Those that are not warm yet are the first to be given up."""
        self._coming = [*self._coming, *[warm_at] * (number - self.wanted)][: max(0, number - self.warm)]
        self.warm = min(self.warm, number)


class Replay:
    """One run of the policy over a load."""

    def __init__(
        self, config: SizingConfig, load: ReplayLoad, *, slots_per_worker: int, start_delay_s: float
    ) -> None:
        self.config = config
        self._load, self._slots, self._start_delay_s = load, slots_per_worker, start_delay_s
        first = round(load.size[0]) if load.size else config.min_size
        self._base = _ReplayWorkers(min(config.max_size, max(config.min_size, first)))
        self._extra = _ReplayWorkers(0)
        self._queue = 0.0
        self._state = SizingState()
        self._seconds: list[Window] = []
        self.run = ReplayRun([], [], [])

    def whole(self) -> ReplayRun:
        for step in range(len(self._load.at)):
            self._step(step)
        return self.run

    def _step(self, step: int) -> None:
        load, now = self._load, step * self._load.step_s
        rate, service, step_s = load.arrivals_per_s[step], load.service_s[step], load.step_s
        self._base.arrive(now)
        self._extra.arrive(now)
        size = self._base.warm + self._extra.warm
        have = size * self._slots
        capacity = have * step_s / service if service > 0 else math.inf
        came = rate * step_s
        done = min(self._queue + came, capacity)
        queued = max(0.0, self._queue + came - capacity)
        wait = (self._queue + queued) / 2 / (capacity / step_s) if capacity and queued else 0.0
        if service > 0 and have and not queued:
            wait = _erlang_wait(rate * service, have, service)
        flow_late = came if wait > self.config.max_wait_s else 0.0
        extra_s, extra_late = self._beyond_the_flow(step, have)
        wait += extra_s
        self._queue = queued
        busy = min(float(have), done * service / step_s)
        late = max(flow_late, came * extra_late)
        run = self.run
        run.size.append(size)
        run.wait_s.append(wait)
        run.utilization.append(busy / have if have else 0.0)
        run.late += late
        run.operations += came
        self._decide(now, came, done, busy, service, wait, late)

    def _beyond_the_flow(self, step: int, have: int) -> tuple[float, float]:
        """(seconds, share that was late) that operations waited longer than a flow through the real size explains."""
        load = self._load
        if not load.waits:
            return 0.0, 0.0
        measured = load.waits[step]
        real, service = round(load.size[step]) * self._slots, load.service_s[step]
        rate = load.arrivals_per_s[step]
        explained = (
            _erlang_wait(rate * service, real, service) if real and rate * service < real else math.inf
        )
        share = min(1.0, real / have) if have else 1.0
        return max(0.0, measured.mean_s - explained) * share, measured.late(self.config.max_wait_s) * share

    def _decide(
        self, now: float, came: float, done: float, busy: float, service: float, wait: float, late: float
    ) -> None:
        window = Window(
            span_s=self._load.step_s,
            arrivals=round(came),
            finished=round(done),
            busy_slot_s=busy * self._load.step_s,
            run_s=done * service,
            peak_demand=math.ceil(busy + self._queue),
            started=round(done),
            over_wait=round(late),
            wait_p99_s=wait,
        )
        self._seconds.append(window)
        self._seconds = self._seconds[-max(1, round(self.config.long_window_s / self._load.step_s)) :]
        seen = SizingInputs(
            age_s=0.0,
            slots_per_worker=self._slots,
            desired=self._base.wanted,
            actual=self._base.warm,
            starting=self._base.wanted - self._base.warm,
            overflow=self._extra.wanted,
            running=round(busy),
            queued=round(self._queue),
            oldest_wait_s=wait if self._queue else 0.0,
            start_delay_s=self._start_delay_s,
            short=window,
            long=_together(self._seconds),
        )
        decision, self._state = decide(self.config, seen, self._state, now=now)
        self.run.resizes += decision.target != self._base.wanted
        self._base.want(decision.target, now + self._start_delay_s)
        self._extra.want(decision.overflow, now + self._start_delay_s)


def summary(run: ReplayRun, step_s: float) -> dict[str, Any]:
    """The replay in few figures."""
    hours = step_s / 3600
    steps = max(1, len(run.size))
    return {
        "worker_hours": round(sum(run.size) * hours, 3),
        "mean_size": round(sum(run.size) / steps, 2),
        "max_size": max(run.size, default=0),
        "resizes": run.resizes,
        "late_share": round(run.late / run.operations, 5) if run.operations else 0.0,
        "utilization": round(sum(run.utilization) / steps, 4),
    }


def _together(windows: Sequence[Window]) -> Window:
    return Window(
        span_s=sum(one.span_s for one in windows),
        arrivals=sum(one.arrivals for one in windows),
        finished=sum(one.finished for one in windows),
        busy_slot_s=sum(one.busy_slot_s for one in windows),
        run_s=sum(one.run_s for one in windows),
        peak_demand=max(one.peak_demand for one in windows),
        started=sum(one.started for one in windows),
        over_wait=sum(one.over_wait for one in windows),
        wait_p99_s=max(one.wait_p99_s for one in windows),
    )


def _erlang_wait(load: float, slots: int, service_s: float) -> float:
    """The mean wait in an M/M/c system of this load; the flow alone knows no waiting below full use."""
    if load <= 0 or load >= slots:
        return 0.0
    blocked = 1.0
    for slot in range(1, slots + 1):
        blocked = load * blocked / (slot + load * blocked)
        if blocked < 1e-9 and slot > load:
            return 0.0
    waits = blocked / (1 - (load / slots) * (1 - blocked))
    return waits * service_s / (slots - load)


__all__ = [
    "STEPS",
    "WAITS",
    "MeasuredWait",
    "Replay",
    "ReplayLoad",
    "ReplayRun",
    "late_share",
    "load_of",
    "summary",
]
