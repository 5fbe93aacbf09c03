"""For how much of simulated hours the pool's own policy holds its utilization within 60-80 %: for `benchmarks.targets`,
which measures the same on a real pool, too."""

from __future__ import annotations

import math
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

from benchmarks.studies.sizing import workloads
from benchmarks.studies.sizing.policies import erlang_static
from dspool.core.autoscale.inputs import SizingConfig
from dspool.core.autoscale.simulation import STEP_S, PoolModel, View, simulate
from dspool.core.autoscale.sizers import AutomaticSizer

LOW, HIGH = 0.6, 0.8
WINDOW_S = 60.0
"""A minute: the beat of the seed's optimizer."""
CASES = (
    ("steady", 1, 1.0, 5),
    ("steady", 4, 1.0, 5),
    ("diurnal", 1, 1.0, 5),
    ("diurnal", 8, 1.0, 3),
    ("diurnal", 8, 6.0, 2),
)
"""Workload, how many of it at once, hours, seeds. A sine falls to a sixth of its mean: only a large one has enough
busy slots at the bottom for a size that is within the band and keeps waits short. The workload presses a day into the
hours: in one, the load grows by a sixth in half a minute, in six by a fortieth."""
QUICK_CASES = (("steady", 4, 0.25, 1), ("diurnal", 1, 0.25, 1))


@dataclass
class Watched:
    """A policy, and what it saw: (end, busy slot-seconds, slot-seconds in service) of each of its intervals."""

    policy: AutomaticSizer
    seen: list[tuple[float, float, float]] = field(default_factory=list)
    name: str = "dspool"
    initial_size: int | None = None

    @property
    def interval_s(self) -> float:
        return self.policy.interval_s

    def decide(self, view: View) -> tuple[int, int]:
        steps, slots = max(1, round(self.interval_s / STEP_S)), self.policy.pool.slots
        busy = sum(sample.busy_s for sample in list(view.samples)[-steps:])
        self.seen.append((view.now, busy, (view.ready + view.overflow) * slots * steps * STEP_S))
        return self.policy.decide(view)


@dataclass(frozen=True)
class Minute:
    utilization: float
    busy_slots: float
    """Mean."""

    def reachable(self, slots: int) -> bool:
        """Whether any whole number of workers would be within the band: with few busy slots none is."""
        most = math.ceil(self.busy_slots / slots / LOW) + 1
        return any(LOW <= self.busy_slots / slots / workers <= HIGH for workers in range(1, most + 1))


def minutes(seen: list[tuple[float, float, float]], skip_s: float) -> list[Minute]:
    """The whole minutes after `skip_s`."""
    sums: dict[int, list[float]] = {}
    for end, busy, capacity in seen:
        if end > skip_s:
            minute = sums.setdefault(math.ceil((end - skip_s) / WINDOW_S - 1e-9), [0.0, 0.0])
            minute[0] += busy
            minute[1] += capacity
    whole = [sums[number] for number in sorted(sums)[:-1]]
    return [Minute(busy / capacity, busy / WINDOW_S) for busy, capacity in whole if capacity]


def within(utilizations: list[float]) -> float:
    """Per cent of them within the band."""
    return 100 * sum(LOW <= one <= HIGH for one in utilizations) / max(1, len(utilizations))


@dataclass(frozen=True)
class Share:
    """Per cent of minutes within the band, one figure a seed."""

    workload: str
    times: int
    hours: float
    busy_slots: float
    possible: bool
    """Of those minutes only in which a whole number of workers can be within it."""
    shares: list[float]
    minutes: int

    @property
    def name(self) -> str:
        span = "" if self.hours <= 1 else f"_{self.hours:g}h"
        suffix = "_where_possible" if self.possible else ""
        return f"time_within_60_80_{self.workload}_x{self.times}{span}{suffix}"


def simulated(quick: bool) -> list[Share]:
    """Each seed is a run of its own; on all processors, as nothing is timed."""
    cases = QUICK_CASES if quick else CASES
    runs = [(name, times, hours, seed) for name, times, hours, seeds in cases for seed in range(1, seeds + 1)]
    # The long ones first, so that no processor is left with one of them at the end.
    runs.sort(key=lambda run: -run[1] * run[2])
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes:
        seen = dict(zip(runs, processes.map(_run, *zip(*runs, strict=True)), strict=True))
    found = []
    for name, times, hours, _ in cases:
        of_case = [one for run, one in seen.items() if run[:3] == (name, times, hours)]
        busy = sum(minute.busy_slots for one in of_case for minute in one) / sum(map(len, of_case))
        for possible in (False, True):
            kept = [
                [one.utilization for one in run if not possible or one.reachable(PoolModel().slots)]
                for run in of_case
            ]
            shares = [round(within(utilizations), 1) for utilizations in kept]
            found.append(Share(name, times, hours, busy, possible, shares, sum(map(len, kept))))
    return found


def _run(name: str, times: int, hours: float, seed: int) -> list[Minute]:
    """`times` such workloads at once, under the pool's own policy."""
    make = getattr(workloads, name)
    parts = [make(3600 * hours, service_s=0.5, seed=100 * seed + part) for part in range(times)]
    operations = sorted(pair for work in parts for pair in zip(work.arrivals, work.services, strict=True))
    arrivals, services = [at for at, _ in operations], [service for _, service in operations]
    pool = PoolModel()
    start = erlang_static(len(arrivals) / arrivals[-1], sum(services) / len(services), pool)
    pool = replace(pool, initial_size=start.size)
    config = SizingConfig(min_size=pool.min_size, max_size=pool.max_size, max_wait_s=pool.max_wait_s)
    watched = Watched(AutomaticSizer(pool, config))
    simulate(arrivals, services, watched, pool)
    return minutes(watched.seen, 300.0)
