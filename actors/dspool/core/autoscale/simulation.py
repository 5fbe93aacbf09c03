"""A discrete-event simulation of a pool: workers with slots, start-up delay, drain, one FIFO queue.

An operation takes one slot for its service time. The queue is first in, first out, and a free slot is found
on the least loaded worker, as in the real dispatcher. A new worker takes traffic `start_delay_s` after it
was asked for. A worker told to go takes nothing new, finishes what it runs, and is gone. A worker costs
from the moment it is asked for until it is gone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import Protocol

STEP_S = 0.25
"""Sizers may look every STEP_S; telemetry is one step old, as deltas that clients flush twice a second are."""


@dataclass(frozen=True, kw_only=True)
class PoolModel:
    """The simulated pool: the same for all sizers."""

    slots: int = 8
    min_size: int = 1
    initial_size: int = 2
    max_size: int = 64
    max_overflow: int = 0
    start_delay_s: float = 1.0
    max_wait_s: float = 0.1


@dataclass(slots=True)
class Sample:
    """What happened in one step. Integrals are in operation-seconds and slot-seconds."""

    end: float = 0.0
    in_system_s: float = 0.0
    busy_s: float = 0.0
    arrivals: int = 0
    finished: int = 0
    run_s: float = 0.0
    peak: int = 0
    started: int = 0
    over: int = 0
    max_wait: float = 0.0


@dataclass(frozen=True, slots=True)
class View:
    """What a sizer sees when it decides. `samples` is a deque, newest last, each one step long."""

    now: float
    samples: deque[Sample]
    desired: int
    ready: int
    starting: int
    overflow: int
    running: int
    queued: int
    oldest_wait_s: float


class Sizer(Protocol):
    """Decides the size every `interval_s` (a multiple of STEP_S). Returns base size and overflow size."""

    name: str

    @property
    def interval_s(self) -> float: ...

    @property
    def initial_size(self) -> int | None:
        """None: the pool's own initial size."""

    def decide(self, view: View) -> tuple[int, int]: ...


@dataclass(slots=True)
class _Worker:
    id: int
    overflow: bool
    running: int = 0
    ready: bool = False
    draining: bool = False


@dataclass(frozen=True)
class SimulatedRun:
    """What came of one sizer on one load."""

    policy: str
    """The sizer's name."""
    operations: int
    over: int
    """Operations that waited longer than the objective."""
    worker_seconds: float
    """Up to the horizon, starting and draining workers included."""
    largest: int
    """Workers wanted at once, overflow included."""
    resizes: int
    oscillation: int
    """Changes of direction (a growth after a shrink or the reverse) within 60 s of the change before."""
    series: list[tuple[float, float, int, float]]
    """(time, mean operations in the system, workers paid for, largest wait of those started) for each second."""

    @property
    def over_pct(self) -> float:
        return 100.0 * self.over / max(1, self.operations)


def simulate(
    arrivals: Sequence[float],
    services: Sequence[float],
    sizer: Sizer,
    pool: PoolModel,
    *,
    horizon: float | None = None,
) -> SimulatedRun:
    """Run `sizer` over the operations (`arrivals` ascending, in seconds from 0).

    `horizon` is where cost stops counting, by default the last arrival. Operations that have not started
    600 s after the horizon count as over.
    """
    return _Simulation(arrivals, services, sizer, pool, horizon).run()


