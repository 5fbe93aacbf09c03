"""The baselines, each deciding from the same telemetry as dspool's own policy.

All of them follow the same goal of 70 % of a worker's slots busy and the same size bounds; all other
settings are the defaults of the system they come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dspool.core.autoscale.demand import erlang_c_slots
from dspool.core.autoscale.simulation import STEP_S, PoolModel, View
from dspool.core.autoscale.sizers import ConstantSizer, recent

TARGET = 0.7
"""Share of a worker's slots that every policy aims to have busy."""


def mean_in_system(view: View, span_s: float) -> float:
    """Mean number of operations running plus waiting over the last `span_s` seconds."""
    samples = recent(view, span_s)
    return sum(s.in_system_s for s in samples) / (len(samples) * STEP_S) if samples else 0.0


def erlang_static(arrivals_per_s: float, service_s: float, pool: PoolModel) -> ConstantSizer:
    """The M/M/c size for the whole run's mean rate (which no pool knows beforehand): 1 % wait longer than the
    objective."""
    slots = erlang_c_slots(arrivals_per_s * service_s, service_s, pool.max_wait_s)
    size = min(pool.max_size, max(pool.min_size, math.ceil(slots / pool.slots)))
    return ConstantSizer(size, name="erlang_static")


@dataclass
class Seed:
    """The threshold rule of the seed's PoolOptimizer: every minute, over five minutes of one-second snapshots.

    Above 90 % utilization with any queue: + 1 to 4 workers; below 30 %: one less; mean wait above 100 ms
    with any queue: one more overflow, at most as many as workers.
    """

    pool: PoolModel
    name: str = "seed"
    interval_s: float = 60.0
    initial_size: int | None = None
    overflow: int = 0

    def decide(self, view: View) -> tuple[int, int]:
        samples = recent(view, 300.0)
        if len(samples) * STEP_S < 10:
            return view.desired, self.overflow
        queue = sum(s.in_system_s - s.busy_s for s in samples) / (len(samples) * STEP_S)
        capacity = max(1, view.ready) * self.pool.slots
        utilization = sum(s.busy_s for s in samples) / (len(samples) * STEP_S) / capacity
        # Little's law: the mean wait is the mean queue over the arrival rate.
        arrivals = sum(s.arrivals for s in samples)
        wait_ms = 1000 * queue * len(samples) * STEP_S / arrivals if arrivals else 0.0
        if utilization > 0.9 and queue > 0:
            return min(view.desired + round(1 + min(queue / 5, 3)), self.pool.max_size), self.overflow
        if utilization < 0.3 and view.desired > self.pool.min_size:
            return view.desired - 1, self.overflow
        if wait_ms > 100 and queue > 0:
            self.overflow = min(self.overflow + 1, view.desired)
        return view.desired, self.overflow


@dataclass
class HPA:
    """Kubernetes' HorizontalPodAutoscaler (autoscaling/v2, default behaviour) on mean operations per pod.

    Every 15 s, over the last 15 s; tolerance 10 %; pods that are not ready count as empty when growing; up
    by at most 100 % or 4 pods in 15 s; down only to the largest recommendation of the last 300 s.
    """

    pool: PoolModel
    name: str = "hpa"
    interval_s: float = 15.0
    initial_size: int | None = None
    tolerance: float = 0.1
    down_window_s: float = 300.0
    recommendations: list[tuple[float, int]] = field(default_factory=list)

    def decide(self, view: View) -> tuple[int, int]:
        current = view.desired
        if not self.recommendations:
            self.recommendations.append((view.now, current))
        wanted = self.desired(mean_in_system(view, 15.0), view.ready, view.starting, current)
        wanted = min(self.pool.max_size, max(self.pool.min_size, wanted))
        self.recommendations = [r for r in self.recommendations if r[0] > view.now - self.down_window_s]
        self.recommendations.append((view.now, wanted))
        if wanted < current:
            wanted = min(current, max(size for _, size in self.recommendations))
        return min(wanted, max(2 * current, current + 4)), 0

    def desired(self, in_system: float, ready: int, starting: int, current: int) -> int:
        """Replicas by the controller's formula, before limits."""
        goal = TARGET * self.pool.slots
        if ready == 0:
            return current
        ratio = in_system / ready / goal
        if not (starting and ratio > 1.0):
            return current if abs(1 - ratio) <= self.tolerance else math.ceil(ratio * ready - 1e-9)
        pods = ready + starting
        ratio = in_system / pods / goal
        if ratio <= 1 + self.tolerance:
            return current
        return max(current, math.ceil(ratio * pods - 1e-9))


