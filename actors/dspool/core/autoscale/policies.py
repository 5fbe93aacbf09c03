"""Which policy for keeping room is the cheapest that would have kept the wait objective?

How much room to keep beyond what runs now, and for how long, depends on the load: one worker more for a moment
suffices where load drifts, the size of the largest burst where bursts come out of silence. So `judge` follows
each policy below in thought: what would it have cost, and how many operations would have come late to the workers
that it would have had warm? That costs nothing, as load does not depend on size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from dspool.core.autoscale.inputs import Peak, Score, SizingConfig, SizingInputs
from dspool.core.wording import counted

BUDGET = 0.01
"""Share of operations that may wait longer than `max_wait_s`."""
MEMORY_S = 1800.0
"""Time constant of the memory of what policies cost and how much came late."""
RECALL_S = 600.0
"""`Policy.floor` refers to the largest peak of this time."""
CREDIT_OPERATIONS = 300.0
"""Operations in time as every policy's credit, so that the first late ones do not decide everything."""
LATE_COSTS_S = 20.0
"""When no policy keeps the budget: the worker-seconds that one late operation costs."""
LATE_WITHIN_BUDGET_COSTS_S = 1.0
"""The same among the policies that keep it: to come close to the budget must save something."""
LATE_WHILE_SHORT = 0.7
"""Share of arrivals that come late while a policy has too few slots already; some find one that was just freed."""


class Policy(Struct, frozen=True):
    """Keep `factor` times the peak of the last `hold_s` and `spare` workers, and `floor` times the largest known
    peak; without `headroom`, trust that instead of what Erlang C says of Poisson arrivals."""

    hold_s: float
    factor: float
    spare: float
    floor: float
    headroom: bool = True

    def slots(self, peak: float, known_peak: float, slots_per_worker: int) -> float:
        return max(self.factor * peak + self.spare * slots_per_worker, self.floor * known_peak)

    def __str__(self) -> str:
        text = f"{self.factor:g} x peak of {self.hold_s:g} s"
        text += f" + {counted(self.spare, 'worker')}" if self.spare else ""
        return text + (f", at least {self.floor:g} x largest" if self.floor else "")


POLICIES = (
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
    Policy(10.0, 0.8, 0.0, 0.0, headroom=False),
    Policy(10.0, 1.0, 0.0, 0.0, headroom=False),
)
"""A search of 600 on fifteen synthetic loads found these few that come close to the best on each; the last two with
head-room add most on seventy loads (`benchmarks/studies/sizing/held_out.py`, seeds 1 to 5)."""
OPENING = Policy(30.0, 2.5, 0.0, 1.0)
"""At first, with nothing to judge by: expects a burst to grow beyond what came so far."""
OPENING_S = 15.0
"""How long to follow `OPENING`."""
OPENING_LOAD = 0.625
"""Only once the need is this share of the slots: a pool that starts large enough does not grow for nothing."""


class LoadSample(NamedTuple):
    """The load since the last call."""

    arrived: float
    started: float
    late: float
    demand: float
    demand_before: float
    slots_before: int
    elapsed_s: float


def judge(
    scores: Sequence[Score],
    sample: LoadSample,
    peaks: Sequence[Peak],
    utilization: float,
    headroom: float,
    leave_s: float,
    config: SizingConfig,
    inputs: SizingInputs,
    now: float,
) -> tuple[Score, ...]:
    """`scores` with what each policy would have done since the last call.

    `utilization` and `headroom`: slots that policies keep in any case. `leave_s`: how long a worker that goes is
    still paid for.
    """
    per_worker, fade = inputs.slots_per_worker, math.exp(-sample.elapsed_s / MEMORY_S)
    if len(scores) != len(POLICIES):  # the first call, or the state of a version with other policies
        scores = (Score(),) * len(POLICIES)
    # What is warm now was ordered one start ago, by the peaks known then.
    order_time = now - inputs.start_delay_s - config.interval_s
    for_warm, for_new = RecentPeaks(peaks, order_time), RecentPeaks(peaks, now)
    totals = []
    for policy, score in zip(POLICIES, scores, strict=True):
        least = max(utilization, headroom) if policy.headroom else utilization
        warm = per_worker * _workers(max(least, for_warm.slots(policy, per_worker)), per_worker, config)
        late = 0.0
        if sample.demand > warm:
            short = sample.demand_before > warm
            late = sample.arrived * (LATE_WHILE_SHORT if short else 1 - warm / sample.demand)
        if warm <= sample.slots_before:  # with no more than the pool had, no fewer would have come late
            late = max(late, sample.late)
        workers = _workers(max(least, for_new.slots(policy, per_worker)), per_worker, config)
        paid_s = workers * sample.elapsed_s + max(0, score.workers - workers) * leave_s
        totals.append(Score(score.late * fade + late, score.worker_s * fade + paid_s, workers))
    return tuple(totals)


def choose(scores: Sequence[Score], late: float, started: float) -> Policy:
    """The cheapest policy that keeps the budget; what really came late counts half.

    A late operation has a price, a high one where no policy keeps the budget. Head-room is given up only once the
    credit is no longer most of what is known.
    """
    allowed = BUDGET * (started + CREDIT_OPERATIONS)
    keep = [
        i
        for i, (policy, score) in enumerate(zip(POLICIES, scores, strict=True))
        if (late + score.late) / 2 <= allowed and (policy.headroom or started >= CREDIT_OPERATIONS)
    ]
    price_s = LATE_WITHIN_BUDGET_COSTS_S if keep else LATE_COSTS_S
    return POLICIES[
        min(keep or range(len(scores)), key=lambda i: scores[i].worker_s + price_s * scores[i].late)
    ]


class RecentPeaks:
    """The peaks up to a moment."""

    def __init__(self, peaks: Iterable[Peak], until: float) -> None:
        self._peaks = [p for p in peaks if p.start <= until and p.end > until - RECALL_S]
        self._until = until
        self._by_span: dict[float, float] = {}

    def peak(self, span_s: float) -> float:
        """The largest of the last `span_s` seconds."""
        if span_s not in self._by_span:
            since = self._until - span_s - 1e-9
            largest = 0.0
            for peak in reversed(self._peaks):
                if peak.end < since:
                    break
                largest = max(largest, peak.slots)
            self._by_span[span_s] = largest
        return self._by_span[span_s]

    def slots(self, policy: Policy, slots_per_worker: int) -> float:
        return policy.slots(self.peak(policy.hold_s), self.peak(RECALL_S), slots_per_worker)


def _workers(slots: float, per_worker: int, config: SizingConfig) -> int:
    return min(config.max_size, max(config.min_size, math.ceil(slots / per_worker - 1e-9)))
