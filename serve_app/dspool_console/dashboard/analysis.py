"""The dashboard's questions that take some work: operations and their spans, sizing and what it would have done,
warm-up and deployments."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any, Final

import msgspec

from dspool.core.autoscale.inputs import SizingConfig
from dspool.errors import InvalidRequest, PoolError, UnknownName
from dspool.supervisor.warmup import steps_of
from dspool_console.dashboard import view
from dspool_console.dashboard.common import (
    POOL,
    answer,
    names_sessions,
    number,
    patiently,
    watched,
    with_metrics,
)
from dspool_console.dashboard.context import ConsoleContext
from dspool_console.dashboard.replay import (
    LEAST_POINTS,
    MODEL,
    Replay,
    ReplayLoad,
    ReplayRun,
    load_of,
    summary,
)
from dspool_console.dashboard.service import Watched
from dspool_console.dashboard.tables import rows_of
from dspool_console.dashboard.traces import is_of, listed, waterfall
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

PROGRESS_SHOWN: Final = 500
DECISIONS: Final = 500
REPLAY_S: Final = 20.0
STEPS_A_TURN: Final = 2
"""Steps of a replay before others have their turn: it runs in the process that serves operations."""
MOST_WORKERS: Final = 1000
_BOUNDS: Final = (
    ("min_size", 0, MOST_WORKERS), ("max_size", 1, MOST_WORKERS), ("max_overflow", 0, MOST_WORKERS),
    ("target_utilization", 0.05, 0.95), ("max_wait_s", 0.001, 600), ("grow_cooldown_s", 0, 3600),
    ("shrink_cooldown_s", 0, 86_400),
)  # fmt: skip
_WHOLE: Final = frozenset({"min_size", "max_size", "max_overflow"})


# --- operations ---


async def operations(context: ConsoleContext, request: Request) -> Response:
    request.query(frozenset())
    one = watched(context, request)

    async def make() -> view.Row:
        totals: dict[str, int] = {}
        if one.pool.config.enable_metrics:
            try:
                totals = (await one.pool.live_update(None, workers=False)).snapshot.counters.errors_by_code
            except PoolError:
                totals = {}
        telemetry = one.pool.config.telemetry
        about = {"tracing": telemetry.sampling > 0, "sampling": telemetry.sampling}
        return about | listed(await one.operations.look(), totals)

    return answer(request, await patiently(one.answers.get("operations", make)))


async def operation(context: ConsoleContext, request: Request) -> Response:
    request.query(frozenset())
    one = watched(context, request)
    wanted = request.params["operation"]
    spans = await patiently(one.operations.spans(wanted))
    own = [span for span in spans if span.get("resource", {}).get("dspool.pool") in (None, one.pool.name)]
    if not own:
        raise UnknownName(f"there is no trace of {wanted[:80]!r} in this pool")
    captured = one.pool.config.telemetry.capture_content

    def shows(about: view.Row) -> bool:
        # Files may still have content from a time when it was captured.
        return captured and (names_sessions(request) or is_of(about, request.principal))

    return answer(request, waterfall(own, shows=shows))


# --- sizing ---


async def sizing(context: ConsoleContext, request: Request) -> Response:
    query = request.query(frozenset({"limit"}))
    one = watched(context, request)
    limit = int(number(query, "limit", 200, 1, DECISIONS))
    records = await patiently(one.pool.decisions(limit))
    config = one.pool.config
    bounds = SizingConfig.of(config)
    shown = {name: getattr(bounds, name) for name, *_ in _BOUNDS}
    return answer(
        request,
        {
            "enabled": config.enable_optimizer,
            "bounds": shown,
            "decisions": [view.decision_row(record) for record in records],
            "load": await _load_chart(one) if config.enable_metrics else None,
        },
    )


async def _load_chart(one: Watched) -> view.Row | None:
    try:
        table = await patiently(one.pool.table(3600.0))
    except PoolError:
        return None
    at, columns = rows_of(table, ("utilization", "size", "running", "queue_depth"))
    each = one.pool.config.slots_per_worker
    slots = [(size or 0.0) * each for size in columns["size"]]
    busy = [round((use or 0.0) * have, 3) for use, have in zip(columns["utilization"], slots, strict=True)]
    demand = [
        round((running or 0.0) + (queued or 0.0), 2)
        for running, queued in zip(columns["running"], columns["queue_depth"], strict=True)
    ]
    return {"at": [round(t, 1) for t in at], "load": busy, "slots": slots, "demand": demand}


async def whatif(context: ConsoleContext, request: Request) -> Response:
    query = request.query(frozenset({"range", *(name for name, *_ in _BOUNDS)}))
    one = with_metrics(watched(context, request))
    seconds = number(query, "range", 3600.0, 60.0, 3600.0)
    own = SizingConfig.of(one.pool.config)
    other = bounds_of(query, own)
    return answer(request, await patiently(_replayed(one, seconds, own, other), REPLAY_S))


def bounds_of(query: dict[str, str], own: SizingConfig) -> SizingConfig:
    """The pool's own bounds with those that were asked for in their place. Raises: InvalidRequest."""
    asked: dict[str, Any] = {}
    for name, least, most in _BOUNDS:
        value = number(query, name, getattr(own, name), least, most)
        asked[name] = int(value) if name in _WHOLE else value
    other = msgspec.structs.replace(own, **asked)
    if other.min_size > other.max_size:
        raise InvalidRequest(
            f"min_size must not be above max_size, got {other.min_size} and {other.max_size}",
            field="min_size",
        )
    return other


