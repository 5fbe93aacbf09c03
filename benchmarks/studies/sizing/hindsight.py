"""What could a plan have done that was chosen with full knowledge of the load?

Not a rival but a guide to what bounds the policy: of many random plans, each followed from beginning to end, the
cheapest that keeps the budget on this very load. A policy that must find its plan while the load goes on cannot be
expected to do better; one of another kind could.
"""

from __future__ import annotations

import math
import random
from typing import Any

from dspool.cli.load_trace import Workload
from dspool.core.autoscale.inputs import SizingConfig
from dspool.core.autoscale.policies import BUDGET, Policy
from dspool.core.autoscale.simulation import PoolModel, simulate
from dspool.core.autoscale.sizers import AutomaticSizer


def best_plan(
    work: Workload, pool: PoolModel, config: SizingConfig, oracle_s: float, *, tries: int, seed: int = 1
) -> dict[str, Any]:
    """The cheapest of `tries` plans with at most `BUDGET` late; `plan` is None if there was none."""
    draw = random.Random(seed)
    best: tuple[float, float, Policy] | None = None
    for _ in range(tries):
        plan = _any_plan(draw)
        run = simulate(work.arrivals, work.services, AutomaticSizer(pool, config, follow=plan), pool)
        if run.over_pct < 100 * BUDGET and (best is None or run.worker_seconds < best[0]):
            best = run.worker_seconds, run.over_pct, plan
    return {
        "workload": work.name,
        "tries": tries,
        "worker_seconds_vs_oracle": round(best[0] / oracle_s, 3) if best else None,
        "waits_over_pct": round(best[1], 3) if best else None,
        "plan": str(best[2]) if best else None,
    }


def _any_plan(draw: random.Random) -> Policy:
    return Policy(
        hold_s=math.exp(draw.uniform(math.log(3.0), math.log(300.0))),
        spare=0.0 if draw.random() < 0.3 else math.exp(draw.uniform(math.log(0.1), math.log(6.0))),
    )
