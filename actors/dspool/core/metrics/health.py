"""How well a pool does, as one number with its reasons.

The score starts at 100 and each part takes points away. A part never takes fewer points when its input gets
worse, so the score never rises then. An idle pool loses nothing, nor does one whose missing workers are on their way,
to start or to grow; at 20 % errors the score is below 60, and with more errors than the objective it is not healthy,
whatever else.
"""

from __future__ import annotations

from math import log2
from typing import Literal

from msgspec import Struct

from dspool.core.wording import counted
from dspool.messages.versioned_pickle import Message

HealthState = Literal["healthy", "impaired", "unhealthy", "starting", "unknown"]
"""`starting`: nothing is wrong, and the pool does not serve yet. `unknown`: nothing is measured."""


class HealthInput(Message, Struct, frozen=True, kw_only=True):
    """What the score is computed from, over one recent window."""

    desired: int
    """Workers that should take traffic."""
    ready: int
    """Warm workers that do."""
    lost: int = 0
    """Of the workers that are missing, those that failed; the others are on their way."""
    starting: bool = False
    """The pool has not served yet."""
    error_rate: float = 0.0
    """Share of served operations that failed or timed out; client errors are not among them."""
    latency_p99_s: float = 0.0
    latency_objective_s: float | None = None
    """None: no objective, latency costs nothing."""
    wait_p95_s: float = 0.0
    max_wait_s: float = 0.1
    utilization: float = 0.0
    """Slot-seconds busy / slot-seconds available, 0..1."""
    queue_fill: float = 0.0
    """Queued operations / the queue's limit, 0..1."""
    rejected_rate: float = 0.0
    """Share of submitted operations that were refused."""


class HealthPart(Message, Struct, frozen=True):
    """One reason: the points it takes (0..100), and a sentence for people."""

    name: Literal["errors", "latency", "wait", "workers", "saturation"]
    cost: float
    sentence: str


class HealthScore(Message, Struct, frozen=True):
    """`score` is 100 minus the costs of all parts, not below 0."""

    score: float
    state: HealthState
    parts: tuple[HealthPart, ...]


ERROR_OBJECTIVE = 0.001
"""The share of operations that may fail in a healthy pool."""
HEALTHY_FROM = 80.0
IMPAIRED_FROM = 50.0
ERROR_COST = 250.0
"""Points by error rate: 20 % errors take 50, 40 % take all."""
LATENCY_COST = 30.0
WAIT_COST = 30.0
BUSY_FROM = 0.85
"""Utilization above this starts to cost: little is left for a burst."""
BUSY_COST = 10.0
QUEUE_COST = 20.0
REJECTED_COST = 60.0


def health(inputs: HealthInput) -> HealthScore:
    """The score and its parts, the most costly first."""
    parts = sorted(
        (_errors(inputs), _latency(inputs), _wait(inputs), _workers(inputs), _saturation(inputs)),
        key=lambda part: -part.cost,
    )
    score = max(0.0, 100.0 - sum(part.cost for part in parts))
    score = round(score, 2)
    return HealthScore(score, state_of(score, starting=inputs.starting), tuple(parts))


def state_of(score: float, *, starting: bool = False) -> HealthState:
    if score >= HEALTHY_FROM:
        return "starting" if starting else "healthy"
    return "impaired" if score >= IMPAIRED_FROM else "unhealthy"


def _errors(inputs: HealthInput) -> HealthPart:
    rate = _share(inputs.error_rate)
    if not rate:
        return HealthPart("errors", 0.0, "No operation failed.")
    least = 100.0 - HEALTHY_FROM + 0.01 if rate > ERROR_OBJECTIVE else 0.0
    cost = max(least, min(100.0, ERROR_COST * rate))
    return HealthPart("errors", cost, f"{rate:.2%} of operations failed or timed out.")


def _latency(inputs: HealthInput) -> HealthPart:
    objective, p99 = inputs.latency_objective_s, inputs.latency_p99_s
    if objective is None:
        return HealthPart("latency", 0.0, f"p99 latency is {_time(p99)}; no objective is set.")
    over = _over(p99, objective)
    if not over:
        return HealthPart(
            "latency", 0.0, f"p99 latency is {_time(p99)}, within the objective of {_time(objective)}."
        )
    return HealthPart(
        "latency",
        LATENCY_COST * over,
        f"p99 latency is {_time(p99)}, over the objective of {_time(objective)}.",
    )


def _wait(inputs: HealthInput) -> HealthPart:
    over = _over(inputs.wait_p95_s, inputs.max_wait_s)
    if not over:
        return HealthPart(
            "wait", 0.0, f"Operations start after {_time(inputs.wait_p95_s)} (p95), soon enough."
        )
    return HealthPart(
        "wait",
        WAIT_COST * over,
        f"Operations wait {_time(inputs.wait_p95_s)} (p95) to start; {_time(inputs.max_wait_s)} is the goal.",
    )


def _workers(inputs: HealthInput) -> HealthPart:
    desired = inputs.desired
    shortage = max(0, desired - max(0, inputs.ready))
    if not shortage:
        return HealthPart(
            "workers", 0.0, f"All {desired} workers are warm." if desired != 1 else "The worker is warm."
        )
    lost = min(shortage, max(0, inputs.lost))
    sentence = f"{shortage} of {counted(desired, 'worker')} {_are(shortage)} missing"
    sentence += f": {lost} failed." if lost else f", and {_are(shortage)} on the way."
    return HealthPart("workers", 100.0 * lost / desired, sentence)


def _saturation(inputs: HealthInput) -> HealthPart:
    busy, fill, rejected = _share(inputs.utilization), _share(inputs.queue_fill), _share(inputs.rejected_rate)
    cost = (
        BUSY_COST * max(0.0, busy - BUSY_FROM) / (1 - BUSY_FROM)
        + QUEUE_COST * fill
        + REJECTED_COST * rejected
    )
    sentence = f"{busy:.1%} of the slots' time is used."
    if fill:
        sentence += f" The queue is {fill:.1%} full."
    if rejected:
        sentence += f" {rejected:.2%} of operations were refused."
    return HealthPart("saturation", cost, sentence)


def _over(value: float, goal: float) -> float:
    """0 up to the goal, then growing with each doubling: 0.25 at twice, 1 at 16 times and more."""
    if value <= goal:
        return 0.0
    return 1.0 if goal <= 0 else min(1.0, log2(value / goal) / 4)


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
