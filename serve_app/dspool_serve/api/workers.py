"""The pool's workers: look at them, look into them, replace them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct, field

from dspool.core.lifecycle.warmup import StepRun
from dspool.core.metrics.diagnosis import trouble_of
from dspool.core.metrics.measures import LiveUpdate, SlotSnapshot
from dspool.errors import InvalidRequest, PoolError, UnknownWorker
from dspool.messages import EndedWorker, PoolStatus, WorkerStatus
from dspool.telemetry.log_files import LogTail
from dspool.telemetry.pseudonyms import session_hash
from dspool_serve.api.common import (
    CHANGE,
    PAGE,
    POOL,
    answer_json,
    answer_packed,
    cut,
    deadline,
    gather,
    in_time,
    names_sessions,
    optional_body,
    or_none,
    page_of,
    patiently,
    pool_of,
    whole_number,
)
from dspool_serve.api.schema import Cursor, GoneRequest, Seconds, WorkerGone
from dspool_serve.context import Context
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route
from dspool_serve.pools import ClusterPool

_gone_body = msgspec.json.Decoder(GoneRequest)
LEAST_WAIT_S = 1.0
"""Long enough to hear that there is no such worker."""
FIGURES_S: Final = 2.0
MEMORY_KEEP_S: Final = 10.0
"""Reading it walks all of a process's memory map."""
WORKERS_AT_ONCE: Final = 64
SESSIONS_SHOWN: Final = 100
LOG_LINES: Final = 1000
_DIGITS: Final = 6
"""Enough for eyes, few enough for the wire."""


class WorkerRow(WorkerStatus, frozen=True):
    """A worker with what it reported lately; null where the metrics are off or away."""

    utilization: float | None = None
    throughput: Annotated[float | None, Meta(description="operations a second")] = None
    p99_s: Annotated[float | None, Meta(description="seconds; null if none ended lately")] = None
    trouble: Annotated[str, Meta(description="what is wrong with it now; empty: nothing")] = ""


class WorkerList(Struct):
    workers: list[WorkerRow]
    next_cursor: Cursor = None
    ended: Annotated[list[EndedWorker], Meta(description="those that ended lately, the last one first")] = []


class RunningOperation(Struct):
    """What holds a slot. Only admins get the ids of sessions, and the names of their programs."""

    operation: str
    command: str
    program: str | None
    session: Annotated[
        str | None, Meta(description="its id; the hash that logs have for callers who are not admins")
    ]
    held_s: Seconds


class WorkerRunning(Struct):
    operations: Annotated[list[RunningOperation], Meta(description="the longest first")]
    memory: Annotated[dict[str, float] | None, Meta(description="rss_mb, pss_mb and uss_mb")]


class RunningList(Struct):
    at: float
    workers: Annotated[dict[str, WorkerRunning | None], Meta(description="null: it does not answer")]


class WorkerDetail(WorkerRow, frozen=True):
    """All about one worker; null where the worker, the supervisor or the store does not answer."""

    programs: Annotated[dict[str, int], Meta(description="version by pool program")] = field(
        default_factory=dict
    )
    running_operations: list[RunningOperation] | None = None
    memory: Annotated[dict[str, float] | None, Meta(description="rss_mb, pss_mb and uss_mb")] = None
    warmup: Annotated[list[StepRun] | None, Meta(description="its steps as they ran")] = None
    session_ids: Annotated[
        list[str] | None, Meta(description="of active sessions; hashes for callers who are not admins")
    ] = None
    ray_url: Annotated[str | None, Meta(description="its page in Ray's dashboard")] = None


# --- what they are ----------------------------------------------------------------------------------


async def list_workers(context: Context, request: Request) -> Response:
    limit, cursor, _ = page_of(request)
    status, figures = await _known(context, pool_of(context, request))
    rows = worker_rows(status, figures)
    page = cut(rows, lambda worker: worker.id, limit, cursor)
    return answer_packed(request, WorkerList(*page, ended=list(status.ended)))


