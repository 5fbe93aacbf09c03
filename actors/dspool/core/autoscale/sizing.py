"""How many workers the pool should have, and why.

Pure: `decide` gets the configuration, what was observed, the state of its last call and `now`, and returns
a `Decision` and the next state. No clock, no randomness, no I/O. `docs/explanation/sizing.md` explains the policy and
shows what it reaches.

The size is the largest of several needs, each in slots, rounded up to workers (`core/needs.py` computes
them):

- *utilization*: recently busy slots over available slots stay inside the band around `target_utilization`;
- *head-room*: the smallest M/M/c system in which at most one operation in a hundred waits longer than
  `max_wait_s` (Erlang C: A. K. Erlang, "Solution of some problems in the theory of probabilities of
  significance in automatic telephone exchanges", 1917; for many slots this is load + b * sqrt(load), the
  square-root staffing of S. Halfin and W. Whitt, "Heavy-traffic limits for queues with many exponential
  servers", Operations Research 29, 1981);
- *recent peak*: room for bursts, kept by the cheapest of several plans that would have kept the wait
  objective so far (`core/plans.py`): how much of the recent and of the largest peak, and for how long;
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
"""From this share of model errors on, load says nothing about size: operations fail fast, hang, or are tried
again."""


def decide(
    config: SizingConfig, seen: SizingInputs, state: SizingState, *, now: float, follow: Policy | None = None
) -> tuple[Decision, SizingState]:
    """The size the pool should have at `now` (monotonic seconds), with the reason, and the state for the next call.

    Growing for demand that exceeds the pool is immediate; growing for head-room waits until
    `grow_cooldown_s` after the last growth, shrinking until `shrink_cooldown_s` after the last change. No
    data, stale data and a failing model endpoint hold the size as it is (inside the bounds). What the base
    size may not take goes to overflow workers, which leave after `overflow_idle_s` without need. With
    `follow`, that plan holds and none is chosen: what would it have done?
    """
    held = _bounded(config, seen.desired)
    blind = _blind(config, seen)
    if blind:
        overflow = _capped(config, seen.overflow)
        decision = Decision(target=held, overflow=overflow, action=_action(held, seen), reason=blind, at=now)
        return decision, msgspec.structs.replace(state, called_at=now)
    needs = Demand(config, seen, state, now, follow)
    target, lacking, reason = _base(config, seen, needs, state, held, now)
    overflow, needed_at, lane = _overflow(config, seen, state, lacking, now)
    decision = Decision(
        target=target,
        overflow=overflow,
        action=_action(target, seen),
        reason="; ".join(filter(None, (reason, lane))),
        numbers=needs.numbers(),
        at=now,
    )
    changed = target != seen.desired or state.changed_at is None
    return decision, SizingState(
        peaks=needs.peaks,
        scores=needs.scores,
        started=needs.started,
        late=needs.late,
        recent=needs.recent,
        offered=needs.offered,
        demand=needs.demand,
        first_at=now if state.first_at is None else state.first_at,
        called_at=now,
        changed_at=now if changed else state.changed_at,
        grew_at=now if target > seen.desired else state.grew_at,
        overflow_needed_at=needed_at,
    )


def _base(
    config: SizingConfig, seen: SizingInputs, needs: Demand, state: SizingState, held: int, now: float
) -> tuple[int, int, str]:
    """(base size, workers that it lacks, reason)."""
    slots = seen.slots_per_worker
    calm, name = needs.calm
    if needs.backlog > calm:
        name = "backlog"
    wanted = _workers(max(calm, needs.backlog), slots)
    if wanted > held:
        what = f"{name} needs {wanted} workers"
        if held >= config.max_size:
            return held, wanted - held, f"{what}, {held} is the maximum"
        patient = name in ("utilization", "head-room") and needs.demand <= held * slots
        since = math.inf if state.grew_at is None else now - state.grew_at
        if patient and since < config.grow_cooldown_s:
            return held, 0, f"{what}, grew {since:.1f} s ago"
        target = _bounded(config, wanted)
        return target, wanted - target, what
    if wanted >= held or held <= config.min_size:
        return held, 0, f"{name} needs {max(wanted, config.min_size)} workers"
    lower = _bounded(config, wanted)
    would = f"{name} needs {lower} workers"
    if seen.queued or seen.oldest_wait_s > config.max_wait_s:
        return held, 0, f"{would}, operations wait {seen.oldest_wait_s:.2f} s"
    if state.first_at is None or now - state.first_at < config.long_window_s / 2:
        return held, 0, f"{would}, too little seen to shrink"
    since = math.inf if state.changed_at is None else now - state.changed_at
    if since < config.shrink_cooldown_s:
        return held, 0, f"{would}, resized {since:.1f} s ago"
    return lower, 0, would


def _overflow(
    config: SizingConfig, seen: SizingInputs, state: SizingState, lacking: int, now: float
) -> tuple[int, float | None, str]:
    """(overflow workers, when they were last all needed, reason if there is something to say)."""
    have, lacking = _capped(config, seen.overflow), _capped(config, lacking)
    if lacking >= have:
        return lacking, now if lacking else None, f"{lacking} overflow for what it lacks" if lacking else ""
    needed_at = now if state.overflow_needed_at is None else state.overflow_needed_at
    if now - needed_at < config.overflow_idle_s:
        return have, needed_at, f"{have} overflow kept, idle for {now - needed_at:.0f} s"
    # Half of what is idle goes; the rest gets a quarter of the grace until the next half does.
    left = have - math.ceil((have - lacking) / 2)
    return left, now - 0.75 * config.overflow_idle_s, f"{have - left} idle overflow released"


def _blind(config: SizingConfig, seen: SizingInputs) -> str:
    """Why nothing can be told from what was observed; empty when it can."""
    if not config.enabled:
        return "sizing is switched off"
    if seen.age_s is None or seen.short.span_s <= 0 or seen.long.span_s <= 0:
        return "no data yet"
    if seen.age_s > config.stale_after_s:
        return f"data are {seen.age_s:.1f} s old"
    for window in (seen.short, seen.long):
        failed = window.model_errors / window.finished if window.finished else float(window.model_errors > 0)
        if failed >= ERROR_SHARE:
            return f"{100 * failed:.0f} % of operations fail at the model endpoint"
    return ""


def _workers(slots: float, slots_per_worker: int) -> int:
    return math.ceil(slots / slots_per_worker - 1e-9)


def _bounded(config: SizingConfig, size: int) -> int:
    return min(config.max_size, max(config.min_size, size))


def _capped(config: SizingConfig, overflow: int) -> int:
    return min(config.max_overflow, max(0, overflow))


def _action(target: int, seen: SizingInputs) -> Action:
    return "grow" if target > seen.desired else "shrink" if target < seen.desired else "hold"