async def _replayed(one: Watched, seconds: float, own: SizingConfig, other: SizingConfig) -> view.Row:
    # One at a time: a slider that is moved asks often, and this is work.
    async with one.replaying:

        async def load_once() -> ReplayLoad:
            return await _load(one, seconds)

        load: ReplayLoad = await one.replays.get(("load", seconds), load_once)

        async def replay(config: SizingConfig) -> ReplayRun:
            delay_s = await _start_delay(one)
            replay = Replay(
                config, load, slots_per_worker=one.pool.config.slots_per_worker, start_delay_s=delay_s
            )
            for step in replay.steps():
                if step % STEPS_A_TURN == 0:
                    await asyncio.sleep(0)
            return replay.run

        before: ReplayRun = await one.replays.get(("own", seconds, load.at[-1]), lambda: replay(own))
        after: ReplayRun = await one.replays.get((other, seconds, load.at[-1]), lambda: replay(other))
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
            },
            **{name: summary(run, load.step_s) for name, run in _named(before, after)},
        },
        "bounds": {name: getattr(other, name) for name, *_ in _BOUNDS},
    }


def _named(before: ReplayRun, after: ReplayRun) -> tuple[tuple[str, ReplayRun], ...]:
    return ("replayed", before), ("whatif", after)


async def _load(one: Watched, seconds: float) -> ReplayLoad:
    table = await one.pool.table(seconds)
    at, columns = rows_of(table, ("operations", "utilization", "size", "overflow"))
    if len(at) < LEAST_POINTS:
        raise InvalidRequest(
            "too little was measured yet to replay it; look again in a minute", field="range"
        )
    each = one.pool.config.slots_per_worker
    columns["slots"] = [(size or 0.0) * each for size in columns["size"]]
    return load_of(at, dict(columns), table.resolution_s)


async def _start_delay(one: Watched) -> float:
    """How long a worker took to start, on average; a second if none is known."""
    try:
        report = await one.pool.warmup_report()
    except PoolError:
        return 1.0
    took = [worker.duration_s for worker in report.workers if worker.ok]
    return max(0.2, sum(took) / len(took)) if took else 1.0


# --- warm-up and deployments ---


async def warmup(context: ConsoleContext, request: Request) -> Response:
    request.query(frozenset())
    pool = watched(context, request).pool
    report, progress = await patiently(asyncio.gather(pool.warmup_report(), pool.warm_progress(0)))
    steps = [step.step for step in steps_of(pool.config)]
    return answer(request, {"report": report, "progress": progress[-PROGRESS_SHOWN:], "steps": steps})


async def deployments(context: ConsoleContext, request: Request) -> Response:
    request.query(frozenset())
    one = watched(context, request)
    versions, current, rollouts = await patiently(
        asyncio.gather(one.pool.deployments(), one.pool.current_versions(), one.pool.rollouts())
    )
    return answer(
        request,
        {
            "at": time.time(),
            "programs": view.program_versions(versions, current),
            "running": view.rollout_row(next((one for one in rollouts if one.ended_at is None), None)),
            "last": view.rollout_row(next((one for one in rollouts if one.ended_at is not None), None)),
        },
    )


STUDYING: Final = tuple(
    Route("GET", f"{POOL}/{path}", handler, summary, role="reader")
    for path, handler, summary in (
        ("operations", operations, "Recent, slowest and failed operations"),
        ("operations/{operation}", operation, "The spans of one operation"),
        ("sizing", sizing, "Decisions about the size"),
        ("whatif", whatif, "The last hour with other bounds"),
        ("warmup", warmup, "Warm-up by worker and step"),
        ("deployments", deployments, "Versions and roll-outs"),
    )
)

__all__ = ["STUDYING"]
