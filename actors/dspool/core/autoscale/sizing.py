"""How many workers the pool should have, and why.

Pure: `decide` gets the configuration, the inputs, the state of its last call and `now`, and returns
a `Decision` and the next state. No clock, no randomness, no I/O. `docs/explanation/sizing.md` explains it and
shows what it reaches.

The size is the largest of several needs, each in slots, rounded up to workers (`demand.py` computes
them):

- *utilization*: recently busy slots over available slots stay inside the band around `target_utilization`;
- *head-room*: the smallest M/M/c system in which at most one operation in a hundred waits longer than
  `max_wait_s` (Erlang C: A. K. Erlang, "Solution of some problems in the theory of probabilities of
  significance in automatic telephone exchanges", 1917; for many slots this is load + b * sqrt(load), the
  square-root staffing of S. Halfin and W. Whitt, "Heavy-traffic limits for queues with many exponential
  servers", Operations Research 29, 1981);
- *recent peak*: room for bursts, as of the cheapest of several policies that would have kept the wait
  objective so far (`policies.py`): how much of the recent and of the largest peak, and for how long;
- *backlog*: when operations wait now, what clears those that would still wait when a new worker could take
  them. A queue that the pool will have drained by then is no reason to grow.
"""

from __future__ import annotations

import math

import msgspec

from dspool.core.autoscale.demand import Demand, erlang_c_slots
from dspool.core.autoscale.inputs import (
    Action,
    Decision,
    Peak,
    SizingConfig,
    SizingInputs,
    SizingState,
    Window,
)
from dspool.core.autoscale.policies import Policy
from dspool.core.wording import counted

__all__ = [
    "Action",
    "Decision",
    "Peak",
    "SizingConfig",
    "SizingInputs",
    "SizingState",
    "Window",
    "decide",
    "erlang_c_slots",
]

ERROR_SHARE = 0.1
"""From this share of model errors on, load says nothing about size: operations fail fast, hang, or are retried."""


def decide(
    config: SizingConfig,
    inputs: SizingInputs,
    state: SizingState,
    *,
    now: float,
    follow: Policy | None = None,
) -> tuple[Decision, SizingState]:
    """The size the pool should have at `now` (monotonic seconds), with the reason, and the state for the next call.

    Growing for demand that exceeds the pool is immediate; growing for head-room waits until
    `grow_cooldown_s` after the last growth, shrinking until `shrink_cooldown_s` after the last change. No
    data, stale data and a failing model endpoint hold the size as it is (inside the bounds). What the base
    size may not take goes to overflow workers, which leave after `overflow_idle_s` without need. `follow`
    fixes the policy for room instead of choosing one.
    """
    size = _bounded(config, inputs.desired)
    blind = _blind(config, inputs)
    if blind:
        overflow = _capped(config, inputs.overflow)
        decision = Decision(
            target=size, overflow=overflow, action=_action(size, inputs), reason=blind, at=now
        )
        return decision, msgspec.structs.replace(state, called_at=now)
    demand = Demand(config, inputs, state, now, follow)
    target, shortage, reason = _base(config, inputs, demand, state, size, now)
    overflow, needed_at, lane = _overflow(config, inputs, state, shortage, now)
    decision = Decision(
        target=target,
        overflow=overflow,
        action=_action(target, inputs),
        reason="; ".join(filter(None, (reason, lane))),
        numbers=demand.numbers(),
        at=now,
    )
    changed = target != inputs.desired or state.changed_at is None
    return decision, SizingState(
        peaks=demand.peaks,
        scores=demand.scores,
        started=demand.started,
        late=demand.late,
        recent=demand.recent,
        offered=demand.offered,
        demand=demand.demand,
        first_at=now if state.first_at is None else state.first_at,
        called_at=now,
        changed_at=now if changed else state.changed_at,
        grew_at=now if target > inputs.desired else state.grew_at,
        overflow_needed_at=needed_at,
    )


def _base(
    config: SizingConfig, inputs: SizingInputs, demand: Demand, state: SizingState, size: int, now: float
) -> tuple[int, int, str]:
    """(base size, workers that it lacks, reason)."""
    per_worker = inputs.slots_per_worker
    calm, name = demand.calm
    if demand.backlog > calm:
        name = "backlog"
    need = _workers(max(calm, demand.backlog), per_worker)
    if need > size:
        cause = f"{name} needs {counted(need, 'worker')}"
        if size >= config.max_size:
            return size, need - size, f"{cause}, {size} is the maximum"
        patient = name in ("utilization", "head-room") and demand.demand <= size * per_worker
        since = math.inf if state.grew_at is None else now - state.grew_at
        if patient and since < config.grow_cooldown_s:
            return size, 0, f"{cause}, grew {since:.1f} s ago"
        target = _bounded(config, need)
        return target, need - target, cause
    if need >= size or size <= config.min_size:
        return size, 0, f"{name} needs {counted(max(need, config.min_size), 'worker')}"
    lower = _bounded(config, need)
    cause = f"{name} needs {counted(lower, 'worker')}"
    if inputs.queued or inputs.oldest_wait_s > config.max_wait_s:
        return size, 0, f"{cause}, operations wait {inputs.oldest_wait_s:.2f} s"
    if state.first_at is None or now - state.first_at < config.long_window_s / 2:
        return size, 0, f"{cause}, too little seen to shrink"
    since = math.inf if state.changed_at is None else now - state.changed_at
    if since < config.shrink_cooldown_s:
        return size, 0, f"{cause}, resized {since:.1f} s ago"
    return lower, 0, cause


def _overflow(
    config: SizingConfig, inputs: SizingInputs, state: SizingState, shortage: int, now: float
) -> tuple[int, float | None, str]:
    """(overflow workers, when they were last all needed, reason if there is something to say)."""
    current, shortage = _capped(config, inputs.overflow), _capped(config, shortage)
    if shortage >= current:
        return (
            shortage,
            now if shortage else None,
            f"{shortage} overflow for what it lacks" if shortage else "",
        )
    needed_at = now if state.overflow_needed_at is None else state.overflow_needed_at
    if now - needed_at < config.overflow_idle_s:
        return current, needed_at, f"{current} overflow kept, idle for {now - needed_at:.0f} s"
    # Half of the idle ones go; the rest gets a quarter of the grace until the next half goes.
    rest = current - math.ceil((current - shortage) / 2)
    return rest, now - 0.75 * config.overflow_idle_s, f"{current - rest} idle overflow released"


def _blind(config: SizingConfig, inputs: SizingInputs) -> str:
    """Why the inputs say nothing about size; empty when they do."""
    if not config.enabled:
        return "sizing is switched off"
    if inputs.age_s is None or inputs.short.span_s <= 0 or inputs.long.span_s <= 0:
        return "no data yet"
    if inputs.age_s > config.stale_after_s:
        return f"data are {inputs.age_s:.1f} s old"
    for window in (inputs.short, inputs.long):
        share = window.model_errors / window.finished if window.finished else float(window.model_errors > 0)
        if share >= ERROR_SHARE:
            return f"{100 * share:.0f} % of operations fail at the model endpoint"
    return ""


def _workers(slots: float, slots_per_worker: int) -> int:
    return math.ceil(slots / slots_per_worker - 1e-9)


def _bounded(config: SizingConfig, size: int) -> int:
    return min(config.max_size, max(config.min_size, size))


def _capped(config: SizingConfig, overflow: int) -> int:
    return min(config.max_overflow, max(0, overflow))


def _action(target: int, inputs: SizingInputs) -> Action:
    return "grow" if target > inputs.desired else "shrink" if target < inputs.desired else "hold"
