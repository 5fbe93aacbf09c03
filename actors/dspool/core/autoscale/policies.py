"""Which policy for keeping room is worth its price?

How much room to keep beyond what runs now, and for how long, depends on the load: half a worker for a moment
suffices where load drifts, the size of the largest burst where bursts come out of silence. So `judge` follows
each policy below in thought: what would it have cost, and how many operations would have come late to the workers
that it would have had warm? That costs nothing, as load does not depend on size. `choose` gives late operations
a price that rises with the share that came late in truth, and follows the policy that is cheapest at it.
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
LATE_COSTS_S = 10.0
"""Worker-seconds that a late operation is worth while just BUDGET of them are late; in proportion at other shares."""
PRIOR_OPERATIONS = 300.0
"""The price begins as if so many operations had been seen, BUDGET of them late."""
PRIOR_S = 200.0
"""A policy begins as if what it spares had been idle for so long: it must save something before it is followed."""
MEMORY_S = 1800.0
"""Time constant of the memory of what policies cost and how much came late."""


class Policy(Struct, frozen=True):
    """Keep the peak of the last `hold_s` seconds and `spare` workers, or fewer than the peak if that is negative."""

    hold_s: float
    spare: float

    def __str__(self) -> str:
        text, sign = f"peak of {self.hold_s:g} s", "-" if self.spare < 0 else "+"
        return f"{text} {sign} {counted(abs(self.spare), 'worker')}" if self.spare else text


POLICIES = tuple(
    Policy(hold_s, spare) for hold_s in (3.0, 30.0, 100.0) for spare in (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
)


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
    least: float,
    keep_s: float,
    config: SizingConfig,
    inputs: SizingInputs,
    now: float,
) -> tuple[Score, ...]:
    """`scores` with what each policy would have done since the last call.

    `least`: slots that every policy keeps. `keep_s`: how long every policy keeps a worker that is not needed.
    """
    per_worker, fade = inputs.slots_per_worker, math.exp(-sample.elapsed_s / MEMORY_S)
    if len(scores) != len(POLICIES):  # the first call, or the state of a version with other policies
        scores = tuple(Score(worker_s=policy.spare * PRIOR_S) for policy in POLICIES)
    # What is warm now was ordered one start ago, by the peaks known then.
    order_time = now - inputs.start_delay_s - config.interval_s
    known = {}
    for hold_s in {policy.hold_s for policy in POLICIES}:
        span_s = max(hold_s, keep_s)
        known[hold_s] = largest(peaks, span_s, order_time), largest(peaks, span_s, now)
    totals = []
    for policy, score in zip(POLICIES, scores, strict=True):
        warm, ordered = (
            _workers(max(least, peak + policy.spare * per_worker), per_worker, config)
            for peak in known[policy.hold_s]
        )
        slots, late = warm * per_worker, 0.0
        if sample.demand > slots:
            # To a policy that is short already, all come late: what waits is before them.
            late = sample.arrived * (1.0 if sample.demand_before > slots else 1 - slots / sample.demand)
        if slots <= sample.slots_before:  # with no more than the pool had, no fewer would have come late
            late = max(late, sample.late)
        totals.append(Score(score.late * fade + late, score.worker_s * fade + ordered * sample.elapsed_s))
    return tuple(totals)


def choose(scores: Sequence[Score], late: float, started: float) -> Policy:
    """The policy that is cheapest in worker-seconds and late operations. `late` of `started` came late in truth."""
    share = (late + BUDGET * PRIOR_OPERATIONS) / (started + PRIOR_OPERATIONS)
    price_s = LATE_COSTS_S * share / BUDGET
    return min(
        zip(POLICIES, scores, strict=True), key=lambda pair: pair[1].worker_s + price_s * pair[1].late
    )[0]


def largest(peaks: Iterable[Peak], span_s: float, until: float) -> float:
    """The slots of the largest peak in the `span_s` seconds before `until`; 0 if there is none."""
    since = until - span_s - 1e-9
    return max((peak.slots for peak in peaks if peak.start <= until and peak.end >= since), default=0.0)


def _workers(slots: float, per_worker: int, config: SizingConfig) -> int:
    return min(config.max_size, max(config.min_size, math.ceil(slots / per_worker - 1e-9)))