@dataclass
class KPA:
    """Knative's pod autoscaler: concurrency over a stable window of 60 s and a panic window of 6 s, every 2 s.

    Panics when the short window wants twice the ready pods, and then only grows until 60 s after it last
    did. Scale-up rate 1000, scale-down rate 2, no scale-down delay.
    """

    pool: PoolModel
    name: str = "kpa"
    interval_s: float = 2.0
    initial_size: int | None = None
    stable_s: float = 60.0
    panic_s: float = 6.0
    panic_threshold: float = 2.0
    max_up_rate: float = 1000.0
    max_down_rate: float = 2.0
    panic_since: float | None = None
    panic_pods: int = 0
    _begun: bool = False

    def decide(self, view: View) -> tuple[int, int]:
        if not self._begun:
            # Knative starts in panic mode when there is more than one pod, so as not to shrink before it
            # has data.
            self._begun = True
            if view.ready > 1:
                self.panic_since, self.panic_pods = view.now, view.ready
        if not view.samples:
            return view.desired, 0
        stable, panic = mean_in_system(view, self.stable_s), mean_in_system(view, self.panic_s)
        return self.desired(stable, panic, view.ready, view.now), 0

    def desired(self, stable: float, panic: float, ready_pods: int, now: float) -> int:
        """Pods by Knative's formula, before the bounds of the revision."""
        goal = TARGET * self.pool.slots
        ready = max(1, ready_pods)
        most, least = math.ceil(self.max_up_rate * ready), math.floor(ready / self.max_down_rate)
        wanted_stable, wanted_panic = math.ceil(stable / goal), math.ceil(panic / goal)
        over = wanted_panic / ready >= self.panic_threshold
        size = min(max(wanted_stable, least), most)
        size_panic = min(max(wanted_panic, least), most)
        if over:
            self.panic_since = now
        elif self.panic_since is not None and self.panic_since + self.stable_s < now:
            self.panic_since, self.panic_pods = None, 0
        if self.panic_since is None:
            return size
        self.panic_pods = max(self.panic_pods, size, size_panic)
        return self.panic_pods


@dataclass
class Serve:
    """Ray Serve's default autoscaling policy (ray.serve.autoscaling_policy, Ray 2.60).

    Replicas = running plus queued requests over the target per replica, the requests averaged over 30 s and
    pushed every 10 s; grows after it wanted to for 30 s on end, shrinks after 600 s on end.
    """

    pool: PoolModel
    name: str = "serve"
    interval_s: float = STEP_S
    initial_size: int | None = None
    look_back_s: float = 30.0
    push_s: float = 10.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    _direction: int = 0
    _since: float | None = None
    _pushed_at: float = -math.inf
    _total: float = 0.0

    def decide(self, view: View) -> tuple[int, int]:
        if view.now - self._pushed_at >= self.push_s:
            self._pushed_at, self._total = view.now, mean_in_system(view, self.look_back_s)
        wanted = math.ceil(self._total / (TARGET * self.pool.slots)) if view.ready else view.desired
        wanted = min(self.pool.max_size, max(self.pool.min_size, wanted))
        return self.delayed(wanted, view.desired, view.now), 0

    def delayed(self, wanted: int, target: int, now: float) -> int:
        """`wanted` once it has been wanted in one direction for that direction's delay, else `target`."""
        direction = (wanted > target) - (wanted < target)
        if direction == 0 or direction != self._direction:
            self._direction, self._since = direction, None
        if direction == 0:
            return target
        if self._since is None:
            self._since = now
        delay = self.upscale_delay_s if direction > 0 else self.downscale_delay_s
        if now - self._since + 1e-6 < delay:
            return target
        self._direction, self._since = 0, None
        return wanted


@dataclass
class Reactive:
    """Not a rival but a bound: goes to the maximum as soon as anything waits, and stays there.

    A policy that does not grow before there is a reason cannot have fewer late operations than this one.
    """

    pool: PoolModel
    name: str = "fastest_reaction"
    interval_s: float = STEP_S
    initial_size: int | None = None

    def decide(self, view: View) -> tuple[int, int]:
        return (self.pool.max_size if view.queued else view.desired), 0
