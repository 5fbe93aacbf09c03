"""The pool itself: how it is, how it is configured, and what operators ask of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from dspool.core.lifecycle.warmup import WarmupReport
from dspool.core.metrics.measures import MetricsSnapshot
from dspool.errors import PoolError, PoolNotReady
from dspool.messages import PoolStatus
from dspool.protocols import PoolObservation
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import MAX_DECISIONS
from dspool.supervisor.warmup import WarmProgress, steps_of
from dspool_serve.api.common import (
    CHANGE,
    POOL,
    answer_json,
    answer_packed,
    body_of,
    in_time,
    names_sessions,
    optional_body,
    patiently,
    pool_of,
    stream_progress,
    whole_number,
)
from dspool_serve.api.schema import (
    ConfigView,
    DecisionList,
    Load,
    Paused,
    PoolList,
    PoolStats,
    PoolSummary,
    Resized,
    ResizeRequest,
    RolloutList,
    WarmRequest,
)
from dspool_serve.context import Context
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route
from dspool_serve.pools import ClusterPool

STATUS_TIMEOUT_S = 5.0
"""How long a pool's supervisor, or its metrics, may take to answer."""
TROUBLE_S = 1.0
"""The same of the supervisor once a worker cannot be reached either: its machine may be the same."""
LOOK_S = 0.25

PROGRESS_SHOWN = 500


class WarmupState(Struct):
    """The report of the last warm-up, and what happened in the last ones."""

    report: WarmupReport
    progress: list[WarmProgress]
    steps: Annotated[list[str], Meta(description="what each worker runs before it takes traffic")]


_resize_body = msgspec.json.Decoder(ResizeRequest)
_warm_body = msgspec.json.Decoder(WarmRequest)


async def list_pools(context: Context, request: Request) -> Response:
    return answer_json(PoolList([_summary(state) for state in await look_at_all(context)]))


async def get_pool(context: Context, request: Request) -> Response:
    return answer_json(await in_time(context, status_seen(pool_of(context, request))))


async def get_pool_stats(context: Context, request: Request) -> Response:
    pool = pool_of(context, request)
    status, load = await in_time(context, asyncio.gather(status_seen(pool), _load(pool)))
    return answer_json(
        PoolStats(
            status.name,
            status.state,
            status.ready,
            status.desired,
            status.actual,
            status.spares,
            status.failures,
            load,
        )
    )


async def _load(pool: PoolObservation) -> Load | None:
    try:
        seen: MetricsSnapshot = await asyncio.wait_for(pool.metrics_snapshot(), STATUS_TIMEOUT_S)
    except (PoolError, TimeoutError):
        return None
    return Load(
        seen.window_s,
        seen.throughput,
        seen.utilization,
        seen.queue_depth,
        seen.running,
        seen.sessions,
        seen.p50_s,
        seen.p95_s,
        seen.p99_s,
        seen.wait_p95_s,
        seen.error_rate,
        seen.health.score,
        seen.counters.by_outcome,
    )


async def get_pool_config(context: Context, request: Request) -> Response:
    return answer_json(ConfigView(pool_of(context, request).config.model_dump(mode="json")))


async def list_decisions(context: Context, request: Request) -> Response:
    limit = whole_number(request.query(frozenset({"limit"})), "limit", 1, MAX_DECISIONS, 50) or 50
    return answer_json(DecisionList(await in_time(context, pool_of(context, request).decisions(limit))))


async def list_rollouts(context: Context, request: Request) -> Response:
    query = request.query(frozenset({"program"}))
    rollouts = await in_time(context, pool_of(context, request).rollouts())
    if (program := query.get("program")) is not None:
        rollouts = [one for one in rollouts if one.program == program]
    if not names_sessions(request):
        rollouts = without_names(rollouts)
    return answer_json(RolloutList(rollouts))


def without_names(rollouts: Iterable[Rollout]) -> list[Rollout]:
    """For those who may not know who did what."""
    return [msgspec.structs.replace(one, by="") for one in rollouts]


async def resize_pool(context: Context, request: Request) -> Response:
    asked = await body_of(context, request, _resize_body)
    return answer_json(Resized(await in_time(context, pool_of(context, request).resize(asked.size))))


async def pause_pool(context: Context, request: Request) -> Response:
    await in_time(context, pool_of(context, request).pause())
    return answer_json(Paused(True))


async def resume_pool(context: Context, request: Request) -> Response:
    await in_time(context, pool_of(context, request).resume())
    return answer_json(Paused(False))