async def get_worker(context: Context, request: Request) -> Response:
    id = request.params["worker"]
    pool = pool_of(context, request)
    status, figures = await _known(context, pool)
    row = next((row for row in worker_rows(status, figures) if row.id == id), None)
    if row is None:
        raise UnknownWorker(f"pool {pool.name} has no worker {id!r}", worker=id)
    running, runs, found, link = await asyncio.gather(
        _running(context, request, pool, id),
        or_none(pool.worker_warm_runs(id)),
        or_none(pool.sessions(limit=SESSIONS_SHOWN, owner=id)),
        _link(pool, id),
    )
    ids = (
        None
        if found is None
        else [shown_session(info.id, pool.name, names_sessions(request)) for info in found[0]]
    )
    return answer_json(
        WorkerDetail(
            **msgspec.structs.asdict(row),
            programs=status.programs,
            running_operations=None if running is None else running.operations,
            memory=None if running is None else running.memory,
            warmup=runs,
            session_ids=ids,
            ray_url=link,
        )
    )


async def _link(pool: ClusterPool, worker_id: str) -> str | None:
    """Its page in Ray's own dashboard."""
    base = pool.ray_dashboard
    actor = None if base is None else await or_none(pool.worker_actor_id(worker_id))
    return None if actor is None else f"{base}/#/actors/{actor}"


async def list_running(context: Context, request: Request) -> Response:
    query = request.query(frozenset({"workers"}))
    ids = [id for id in query.get("workers", "").split(",") if id]
    if len(ids) > WORKERS_AT_ONCE:
        raise InvalidRequest(f"at most {WORKERS_AT_ONCE} workers at once, got {len(ids)}", field="workers")
    pool = pool_of(context, request)
    found = await patiently(asyncio.gather(*(_running(context, request, pool, id) for id in ids)))
    return answer_packed(request, RunningList(time.time(), dict(zip(ids, found, strict=True))))


async def _running(
    context: Context, request: Request, pool: ClusterPool, worker_id: str
) -> WorkerRunning | None:
    """What the worker does; None if it does not answer."""
    answers = context.service.worker_answers
    busy, memory = await asyncio.gather(
        or_none(answers.get(("operations", pool.name, worker_id), lambda: pool.worker_operations(worker_id))),
        or_none(
            answers.get(
                ("memory", pool.name, worker_id), lambda: pool.worker_memory(worker_id), keep_s=MEMORY_KEEP_S
            )
        ),
    )
    if busy is None:
        return None
    return WorkerRunning(running_operations(busy, pool.name, names_sessions=names_sessions(request)), memory)


async def get_worker_log(context: Context, request: Request) -> Response:
    lines = whole_number(request.query(frozenset({"lines"})), "lines", 1, LOG_LINES, 200) or 200
    pool = pool_of(context, request)
    return answer_packed(request, await patiently(pool.worker_log(request.params["worker"], lines)))


async def _known(context: Context, pool: ClusterPool) -> tuple[PoolStatus, Mapping[int, SlotSnapshot]]:
    """The workers as the supervisor has them, by its last report if it is away, and what they report themselves."""
    update, (status,) = await asyncio.gather(
        _update(context, pool), gather([in_time(context, pool.status())])
    )
    if isinstance(status, PoolError):
        if update is None or update.status is None:
            raise status
        status = update.status
    return status, {} if update is None else update.snapshot.workers


async def _update(context: Context, pool: ClusterPool) -> LiveUpdate | None:
    if not pool.config.enable_metrics:
        return None
    asked = context.service.answers.get(("workers", pool.name), lambda: pool.live_update(workers=True))
    return await or_none(asked, FIGURES_S)


def worker_rows(status: PoolStatus, figures: Mapping[int, SlotSnapshot]) -> list[WorkerRow]:
    """The workers of `status` with what they report themselves: `figures`, by ordinal."""
    by_worker = {one.worker: one for one in figures.values() if one.worker is not None}
    return [_row(worker, by_worker.get(worker.id)) for worker in status.workers]


