"""How many slots the load needs: four answers from the same inputs. `sizing.py` turns them into a size."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dspool.core.autoscale.inputs import Peak, SizingConfig, SizingInputs, SizingState
from dspool.core.autoscale.policies import BUDGET, MEMORY_S, LoadSample, Policy, choose, judge, largest

BAND = 0.05
"""Utilization may be this much above `target_utilization` before the size follows."""
RECENT_S = 10.0
"""Time constant of the mean load for utilization. The mean of a minute is half a minute old: load that grows
by a sixth in that time would leave a band of 60-80 %; the mean of a few seconds is mostly noise."""
SIGMA_LOAD = 2.0
KEEP_SWITCHES = 2.0
"""A worker goes once it was not needed for this many times what it costs to let it go and start another."""
OPENING_S, OPENING_FACTOR = 15.0, 2.5
"""A pool that must grow so soon after its start grows to so many times its need: the burst may only have begun."""
RECALL_S = 600.0
"""Older peaks are forgotten."""


class Demand:
    """What the load needs, in slots.

    Attributes:
        utilization: keeps recently busy slots over slots below `target_utilization + BAND`.
        headroom: the smallest M/M/c system in which at most BUDGET of the operations wait longer than `max_wait_s`
            (`erlang_c_slots`). For many slots this is load + b * sqrt(load), the square-root staffing of S. Halfin
            and W. Whitt, "Heavy-traffic limits for queues with many exponential servers", Operations Research 29,
            1981.
        room: what `policy` keeps for bursts (`policies.py`).
        backlog: when operations wait, what clears those that would still wait when a new worker could take them;
            0 when nothing would: a queue that the pool will have drained by then is no reason to grow.
        keep_s: seconds for which a worker stays that is not needed.
    """

    def __init__(
        self,
        config: SizingConfig,
        inputs: SizingInputs,
        state: SizingState,
        now: float,
        follow: Policy | None = None,
    ) -> None:
        self._config, self._inputs, self._state = config, inputs, state
        short, long = inputs.short, inputs.long
        window = long if long.finished else short
        self.service_s = window.run_s / window.finished if window.finished else 0.0
        self.load = long.busy_slot_s / long.span_s if long.span_s > 0 else 0.0
        self.rate = short.arrivals / short.span_s if short.span_s > 0 else 0.0
        self._opening = state.first_at is None or now - state.first_at < OPENING_S
        self.elapsed_s = short.span_s if state.called_at is None else max(0.0, now - state.called_at)
        self.recent = self._recent()
        self.utilization = self.recent / min(0.95, config.target_utilization + BAND)
        self.headroom = float(erlang_c_slots(self.load, self.service_s, config.max_wait_s))
        self.offered, self.demand = self._demand()
        self.peaks = remember(state.peaks, Peak(now, now, self.demand), now)
        sample = self._sample()
        fade = math.exp(-self.elapsed_s / MEMORY_S)
        self.started, self.late = state.started * fade + sample.started, state.late * fade + sample.late
        # A worker that goes finishes what it runs: about one mean service time, if those are exponential.
        switch_s = inputs.start_delay_s + self.service_s
        self.keep_s = max(config.shrink_cooldown_s, KEEP_SWITCHES * switch_s)
        least = max(self.utilization, self.headroom)
        self.scores = judge(state.scores, sample, self.peaks, least, self.keep_s, config, inputs, now)
        self.policy = follow or choose(self.scores, self.late, self.started)
        # What is needed for the rest of the time that the policy holds it then stays for `keep_s`.
        peak = largest(self.peaks, max(0.0, self.policy.hold_s - self.keep_s), now)
        self.room = peak + self.policy.spare * inputs.slots_per_worker
        self.backlog = self._backlog()

    @property
    def need(self) -> tuple[int, str]:
        """The workers of the largest need, and its name."""
        slots, name = max(
            (self.utilization, "utilization"),
            (self.headroom, "head-room"),
            (self.room, "recent peak"),
            (self.backlog, "backlog"),
            key=lambda need: need[0],
        )
        per_worker = self._inputs.slots_per_worker
        if self._opening and slots > self._inputs.desired * per_worker:
            slots *= OPENING_FACTOR
        return math.ceil(slots / per_worker - 1e-9), name

    def numbers(self) -> dict[str, float]:
        """The numbers that explain the decision."""
        return {
            "load": round(self.load, 3),
            "load_recent": round(self.recent, 3),
            "arrivals_per_s": round(self.rate, 3),
            "service_s": round(self.service_s, 4),
            "demand": round(self.demand, 2),
            "queued": float(self._inputs.queued),
            "wait_p99_s": round(self._inputs.short.wait_p99_s, 4),
            "need_utilization": round(self.utilization, 2),
            "need_headroom": self.headroom,
            "need_peak": round(self.room, 2),
            "need_backlog": round(self.backlog, 2),
            "plan_hold_s": self.policy.hold_s,
            "plan_spare": self.policy.spare,
            "late_pct": round(100 * self.late / self.started, 3) if self.started else 0.0,
        }

    def _recent(self) -> float:
        """Mean busy slots, newer ones counting more (exponentially, RECENT_S); at first that of the long window."""
        before, short = self._state.recent, self._inputs.short
        if before is None or short.span_s <= 0:
            return self.load
        weight = math.exp(-self.elapsed_s / RECENT_S)
        return before * weight + short.busy_slot_s / short.span_s * (1 - weight)

    def _sample(self) -> LoadSample:
        state, short = self._state, self._inputs.short
        # The window may overlap that of the last call: only the new share counts.
        new = min(1.0, self.elapsed_s / short.span_s) if short.span_s > 0 else 0.0
        return LoadSample(
            arrived=short.arrivals * new,
            started=short.started * new,
            late=short.over_wait * new,
            demand=self.demand,
            demand_before=state.demand,
            slots_before=state.slots,
            elapsed_s=self.elapsed_s,
        )

    def _demand(self) -> tuple[float, float]:
        """(load if nothing ever waited, slots with which the newest operations would not have waited too long)."""
        inputs, service, bound = self._inputs, self.service_s, self._config.max_wait_s
        # With enough slots the number running follows the arrivals as in M/G/inf; between calls it nears
        # rate * service.
        weight = math.exp(-self.elapsed_s / service) if service > 0 else 0.0
        offered = self._state.offered * weight + self.rate * service * (1 - weight)
        demand = float(inputs.short.peak_demand)
        if inputs.short.over_wait or inputs.oldest_wait_s > bound:
            # Operations that pile up in a queue would have ended by now with enough slots: they are no need.
            demand = min(demand, max(float(inputs.running), offered + SIGMA_LOAD * math.sqrt(offered)))
        else:
            offered = min(offered, demand)
        if service <= 0:
            return offered, demand
        # Within `max_wait_s` a slot can also start what comes after the operation it runs, but load that lasts
        # needs all of its slots.
        return offered, max(demand / (1 + bound / service), offered)

    def _backlog(self) -> float:
        inputs = self._inputs
        if inputs.queued == 0:
            return 0.0
        # As long as nothing has ended, a guess; of the second if a worker starts in no time.
        service = self.service_s or inputs.start_delay_s or 1.0
        available = (inputs.actual + inputs.overflow) * inputs.slots_per_worker
        # What arrives, less what the slots finish, until a worker that starts now is warm.
        arrivals = self.rate * inputs.start_delay_s
        backlog = inputs.running + inputs.queued + arrivals - available * (1 + inputs.start_delay_s / service)
        if backlog <= 0:
            return 0.0
        return max(self.rate * service, self.demand) + backlog * min(1.0, service)


def erlang_c_slots(load: float, service_s: float, max_wait_s: float, share: float = BUDGET) -> int:
    """The fewest slots with which at most `share` of operations wait longer than `max_wait_s`.

    `load` is the offered load in erlangs (arrivals/s times mean service time). The M/M/c result: P(wait >
    t) = C(c, load) * exp(-(c - load) * t / service_s), where Erlang's C comes from the recursion of his B
    formula (A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in automatic
    telephone exchanges", 1917).
    """
    if load <= 0 or service_s <= 0:
        return 0
    slots, blocked = 0, 1.0
    while True:
        slots += 1
        blocked = load * blocked / (slots + load * blocked)
        if slots <= load:
            continue
        waits = blocked / (1 - (load / slots) * (1 - blocked))
        if waits * math.exp(-(slots - load) * max_wait_s / service_s) <= share:
            return slots


def remember(peaks: Iterable[Peak], newest: Peak, now: float) -> tuple[Peak, ...]:
    """`peaks` and the newest, with neighbours merged that together span less than a tenth of their age."""
    merged: list[Peak] = []
    for peak in (*peaks, newest):
        if now - peak.end > RECALL_S:
            continue
        last = merged[-1] if merged else None
        if last is not None and peak.end - last.start <= 0.1 * (now - peak.end):
            merged[-1] = Peak(last.start, peak.end, max(last.slots, peak.slots))
        else:
            merged.append(peak)
    return tuple(merged)
