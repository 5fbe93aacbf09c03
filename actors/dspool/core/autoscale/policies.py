"""Which plan for keeping room is the cheapest that would have kept the wait objective?

How much room to keep beyond what runs now, and for how long, depends on the load: one worker more for a moment
suffices where load drifts, the size of the largest burst where bursts come out of silence. So each plan below
is followed in thought: what would it have cost, and how many operations would have come late to the workers
that it would have had warm? Knowing what each would have done costs nothing, as load does not depend on size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from dspool.core.autoscale.inputs import Peak, Score, SizingConfig, SizingInputs

BUDGET = 0.01
"""Share of operations that may wait longer than `max_wait_s`."""
MEMORY_S = 1800.0
"""Time constant of the memory of what plans cost and let be late."""
RECALL_S = 600.0
"""The largest peak of this time is what `Policy.floor` refers to."""
CREDIT_OPERATIONS = 300.0
"""Operations in time that every plan is credited with, so that the first late ones do not decide everything."""
LATE_COSTS_S = 20.0
"""When no plan keeps the budget: worker-seconds that one late operation less may cost."""
LATE_WHILE_SHORT = 0.7
"""Share of arrivals that come late while a plan has too few slots already; some find one that was just freed."""


class Policy(Struct, frozen=True):
    """Keep `factor` times the peak of the last `hold_s` and `spare` workers, and `floor` times the largest known
    peak."""

    hold_s: float
    factor: float
    spare: float
    floor: float

    def slots(self, peak: float, known_peak: float, slots_per_worker: int) -> float:
        return max(self.factor * peak + self.spare * slots_per_worker, self.floor * known_peak)

    def __str__(self) -> str:
        kept = f"{self.factor:g} x peak of {self.hold_s:g} s"
        kept += f" + {self.spare:g} workers" if self.spare else ""
        return kept + (f", at least {self.floor:g} x largest" if self.floor else "")


PLANS = (
    Policy(10.0, 0.8, 0.25, 0.0),
    Policy(10.0, 1.0, 0.25, 0.0),
    Policy(3.0, 1.25, 0.0, 0.0),
    Policy(1.0, 1.25, 0.5, 0.0),
    Policy(1.0, 0.8, 1.0, 0.0),
    Policy(1.0, 1.25, 0.75, 0.0),
    Policy(3.0, 2.0, 0.25, 0.0),
    Policy(10.0, 0.8, 2.0, 0.0),
    Policy(3.0, 1.0, 2.0, 0.0),
    Policy(40.0, 1.0, 2.0, 0.0),
    Policy(10.0, 0.8, 1.0, 0.75),
    Policy(3.0, 1.0, 0.75, 0.5),
    Policy(1.0, 2.0, 2.0, 0.5),
    Policy(10.0, 1.25, 2.0, 0.75),
    Policy(10.0, 2.0, 2.0, 1.0),
    Policy(40.0, 0.6, 0.5, 1.0),
    Policy(300.0, 1.0, 1.0, 1.0),
)
"""Found by searching 600 of them on fifteen synthetic loads for the few that come close to the best on each; the
last two by what they add on seventy loads (`benchmarks/studies/sizing/held_out.py`, seeds 1 to 5)."""
OPENING = Policy(30.0, 2.5, 0.0, 1.0)
"""Until there is something to judge by: a burst is expected to become larger than what came so far."""
OPENING_S = 15.0
"""How long that is."""


class Looked(NamedTuple):
    """What there was to see since the last look."""

    arrived: float
    started: float
    late: float
    demand: float
    demand_before: float
    elapsed_s: float


def judge(
    scores: Sequence[Score],
    looked: Looked,
    peaks: Sequence[Peak],
    base: float,
    config: SizingConfig,
    seen: SizingInputs,
    now: float,
) -> tuple[Score, ...]:
    """`scores` with what each plan would have done since the last look. `base`: slots that every plan keeps."""
    per_worker, fade = seen.slots_per_worker, math.exp(-looked.elapsed_s / MEMORY_S)
    # What is warm now had to be asked for one start ago, by what was known then.
    asked = now - seen.start_delay_s - config.interval_s
    warm_for, asked_now = RecentPeaks(peaks, asked), RecentPeaks(peaks, now)
    judged = []
    for plan, score in zip(PLANS, scores or (Score(),) * len(PLANS), strict=True):
        warm = per_worker * _workers(max(base, warm_for.slots(plan, per_worker)), per_worker, config)
        late = 0.0
        if looked.demand > warm:
            short = looked.demand_before > warm
            late = looked.arrived * (LATE_WHILE_SHORT if short else 1 - warm / looked.demand)
        workers = _workers(max(base, asked_now.slots(plan, per_worker)), per_worker, config)
        judged.append(Score(score.late * fade + late, score.worker_s * fade + workers * looked.elapsed_s))
    return tuple(judged)


def choose(scores: Sequence[Score], late: float, started: float) -> Policy:
    """The cheapest plan that keeps the budget, half of it judged by what really was late.

    Where none does, the one that is cheapest when each late operation costs `LATE_COSTS_S`.
    """
    allowed = BUDGET * (started + CREDIT_OPERATIONS)
    kept = [i for i, score in enumerate(scores) if (late + score.late) / 2 <= allowed]
    if kept:
        return PLANS[min(kept, key=lambda i: scores[i].worker_s)]
    return PLANS[min(range(len(scores)), key=lambda i: scores[i].worker_s + LATE_COSTS_S * scores[i].late)]


class RecentPeaks:
    """The peaks up to a moment."""

    def __init__(self, peaks: Iterable[Peak], until: float) -> None:
        self._peaks = [p for p in peaks if p.start <= until and p.end > until - RECALL_S]
        self._until = until
        self._of: dict[float, float] = {}

    def peak(self, span_s: float) -> float:
        """The largest of the last `span_s` seconds."""
        if span_s not in self._of:
            since = self._until - span_s - 1e-9
            largest = 0.0
            for peak in reversed(self._peaks):
                if peak.end < since:
                    break
                largest = max(largest, peak.slots)
            self._of[span_s] = largest
        return self._of[span_s]

    def slots(self, plan: Policy, slots_per_worker: int) -> float:
        return plan.slots(self.peak(plan.hold_s), self.peak(RECALL_S), slots_per_worker)


def _workers(slots: float, per_worker: int, config: SizingConfig) -> int:
    return min(config.max_size, max(config.min_size, math.ceil(slots / per_worker - 1e-9)))
