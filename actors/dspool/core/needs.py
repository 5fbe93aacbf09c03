"""How many slots the load needs: five answers from the same observations. `core/sizing.py` turns them into a
size."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dspool.core.observed import Observed, Peak, SizingConfig, SizingState

BUDGET = 0.01
"""Share of operations that may wait longer than `max_wait_s`."""
BAND = 0.1
"""Utilization may be this much above `target_utilization` before the size follows."""
HOLD_MIN_S, HOLD_MAX_S = 20.0, 120.0
"""For how long a peak is remembered in full: with none, and with all, of the budget spent."""
MEMORY_S = 600.0
"""Time constant of the memory of how much of the budget is spent."""
PRIOR_OPERATIONS = 500.0
"""Operations in time that a pool is credited with at first, so that the first late ones do not count for
everything."""
RECALL_S = 600.0
"""A returning burst is expected to become as large as the largest one of this time."""
FRESH_S = 3.0
"""For how long a demand counts as still rising."""
RISE_MIN, RISE_MAX = 1.5, 2.0
"""What a rising demand is multiplied by: with none, and with all, of the budget spent."""
SIGMA_RISE, SIGMA_LOAD = 4.0, 2.0


class Needs:
    """What the load needs, in slots.

    Attributes:
        utilization: keeps busy slots over slots below `target_utilization + BAND`. headroom: keeps all but
        BUDGET of the waits within `max_wait_s` if arrivals are Poisson (`erlang_c_slots`). peak: what
        recent peaks needed, in full for `hold_s`, then fading with the square root of hold over age.
        rising: a demand above what chance explains may go on rising. backlog: clears what would still wait
        when a new worker could take it; 0 when nothing would.
    """

    def __init__(self, config: SizingConfig, seen: Observed, state: SizingState, now: float) -> None:
        self._config, self._seen, self._state, self._now = config, seen, state, now
        short, long = seen.short, seen.long
        counted = long if long.finished else short
        self.service_s = counted.run_s / counted.finished if counted.finished else 0.0
        self.load = long.busy_slot_s / long.span_s if long.span_s > 0 else 0.0
        self.rate = short.arrivals / short.span_s if short.span_s > 0 else 0.0
        self.elapsed_s = short.span_s if state.called_at is None else max(0.0, now - state.called_at)
        self.started, self.late = self._budget()
        spent = min(1.0, self.late / (BUDGET * (self.started + PRIOR_OPERATIONS)))
        self.hold_s = HOLD_MIN_S * (HOLD_MAX_S / HOLD_MIN_S) ** spent
        self.offered, self.demand = self._demand()
        self.peaks = remember(state.peaks, Peak(now, now, self.demand), now)
        self.known_peak = max((p.slots for p in self.peaks if p.end > now - RECALL_S), default=0.0)
        self.utilization = self.load / min(0.95, config.target_utilization + BAND)
        self.headroom = float(erlang_c_slots(self.load, self.service_s, config.max_wait_s))
        self.peak = max((p.slots * self._weight(now - p.end) for p in self.peaks), default=0.0)
        self.rising = self._rising(RISE_MIN + (RISE_MAX - RISE_MIN) * spent)
        self.backlog = self._backlog()

    @property
    def calm(self) -> tuple[float, str]:
        """The largest need that does not come from a queue, and its name."""
        return max(
            (self.utilization, "utilization"),
            (self.headroom, "head-room"),
            (self.peak, "recent peak"),
            (self.rising, "rising demand"),
            key=lambda need: need[0],
        )

    def numbers(self) -> dict[str, float]:
        """What a person needs to follow the decision."""
        return {
            "load": round(self.load, 3),
            "arrivals_per_s": round(self.rate, 3),
            "service_s": round(self.service_s, 4),
            "demand": round(self.demand, 2),
            "queued": float(self._seen.queued),
            "wait_p99_s": round(self._seen.short.wait_p99_s, 4),
            "need_utilization": round(self.utilization, 2),
            "need_headroom": self.headroom,
            "need_peak": round(self.peak, 2),
            "need_rising": round(self.rising, 2),
            "need_backlog": round(self.backlog, 2),
            "hold_s": round(self.hold_s, 1),
            "late_pct": round(100 * self.late / (self.started + PRIOR_OPERATIONS), 3),
        }

    def _budget(self) -> tuple[float, float]:
        """(operations started, those late that a longer memory would have spared), both fading."""
        state, short = self._state, self._seen.short
        fade = math.exp(-self.elapsed_s / MEMORY_S)
        # The window may overlap the one of the last call: only the share that is new counts.
        new = min(1.0, self.elapsed_s / short.span_s) if short.span_s > 0 else 0.0
        have = (self._seen.actual + self._seen.overflow) * self._seen.slots_per_worker
        # A peak this young may be the burst that is waiting now.
        settled = self._now - 2 * self._seen.start_delay_s - 2.0
        remembered = max((p.slots for p in state.peaks if p.end < settled), default=0.0)
        late = short.over_wait if remembered > have else 0
        return state.started * fade + short.started * new, state.late * fade + late * new

    def _demand(self) -> tuple[float, float]:
        """(load if nothing ever waited, slots with which the newest operations would not have waited too
        long)."""
        seen, service, bound = self._seen, self.service_s, self._config.max_wait_s
        # With enough slots the number running follows the arrivals as in M/G/inf; between calls it nears
        # rate * service.
        kept = math.exp(-self.elapsed_s / service) if service > 0 else 0.0
        offered = self._state.offered * kept + self.rate * service * (1 - kept)
        demand = float(seen.short.peak_demand)
        if seen.short.over_wait or seen.oldest_wait_s > bound:
            # In a queue operations pile up that would be done by now with enough slots: they are not a need.
            demand = min(demand, max(float(seen.running), offered + SIGMA_LOAD * math.sqrt(offered)))
        else:
            offered = min(offered, demand)
        # Within `max_wait_s` a slot can also start what comes after the operation it runs.
        return offered, demand / (1 + bound / service) if service > 0 else demand

    def _weight(self, age: float) -> float:
        return 1.0 if age <= self.hold_s else math.sqrt(self.hold_s / age)

    def _rising(self, factor: float) -> float:
        fresh = max((p.slots for p in self.peaks if p.end > self._now - FRESH_S), default=0.0)
        chance = max(self.headroom, self.load + SIGMA_RISE * math.sqrt(self.load))
        return fresh + (factor - 1) * max(0.0, fresh - chance)

    def _backlog(self) -> float:
        seen = self._seen
        if seen.queued == 0:
            return 0.0
        service = self.service_s or seen.start_delay_s
        have = (seen.actual + seen.overflow) * seen.slots_per_worker
        # What will have come, less what the slots will have finished, by the time a worker asked for now is
        # warm.
        coming = self.rate * seen.start_delay_s
        left = seen.running + seen.queued + coming - have * (1 + seen.start_delay_s / service)
        if left <= 0:
            return 0.0
        return max(max(self.rate * service, self.demand) + left * min(1.0, service), self.known_peak)


def erlang_c_slots(load: float, service_s: float, max_wait_s: float, share: float = BUDGET) -> int:
    """The fewest slots with which at most `share` of operations wait longer than `max_wait_s`.

    `load` is the offered load in erlangs (arrivals/s times mean service time). The M/M/c result: P(wait >
    t) = C(c, load) * exp(-(c - load) * t / service_s), where Erlang's C comes from the recursion of his B
    formula.
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
    """`peaks` and the newest, neighbours merged where together they span less than a tenth of their age."""
    kept: list[Peak] = []
    for peak in (*peaks, newest):
        if now - peak.end > 3 * RECALL_S:
            continue
        last = kept[-1] if kept else None
        if last is not None and peak.end - last.start <= 0.1 * (now - peak.end):
            kept[-1] = Peak(last.start, peak.end, max(last.slots, peak.slots))
        else:
            kept.append(peak)
    return tuple(kept)