class _Simulation:
    def __init__(
        self,
        arrivals: Sequence[float],
        services: Sequence[float],
        sizer: Sizer,
        pool: PoolModel,
        horizon: float | None,
    ) -> None:
        self.arrivals, self.services, self.sizer, self.pool = arrivals, services, sizer, pool
        self.horizon = arrivals[-1] if horizon is None else horizon
        self.events: list[
            tuple[float, int, int, float]
        ] = []  # (time, 0 ready | 1 finished, worker id, service)
        self.workers: dict[int, _Worker] = {}
        self.by_load: list[dict[int, None]] = [
            {} for _ in range(pool.slots)
        ]  # ready workers with a free slot
        self.queue: deque[tuple[float, float]] = deque()
        self.next_id = 0
        self.running = 0
        self.samples: deque[Sample] = deque(maxlen=int(900 / STEP_S))
        self.sample = Sample()
        self.clock = 0.0
        self.over = 0
        self.started = 0
        self.max_wait = 0.0
        size = sizer.initial_size or pool.initial_size
        self.desired, self.desired_overflow = size, 0
        for _ in range(size):
            self._ready(self._new_worker(overflow=False))

    # --- the run ---

    def run(self) -> SimulatedRun:
        arrivals, sizer = self.arrivals, self.sizer
        every = max(1, round(sizer.interval_s / STEP_S))
        total, at, step = len(arrivals), 0, 0
        cost = 0.0
        series: list[tuple[float, float, int, float]] = []
        changes: list[tuple[float, int]] = []
        per_second = round(1 / STEP_S)
        in_system = 0.0
        largest = self.desired
        give_up = self.horizon + 600.0
        while self.clock < self.horizon or (self.started < total and self.clock < give_up):
            end = (step + 1) * STEP_S
            at = self._advance(end, at)
            step += 1
            counted = min(end, self.horizon) - (end - STEP_S)
            cost += self.paid_s(counted) if counted > 0 else 0.0
            self.sample.end = end
            in_system += self.sample.in_system_s
            if step % per_second == 0:
                series.append((end, in_system, len(self.workers), self.max_wait))
                in_system, self.max_wait = 0.0, 0.0
            if step % every == 0:
                before = self.desired + self.desired_overflow
                # The step that just ended is not in `samples` yet: telemetry is one step behind.
                self.desired, self.desired_overflow = self._bounded(*sizer.decide(self._view(end)))
                self._reconcile(end)
                after = self.desired + self.desired_overflow
                if end <= self.horizon:
                    largest = max(largest, after)
                if after != before and end <= self.horizon:
                    changes.append((end, 1 if after > before else -1))
            self.samples.append(self.sample)
            self.sample = Sample(peak=self.running + len(self.queue))
        swings = sum(1 for (t0, d0), (t1, d1) in pairwise(changes) if d0 != d1 and t1 - t0 <= 60.0)
        over = self.over + (total - self.started)
        return SimulatedRun(sizer.name, total, over, cost, largest, len(changes), swings, series)

    def paid_s(self, span: float) -> float:
        # Workers come at the end of a step and go within one; a worker that went is paid for in `_gone`.
        paid = len(self.workers) * span + self._gone_s
        self._gone_s = 0.0
        return paid

    _gone_s = 0.0

    def _view(self, now: float) -> View:
        ready = starting = overflow = 0
        for worker in self.workers.values():
            if worker.draining:
                continue
            if worker.overflow:
                overflow += 1
            elif worker.ready:
                ready += 1
            else:
                starting += 1
        oldest = now - self.queue[0][0] if self.queue else 0.0
        return View(
            now, self.samples, self.desired, ready, starting, overflow, self.running, len(self.queue), oldest
        )

    def _bounded(self, target: int, overflow: int) -> tuple[int, int]:
        pool = self.pool
        return min(pool.max_size, max(pool.min_size, target)), min(pool.max_overflow, max(0, overflow))

    # --- events ---

    def _advance(self, end: float, at: int) -> int:
        arrivals, services, events, sample = self.arrivals, self.services, self.events, self.sample
        queue, total = self.queue, len(self.arrivals)
        clock, running = self.clock, self.running
        peak = sample.peak
        while True:
            arrival = arrivals[at] if at < total else math.inf
            event = events[0][0] if events else math.inf
            moment = arrival if arrival < event else event
            if moment > end:
                span = end - clock
                sample.busy_s += running * span
                sample.in_system_s += (running + len(queue)) * span
                break
            span = moment - clock
            sample.busy_s += running * span
            sample.in_system_s += (running + len(queue)) * span
            clock = moment
            if arrival < event:
                sample.arrivals += 1
                queue.append((arrival, services[at]))
                at += 1
            else:
                _, kind, worker_id, service = heappop(events)
                worker = self.workers.get(worker_id)
                if kind == 0:
                    if worker is not None and not worker.draining:
                        self._ready(worker)
                else:
                    running -= 1
                    sample.finished += 1
                    sample.run_s += service
                    assert worker is not None
                    self._freed(worker, end - moment)
            # Start what can start: one freed slot or one warm worker may take several.
            while queue:
                worker = self._free_worker()
                if worker is None:
                    break
                came, service = queue.popleft()
                self._count_wait(clock - came)
                worker.running += 1
                if worker.running < self.pool.slots:
                    self.by_load[worker.running][worker.id] = None
                running += 1
                heappush(events, (clock + service, 1, worker.id, service))
            if running + len(queue) > peak:
                peak = running + len(queue)
        sample.peak = peak
        self.clock, self.running = end, running
        return at

    def _count_wait(self, wait: float) -> None:
        sample = self.sample
        self.started += 1
        sample.started += 1
        if wait > sample.max_wait:
            sample.max_wait = wait
            if wait > self.max_wait:
                self.max_wait = wait
        if wait > self.pool.max_wait_s + 1e-9:
            self.over += 1
            sample.over += 1

    def _free_worker(self) -> _Worker | None:
        """The least loaded ready worker, taken out of its bucket; None when all slots are busy."""
        for bucket in self.by_load:
            if bucket:
                worker_id = next(iter(bucket))
                del bucket[worker_id]
                return self.workers[worker_id]
        return None

    # --- workers ---

    def _new_worker(self, *, overflow: bool) -> _Worker:
        worker = _Worker(self.next_id, overflow)
        self.next_id += 1
        self.workers[worker.id] = worker
        return worker

    def _ready(self, worker: _Worker) -> None:
        worker.ready = True
        self.by_load[0][worker.id] = None

    def _freed(self, worker: _Worker, unpaid_s: float) -> None:
        slots = self.pool.slots
        if worker.draining:
            worker.running -= 1
            if worker.running == 0:
                del self.workers[worker.id]
                self._gone_s += STEP_S - unpaid_s
            return
        if worker.running < slots:
            del self.by_load[worker.running][worker.id]
        worker.running -= 1
        self.by_load[worker.running][worker.id] = None

    def _reconcile(self, now: float) -> None:
        self._resize(
            [w for w in self.workers.values() if not w.draining and not w.overflow], self.desired, now
        )
        if self.pool.max_overflow:
            lane = [w for w in self.workers.values() if not w.draining and w.overflow]
            self._resize(lane, self.desired_overflow, now, overflow=True)

    def _resize(self, have: list[_Worker], want: int, now: float, *, overflow: bool = False) -> None:
        for _ in range(want - len(have)):
            worker = self._new_worker(overflow=overflow)
            heappush(self.events, (now + self.pool.start_delay_s, 0, worker.id, 0.0))
        if len(have) > want:
            # Those that are not ready yet go first, newest first; then the least loaded.
            order = sorted(have, key=lambda w: (w.ready, w.running, -w.id))
            for worker in order[: len(have) - want]:
                if worker.ready and worker.running < self.pool.slots:
                    del self.by_load[worker.running][worker.id]
                worker.draining = True
                if worker.running == 0:
                    del self.workers[worker.id]
