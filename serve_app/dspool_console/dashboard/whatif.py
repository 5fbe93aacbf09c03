"""What the pool's size would have been with other bounds: the route that replays the last hour."""

from __future__ import annotations

import itertools
from typing import Any, Final

import msgspec

from dspool.core.autoscale.inputs import SizingConfig
from dspool.errors import InvalidRequest
from dspool_console.dashboard.replay import (
    WAITS,
    Replay,
    ReplayLoad,
    ReplayRun,
    late_share,
    load_of,
    summary,
)
from dspool_console.dashboard.service import ConsoleContext, PoolWatch
from dspool_console.dashboard.view import BOUNDS
from dspool_serve.api.common import POOL, answer_packed, or_none, patiently
from dspool_serve.api.tables import rows_of
from dspool_serve.costly import in_thread
from dspool_serve.http.requests import Request, number
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

MODEL: Final = (
    "The measured load as a flow, second by second, through the sizing policy. What waited longer than a flow "
    "explains, by bursts within a second or in sessions, is as it was measured, and less where slots are added."
)
LEAST_POINTS: Final = 10
REPLAY_S: Final = 20.0
LEAST_S: Final = 60.0
LONGEST_S: Final = 3600.0
MOST_WORKERS: Final = 1000
_LIMITS: Final[dict[str, tuple[float, float]]] = {
    "min_size": (0, MOST_WORKERS), "max_size": (1, MOST_WORKERS), "max_overflow": (0, MOST_WORKERS),
    "target_utilization": (0.05, 0.95), "max_wait_s": (0.001, 600), "grow_cooldown_s": (0, 3600),
    "shrink_cooldown_s": (0, 86_400),
}  # fmt: skip
_WHOLE: Final = frozenset({"min_size", "max_size", "max_overflow"})


async def replay_sizing(context: ConsoleContext, request: Request) -> Response:
    query = request.query(frozenset({"range", *BOUNDS}))
    watch = context.measured_watch(request)
    seconds = number(query, "range", LONGEST_S, least=LEAST_S, most=LONGEST_S)
    own = SizingConfig.of(watch.pool.config)
    other = bounds_of(query, own)
    answer = await context.service.costly.run(
        request.principal, lambda: patiently(_replayed(watch, seconds, own, other), REPLAY_S)
    )
    return answer_packed(request, answer)


def bounds_of(query: dict[str, str], own: SizingConfig) -> SizingConfig:
    """The pool's own bounds with those that `query` has in their place. Raises: InvalidRequest."""
    bounds: dict[str, Any] = {}
    for name, (least, most) in _LIMITS.items():
        value = number(query, name, getattr(own, name), least=least, most=most)
        bounds[name] = int(value) if name in _WHOLE else value
    other = msgspec.structs.replace(own, **bounds)
    if other.min_size > other.max_size:
        raise InvalidRequest(
            f"min_size must not be above max_size, got {other.min_size} and {other.max_size}",
            field="min_size",
        )
    return other


async def _replayed(
    watch: PoolWatch, seconds: float, own: SizingConfig, other: SizingConfig
) -> dict[str, Any]:
    async def load_once() -> ReplayLoad:
        return await _load(watch, seconds)

    load: ReplayLoad = await watch.replays.get(("load", seconds), load_once)

    async def replayed(config: SizingConfig) -> ReplayRun:
        delay_s = await _start_delay(watch)
        replay = Replay(
            config, load, slots_per_worker=watch.pool.config.slots_per_worker, start_delay_s=delay_s
        )
        return await in_thread(replay.whole)

    before: ReplayRun = await watch.replays.get(("own", seconds, load.at[-1]), lambda: replayed(own))
    after: ReplayRun = await watch.replays.get((other, seconds, load.at[-1]), lambda: replayed(other))
    hours = load.step_s / 3600
    actual = [round(size, 2) for size in load.size]
    return {
        "range_s": seconds,
        "step_s": load.step_s,
        "model": MODEL,
        "at": [round(at, 1) for at in load.at],
        "load": [
            round(rate * each, 3) for rate, each in zip(load.arrivals_per_s, load.service_s, strict=True)
        ],
        "actual": actual,
        "replayed": before.size,
        "whatif": after.size,
        "wait_s": {name: [round(wait, 4) for wait in run.wait_s] for name, run in _named(before, after)},
        "summary": {
            "actual": {
                "worker_hours": round(sum(actual) * hours, 3),
                "mean_size": round(sum(actual) / len(actual), 2),
                "max_size": max(actual),
                "resizes": sum(a != b for a, b in itertools.pairwise(actual)),
                "late_share": late_share(load, own.max_wait_s),
            },
            **{name: summary(run, load.step_s) for name, run in _named(before, after)},
        },
        "bounds": {name: getattr(other, name) for name in BOUNDS},
    }


def _named(before: ReplayRun, after: ReplayRun) -> tuple[tuple[str, ReplayRun], ...]:
    return ("replayed", before), ("whatif", after)


async def _load(watch: PoolWatch, seconds: float) -> ReplayLoad:
    table = await watch.pool.table(seconds)
    at, columns = rows_of(table, ("operations", "utilization", "size", "overflow", *WAITS))
    if len(at) < LEAST_POINTS:
        raise InvalidRequest(
            "too little was measured yet to replay it; look again in a minute", field="range"
        )
    each = watch.pool.config.slots_per_worker
    columns["slots"] = [(size or 0.0) * each for size in columns["size"]]
    return load_of(at, dict(columns), table.resolution_s)


async def _start_delay(watch: PoolWatch) -> float:
    """How long a worker took to start, on average; a second if none is known."""
    report = await or_none(watch.pool.warmup_report())
    times = [] if report is None else [worker.duration_s for worker in report.workers if worker.ok]
    return max(0.2, sum(times) / len(times)) if times else 1.0


_PARAMETERS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    (
        "range",
        {"type": "number", "minimum": LEAST_S, "maximum": LONGEST_S, "description": "the last seconds"},
    ),
    *(
        (name, {"type": "integer" if name in _WHOLE else "number", "minimum": least, "maximum": most})
        for name, (least, most) in _LIMITS.items()
    ),
)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        POOL + "/whatif",
        replay_sizing,
        "What the size would have been in the last hour with other bounds, by the sizing policy itself",
        Any,
        problems=("invalid_request", "not_allowed", "queue_full", "pool_not_ready", "worker_lost"),
        query=_PARAMETERS,
        role="reader",
    ),
)

__all__ = ["ROUTES", "bounds_of"]
