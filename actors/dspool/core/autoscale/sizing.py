"""How many workers the pool should have, and why.

Pure: `decide` gets the configuration, the inputs, the state of its last call and `now`, and returns
a `Decision` and the next state. No clock, no randomness, no I/O. The size is the largest of several needs, each
in slots (`demand.py`), rounded up to workers. `docs/explanation/sizing.md` explains it and shows what it reaches.
"""

from __future__ import annotations

import math

import msgspec

from dspool.core.autoscale.demand import Demand
from dspool.core.autoscale.inputs import Action, Decision, SizingConfig, SizingInputs, SizingState
from dspool.core.autoscale.policies import Policy
from dspool.core.wording import counted

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
    `grow_cooldown_s` after the last growth. A worker goes once it was not needed for `Demand.keep_s`. No data, stale
    data and a failing model endpoint hold the size as it is (inside the bounds). What the base size may not take
    goes to overflow workers, which leave after `overflow_idle_s` without need. `follow` fixes the policy for room
    instead of choosing one.
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
    needed_at = last_needed(state.needed_at, demand.need[0], size, now)
    target, shortage, reason = _base(config, inputs, demand, state, needed_at, size, now)
    overflow, lane_needed_at, lane = _overflow(config, inputs, state, shortage, now)
    decision = Decision(
        target=target,
        overflow=overflow,
        action=_action(target, inputs),
        reason="; ".join(filter(None, (reason, lane))),
        numbers=demand.numbers(),
        at=now,
    )
    return decision, SizingState(
        peaks=demand.peaks,
        scores=demand.scores,
        started=demand.started,
        late=demand.late,
        recent=demand.recent,
        offered=demand.offered,
        demand=demand.demand,
        slots=(inputs.actual + inputs.overflow) * inputs.slots_per_worker,
        needed_at=needed_at[:target],
        first_at=now if state.first_at is None else state.first_at,
        called_at=now,
        grew_at=now if target > inputs.desired else state.grew_at,
        overflow_needed_at=lane_needed_at,
    )


def last_needed(before: tuple[float, ...], need: int, size: int, now: float) -> tuple[float, ...]:
    """When each worker was last needed, from `before` and the workers needed now; one that is new counts as needed."""
    rest = before[need:size]
    return (now,) * need + rest + (now,) * (size - need - len(rest))


def kept(needed_at: tuple[float, ...], keep_s: float, now: float) -> int:
    """How many workers stay if each goes `keep_s` after it was last needed."""
    return max((n for n, at in enumerate(needed_at, 1) if now - at < keep_s), default=0)


def _base(
    config: SizingConfig,
    inputs: SizingInputs,
    demand: Demand,
    state: SizingState,
    needed_at: tuple[float, ...],
    size: int,
    now: float,
) -> tuple[int, int, str]:
    """(base size, workers that it lacks, reason)."""
    need, name = demand.need
    if need > size:
        cause = f"{name} needs {counted(need, 'worker')}"
        if size >= config.max_size:
            return size, need - size, f"{cause}, {size} is the maximum"
        patient = name in ("utilization", "head-room") and demand.demand <= size * inputs.slots_per_worker
        since = math.inf if state.grew_at is None else now - state.grew_at
        if patient and since < config.grow_cooldown_s:
            return size, 0, f"{cause}, grew {since:.1f} s ago"
        target = _bounded(config, need)
        return target, need - target, cause
    if need >= size or size <= config.min_size:
        return size, 0, f"{name} needs {counted(max(need, config.min_size), 'worker')}"
    cause = f"{name} needs {counted(_bounded(config, need), 'worker')}"
    if inputs.queued or inputs.oldest_wait_s > config.max_wait_s:
        return size, 0, f"{cause}, operations wait {inputs.oldest_wait_s:.2f} s"
    if state.first_at is None or now - state.first_at < config.long_window_s:
        return size, 0, f"{cause}, too little seen to shrink"
    lower = _bounded(config, max(need, kept(needed_at, demand.keep_s, now)))
    if lower == size:
        return size, 0, f"{cause}, needed {size} {now - needed_at[-1]:.1f} s ago"
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
    if inputs.age_s is None or inputs.short.span_s <= 0 or inputs.long.span_s <= 0:
        return "no data yet"
    if inputs.age_s > config.stale_after_s:
        return f"data are {inputs.age_s:.1f} s old"
    for window in (inputs.short, inputs.long):
        share = window.model_errors / window.finished if window.finished else float(window.model_errors > 0)
        if share >= ERROR_SHARE:
            return f"{100 * share:.0f} % of operations fail at the model endpoint"
    return ""


def _bounded(config: SizingConfig, size: int) -> int:
    return min(config.max_size, max(config.min_size, size))


def _capped(config: SizingConfig, overflow: int) -> int:
    return min(config.max_overflow, max(0, overflow))


def _action(target: int, inputs: SizingInputs) -> Action:
    return "grow" if target > inputs.desired else "shrink" if target < inputs.desired else "hold"
