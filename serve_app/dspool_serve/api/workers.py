"""The pool's workers: look at them, replace them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from dspool.errors import UnknownWorker
from dspool.messages import WorkerStatus
from dspool_serve.api.common import (
    CHANGE,
    PAGE,
    POOL,
    answer_json,
    cut,
    deadline,
    optional_body,
    page_of,
    pool_of,
)
from dspool_serve.api.schema import GoneRequest, WorkerGone, WorkerList
from dspool_serve.context import Context
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

_gone_body = msgspec.json.Decoder(GoneRequest)
LEAST_WAIT_S = 1.0
"""Long enough to hear that there is no such worker."""


async def list_workers(context: Context, request: Request) -> Response:
    limit, cursor, _ = page_of(request)
    workers = (await pool_of(context, request).status()).workers
    return answer_json(WorkerList(*cut(workers, lambda worker: worker.id, limit, cursor)))


async def get_worker(context: Context, request: Request) -> Response:
    id = request.params["worker"]
    for worker in (await pool_of(context, request).status()).workers:
        if worker.id == id:
            return answer_json(worker)
    raise UnknownWorker(f"pool {request.params['pool']} has no worker {id!r}", worker=id)


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
        "The pool's workers, a page at a time",
        WorkerList,
        problems=("invalid_request", "pool_not_ready"),
        query=PAGE,
        role="reader",
    ),
    Route(
        "GET",
        _WORKER,
        get_worker,
        "One worker",
        WorkerStatus,
        problems=("unknown_worker", "pool_not_ready"),
        role="reader",
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
