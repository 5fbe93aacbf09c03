"""Who decides the size of a simulated pool: the pool's own sizing, or nobody."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dspool.core.autoscale.inputs import Decision, SizingConfig, SizingInputs, SizingState, Window
from dspool.core.autoscale.policies import BUDGET, Policy
from dspool.core.autoscale.simulation import STEP_S, PoolModel, Sample, SimulatedRun, View, simulate
from dspool.core.autoscale.sizing import decide


@dataclass
class AutomaticSizer:
    """`dspool.core.autoscale.sizing.decide` itself."""

    pool: PoolModel
    config: SizingConfig
    name: str = "dspool"
    initial_size: int | None = None
    follow: Policy | None = None
    """One policy for the whole run, instead of the cheapest so far."""
    decisions: list[Decision] = field(default_factory=list)
    state: SizingState = field(default_factory=SizingState)

    @property
    def interval_s(self) -> float:
        return self.config.interval_s

    def decide(self, view: View) -> tuple[int, int]:
        pool = self.pool
        seen = SizingInputs(
            age_s=STEP_S if view.samples else None,
            slots_per_worker=pool.slots,
            desired=view.desired,
            actual=view.ready,
            starting=view.starting,
            overflow=view.overflow,
            running=view.running,
            queued=view.queued,
            oldest_wait_s=view.oldest_wait_s,
            start_delay_s=pool.start_delay_s,
            short=window(recent(view, self.config.short_window_s)),
            long=window(recent(view, self.config.long_window_s)),
        )
        decision, self.state = decide(self.config, seen, self.state, now=view.now, follow=self.follow)
        self.decisions.append(decision)
        return decision.target, decision.overflow


@dataclass
class ConstantSizer:
    """One size for the whole run."""

    size: int
    name: str = "constant"
    interval_s: float = 60.0

    @property
    def initial_size(self) -> int | None:
        return self.size

    def decide(self, view: View) -> tuple[int, int]:
        return self.size, 0


def smallest_constant(
    arrivals: Sequence[float], services: Sequence[float], pool: PoolModel
) -> SimulatedRun | None:
    """The run of the smallest constant size with at most `BUDGET` late, which nobody knows beforehand.

    None where `pool.max_size` is too few.
    """
    low, high, found = max(1, pool.min_size), pool.max_size, None
    while low <= high:
        size = (low + high) // 2
        run = simulate(arrivals, services, ConstantSizer(size), pool)
        if run.over_pct <= 100 * BUDGET:
            found, high = run, size - 1
        else:
            low = size + 1
    return found


def recent(view: View, span_s: float) -> list[Sample]:
    """The samples of the last `span_s` seconds, newest first."""
    return list(itertools.islice(reversed(view.samples), round(span_s / STEP_S)))


def window(samples: Iterable[Sample]) -> Window:
    """The `Window` that the metrics would report for these samples."""
    span = busy = run = 0.0
    arrivals = finished = peak = over = started = 0
    for s in samples:
        span += STEP_S
        busy += s.busy_s
        run += s.run_s
        arrivals += s.arrivals
        finished += s.finished
        over += s.over
        started += s.started
        if s.peak > peak:
            peak = s.peak
    return Window(
        span_s=span, arrivals=arrivals, finished=finished, busy_slot_s=busy, run_s=run, peak_demand=peak,
        started=started, over_wait=over,
    )  # fmt: skip
