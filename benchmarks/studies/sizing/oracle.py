"""The clairvoyant oracle: a schedule made with all arrivals and service times known.

It minimises worker-seconds under the rules of the simulated pool (start delay, drain, bounds, first in
first out), such that *no* operation waits longer than the objective. It proceeds in three steps:

1. `needed`: operations are started as late as the objective allows unless a slot is free anyway, which
   gives the lowest demand that first in, first out permits, and from it the workers that must be warm in
   each step of 0.25 s.
2. Each worker level is asked for one start delay ahead, and kept through gaps shorter than `keep_s`, since
   a worker that is stopped finishes its operations and is paid for while it starts again.
3. Both are simulated for several `keep_s`, and the cheapest run without a late operation is taken.

Steps 1 and 2 are greedy, so the true optimum may be a little lower (a full search is a large integer
program).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from dspool.cli.load_trace import Workload
from dspool.core.autoscale.simulation import STEP_S, PoolModel, SimulatedRun, View, simulate

KEEP_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0)


def oracle(work: Workload, pool: PoolModel) -> SimulatedRun:
    """The cheapest of the schedules that keep every wait within the objective.

    Where `max_size` makes that impossible, the one with the fewest late operations.
    """
    need = needed(work, pool)
    runs = [
        simulate(work.arrivals, work.services, Scheduled.of(need, pool, keep_s), pool) for keep_s in KEEP_S
    ]
    return min(runs, key=lambda run: (run.over, run.worker_seconds))


@dataclass
class Scheduled:
    """Follows a list of sizes, one for each step."""

    sizes: list[int]
    initial_size: int | None = None
    name: str = "oracle"
    interval_s: float = STEP_S

    @classmethod
    def of(cls, need: list[int], pool: PoolModel, keep_s: float) -> Scheduled:
        """The sizes to ask for so that `need` is warm in time, gaps up to `keep_s` bridged."""
        lead, keep = math.ceil(pool.start_delay_s / STEP_S), round(keep_s / STEP_S)
        sizes = list(need)
        for level in range(pool.min_size + 1, max(need) + 1):
            last: int | None = None
            for step, size in enumerate(need):
                if size < level:
                    continue
                if last is not None and 1 < step - last <= keep + 1:
                    for gap in range(last + 1, step):
                        sizes[gap] = max(sizes[gap], level)
                last = step
        asked = [max(sizes[step : step + lead + 1]) for step in range(len(sizes))]
        return cls(asked, initial_size=asked[0])

    def decide(self, view: View) -> tuple[int, int]:
        step = round(view.now / STEP_S)
        return self.sizes[min(step, len(self.sizes) - 1)], 0


def needed(work: Workload, pool: PoolModel) -> list[int]:
    """Workers that must be warm in each step so that no operation waits longer than the objective."""
    slots, low, high = pool.slots, pool.min_size, pool.max_size
    steps = math.ceil(work.span_s / STEP_S) + 1
    need = [low] * (steps + 1)
    finishing: list[float] = []
    queue: deque[tuple[float, float]] = deque()
    size, at, total, marked = low, 0, len(work.arrivals), 0

    def mark(moment: float, size: int) -> int:
        """`size` was needed from the last mark until `moment`."""
        step = min(steps, int(moment / STEP_S))
        for s in range(marked, step + 1):
            need[s] = max(need[s], size)
        return step

    while at < total or queue or finishing:
        arrival = work.arrivals[at] if at < total else math.inf
        finish = finishing[0] if finishing else math.inf
        due = queue[0][0] + pool.max_wait_s if queue and size < high else math.inf
        moment = min(arrival, finish, due)
        if moment > work.span_s and at == total and not queue:
            break
        marked = mark(moment, size)
        if moment == finish:
            heappop(finishing)
        elif moment == arrival:
            queue.append((arrival, work.services[at]))
            at += 1
        else:
            size += 1
        while queue and len(finishing) < size * slots:
            heappush(finishing, moment + queue.popleft()[1])
        if not queue:
            size = max(low, math.ceil(len(finishing) / slots))
        marked = mark(moment, size)
    return need