def _row(worker: WorkerStatus, figures: SlotSnapshot | None) -> WorkerRow:
    facts = msgspec.structs.asdict(worker) | {
        "started_at": round(worker.started_at, 1),
        "checked_at": None if worker.checked_at is None else round(worker.checked_at, 1),
    }
    if figures is None:
        return WorkerRow(**facts, trouble=trouble_of(worker))
    # Its own reports come every second, the supervisor's look at it only with each health check.
    facts |= {"running": figures.running, "sessions": figures.sessions}
    facts |= {"slots": worker.slots or figures.slots, "rss_mb": figures.rss_mb or worker.rss_mb}
    recent = figures.recent
    return WorkerRow(
        **facts,
        utilization=round(recent.utilization, _DIGITS),
        throughput=round(recent.throughput, _DIGITS),
        p99_s=round(recent.p99_s, _DIGITS) if recent.operations else None,
        trouble=trouble_of(worker, failed=recent.errors + recent.timeouts, served=recent.operations),
    )


def running_operations(
    busy: Iterable[dict[str, Any]], pool: str, *, names_sessions: bool
) -> list[RunningOperation]:
    """What runs in a worker's slots, the longest first."""
    rows = [
        RunningOperation(
            row["operation_id"],
            row["command"],
            # A session's programs are named by users.
            row["program"] if names_sessions or row["session"] is None else None,
            row["session"] and shown_session(row["session"], pool, names_sessions),
            round(row["held_s"], 3),
        )
        for row in busy
    ]
    return sorted(rows, key=lambda row: -row.held_s)


def shown_session(id: str, pool: str, names_sessions: bool) -> str:
    """Ids may name people: who is no admin gets the hash that logs and spans have."""
    return id if names_sessions else session_hash(id, pool)


# --- what is done with them -------------------------------------------------------------------------


async def drain_worker(context: Context, request: Request) -> Response:
    return await _until_gone(context, request, pool_of(context, request).drain)


async def restart_worker(context: Context, request: Request) -> Response:
    return await _until_gone(context, request, pool_of(context, request).restart)


async def _until_gone(context: Context, request: Request, remove: Callable[..., Awaitable[bool]]) -> Response:
    asked = await optional_body(context, request, _gone_body, GoneRequest())
    worker = request.params["worker"]
    gone = await remove(worker, wait_s=max(LEAST_WAIT_S, deadline(context, asked.wait_s)))
    return answer_json(WorkerGone(worker, gone))


_WORKER = POOL + "/workers/{worker}"
_REMOVE = (*CHANGE, "unknown_worker", "pool_not_ready", "pool_closed")

ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        POOL + "/workers",
        list_workers,
        "The pool's workers with their figures, a page at a time",
        WorkerList,
        problems=("invalid_request", "pool_not_ready"),
        query=PAGE,
        role="reader",
    ),
    Route(
        "GET",
        _WORKER,
        get_worker,
        "One worker: its figures, what it runs, its memory, warm-up and sessions",
        WorkerDetail,
        problems=("unknown_worker", "pool_not_ready"),
        role="reader",
    ),
    Route(
        "GET",
        POOL + "/running",
        list_running,
        "What runs in the slots of some workers now, and their memory",
        RunningList,
        problems=("invalid_request", "pool_not_ready"),
        query=(("workers", {"type": "string", "description": "at most 64 ids with commas between"}),),
        role="reader",
    ),
    Route(
        "GET",
        _WORKER + "/log",
        get_worker_log,
        "The end of a worker's log; lines of dspool's own logging only, unless the pool captures content",
        LogTail,
        problems=("invalid_request", "unknown_worker", "pool_not_ready", "worker_lost"),
        query=(("lines", {"type": "integer", "minimum": 1, "maximum": LOG_LINES, "default": 200}),),
    ),
    Route(
        "POST",
        _WORKER + "/drain",
        drain_worker,
        "Take a worker out of traffic, let it finish, stop it; a replacement starts at once",
        WorkerGone,
        GoneRequest,
        problems=_REMOVE,
        body_optional=True,
    ),
    Route(
        "POST",
        _WORKER + "/restart",
        restart_worker,
        "Replace a worker, its replacement warm first",
        WorkerGone,
        GoneRequest,
        problems=_REMOVE,
        body_optional=True,
    ),
)