async def warm_pool(context: Context, request: Request) -> EventStream:
    asked = await optional_body(context, request, _warm_body, WarmRequest())
    return stream_progress(context, pool_of(context, request).stream_warm(asked.strategy), WarmupReport)


async def get_warmup(context: Context, request: Request) -> Response:
    request.query(frozenset())
    pool = pool_of(context, request)
    report, progress = await patiently(asyncio.gather(pool.warmup_report(), pool.warm_progress()))
    steps = [str(step.step) for step in steps_of(pool.config)]
    return answer_packed(request, WarmupState(report, progress[-PROGRESS_SHOWN:], steps))


async def look_at_all(context: Context) -> list[PoolStatus]:
    """As they are now. Anybody may ask for it (`/readyz`), so a supervisor is asked once at a time for all who do."""
    pools, answers = context.pools, context.service.answers
    looks = (
        answers.get(("status", name), partial(_look, name, pools.get(name)), keep_s=0.0)
        for name in pools.names()
    )
    states: list[PoolStatus] = await asyncio.gather(*looks)
    return states


async def _look(name: str, pool: ClusterPool) -> PoolStatus:
    """The pool's status; one that cannot be had is a pool that is not ready, never an error."""
    try:
        return await status_seen(pool)
    except PoolError as failed:
        return PoolStatus(name, "unknown", False, 0, 0, 0, 0, reason=failed.message)


async def status_seen(pool: ClusterPool) -> PoolStatus:
    """As its supervisor knows it; while that does not answer, as this process sees it."""
    asked, began = asyncio.ensure_future(pool.status()), time.monotonic()
    try:
        while not (await asyncio.wait([asked], timeout=LOOK_S))[0]:
            waited_s, seen = time.monotonic() - began, pool.seen("the supervisor does not answer")
            if waited_s >= STATUS_TIMEOUT_S or (waited_s >= TROUBLE_S and seen.actual < seen.desired):
                return seen
        return asked.result()
    except PoolNotReady as away:
        return pool.seen(away.message)
    finally:
        asked.cancel()


def _summary(state: PoolStatus) -> PoolSummary:
    return PoolSummary(
        state.name, state.state, state.ready, state.desired, state.actual, state.programs, state.reason
    )


_ASKED = ("pool_not_ready", "pool_closed")

ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/pools", list_pools, "The pools of this service", PoolList, role="reader"),
    Route("GET", POOL, get_pool, "One pool with its workers", PoolStatus, problems=_ASKED, role="reader"),
    Route(
        "GET",
        POOL + "/stats",
        get_pool_stats,
        "The pool in few figures",
        PoolStats,
        problems=_ASKED,
        role="reader",
    ),
    Route("GET", POOL + "/config", get_pool_config, "The configuration that the pool runs with", ConfigView),
    Route(
        "GET",
        POOL + "/decisions",
        list_decisions,
        "The last decisions about the size, with the numbers that led to them",
        DecisionList,
        problems=("invalid_request", *_ASKED),
        query=(("limit", {"type": "integer", "minimum": 1, "maximum": MAX_DECISIONS, "default": 50}),),
        role="reader",
    ),
    Route(
        "GET",
        POOL + "/rollouts",
        list_rollouts,
        "The last deployments and roll-backs of pool programs, newest first: who, when, what the canary did, the end",
        RolloutList,
        problems=("invalid_request", *_ASKED),
        query=(("program", {"type": "string", "description": "only those of this program"}),),
        role="reader",
    ),
    Route(
        "GET",
        POOL + "/warmup",
        get_warmup,
        "The report of the last warm-up by step, and what happens now, by worker",
        WarmupState,
        problems=_ASKED,
        role="reader",
    ),
    Route(
        "POST",
        POOL + "/resize",
        resize_pool,
        "Set the desired number of workers; the pool follows",
        Resized,
        ResizeRequest,
        problems=(*CHANGE, *_ASKED),
    ),
    Route(
        "POST",
        POOL + "/pause",
        pause_pool,
        "Refuse new operations; those that were accepted finish",
        Paused,
        problems=_ASKED,
    ),
    Route("POST", POOL + "/resume", resume_pool, "Take operations again", Paused, problems=_ASKED),
    Route(
        "POST",
        POOL + "/warm",
        warm_pool,
        "Run the warm-up steps on every warm worker again, which go on serving; sends its progress",
        WarmupReport,
        WarmRequest,
        problems=(*CHANGE, "conflict", *_ASKED),
        stream="warm",
        body_optional=True,
    ),
)
