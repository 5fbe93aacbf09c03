"""The routes: one small function each, and the table that names them.

`ROUTES` is also what the OpenAPI document is made from, so a route cannot exist undocumented.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from dspool.commands import (
    CreateProgram,
    DeleteProgram,
    ExecuteProgram,
    GetProgramInfo,
    PoolStatus,
    SessionInfo,
)
from dspool.errors import InvalidRequest, PoolError, PoolNotReady
from dspool_serve.decoding import decode
from dspool_serve.http import Request, Response
from dspool_serve.pools import Answer, ServedPool
from dspool_serve.router import Route
from dspool_serve.schema import (
    ExecuteRequest,
    ExecuteResponse,
    Health,
    PoolList,
    PoolSummary,
    ProgramRequest,
    ProgramResponse,
    ProgramSpec,
    Readiness,
    SessionList,
    Timings,
)

if TYPE_CHECKING:
    from dspool_serve.app import Application

STATUS_TIMEOUT_S = 5.0
"""How long a look at a pool may take before it counts as not ready."""
MAX_PAGE = 1000

_encode = msgspec.json.Encoder().encode
_execute_body = msgspec.json.Decoder(ExecuteRequest)
_object_body = msgspec.json.Decoder(dict[str, Any])


# --- running programs -------------------------------------------------------------------------------


async def execute_pool_program(app: Application, request: Request) -> Response:
    """The hot path: everything here is paid by each operation."""
    params = request.params
    pool = app.pools.get(params["pool"])
    asked = decode(_execute_body, await request.body(app.settings.max_body_bytes))
    answer = await pool.run(
        ExecuteProgram(params["program"], asked.inputs),
        timeout_s=_deadline(app, asked.timeout_s),
        traceparent=request.traceparent,
    )
    return _executed(answer)


async def execute_session_program(app: Application, request: Request) -> Response:
    params = request.params
    pool = app.pools.get(params["pool"])
    asked = decode(_execute_body, await request.body(app.settings.max_body_bytes))
    answer = await pool.run(
        ExecuteProgram(params["program"], asked.inputs),
        session=params["session"],
        timeout_s=_deadline(app, asked.timeout_s),
        traceparent=request.traceparent,
    )
    return _executed(answer)


def _deadline(app: Application, asked: float | None) -> float:
    longest = app.settings.operation_timeout_s
    return longest if asked is None else min(asked, longest)


def _executed(answer: Answer) -> Response:
    return Response(
        200,
        _encode(
            ExecuteResponse(
                outputs=answer.value["outputs"],
                operation_id=answer.operation_id,
                worker=answer.worker,
                program_version=answer.program_version,
                timings=Timings(answer.wait_s, answer.run_s),
                usage=answer.usage,
                offline=answer.offline,
            )
        ),
    )


# --- programs of a session --------------------------------------------------------------------------


async def put_program(app: Application, request: Request) -> Response:
    params = request.params
    pool = app.pools.get(params["pool"])
    body = decode(_object_body, await request.body(app.settings.max_body_bytes))
    asked = _program_request(body)
    command = CreateProgram(
        program=params["program"],
        spec=asked.spec,
        state=asked.state,
        import_path=asked.import_path,
        kwargs=asked.kwargs,
        replace=True,
    )
    answer = await pool.run(command, session=params["session"], traceparent=request.traceparent)
    return _program(params, answer)


def _program_request(body: dict[str, Any]) -> ProgramRequest:
    """What was sent: a `ProgramRequest`, or a bare spec, recognised by its `signature`."""
    if "signature" in body:
        return ProgramRequest(spec=body)
    try:
        asked = msgspec.convert(body, ProgramRequest)
    except msgspec.ValidationError as refused:
        raise InvalidRequest(f"not a program: {refused}") from refused
    if (asked.spec is None) == (asked.import_path is None):
        raise InvalidRequest(
            'a program needs either "spec" (or "signature" and the rest of a spec) or "import_path"'
        )
    return asked


async def get_program(app: Application, request: Request) -> Response:
    params = request.params
    pool = app.pools.get(params["pool"])
    answer = await pool.run(
        GetProgramInfo(params["program"]), session=params["session"], traceparent=request.traceparent
    )
    return _program(params, answer)


async def delete_program(app: Application, request: Request) -> Response:
    params = request.params
    pool = app.pools.get(params["pool"])
    await pool.run(
        DeleteProgram(params["program"]), session=params["session"], traceparent=request.traceparent
    )
    return Response(204, b"")


def _program(params: dict[str, str], answer: Answer) -> Response:
    info = answer.value if isinstance(answer.value, dict) else {}
    return Response(200, _encode(ProgramResponse(params["session"], params["program"], info)))


# --- sessions ---------------------------------------------------------------------------------------


async def list_sessions(app: Application, request: Request) -> Response:
    query = request.query(frozenset({"limit", "cursor"}))
    pool = app.pools.get(request.params["pool"])
    limit = query.get("limit", "100")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_PAGE):
        raise InvalidRequest(f"limit must be a whole number from 1 to {MAX_PAGE}, got {limit[:20]!r}")
    sessions, following = await pool.sessions(limit=int(limit), after=query.get("cursor"))
    return Response(200, _encode(SessionList(sessions, following)))


async def get_session(app: Application, request: Request) -> Response:
    info = await app.pools.get(request.params["pool"]).session_info(request.params["session"])
    return Response(200, _encode(info))


async def end_session(app: Application, request: Request) -> Response:
    await app.pools.get(request.params["pool"]).end_session(request.params["session"])
    return Response(204, b"")


# --- pools and health -------------------------------------------------------------------------------


async def list_pools(app: Application, request: Request) -> Response:
    states = await asyncio.gather(*(_look(app.pools.get(name)) for name in app.pools.names()))
    return Response(200, _encode(PoolList([_summary(state) for state in states])))


async def get_pool(app: Application, request: Request) -> Response:
    return Response(200, _encode(await app.pools.get(request.params["pool"]).status()))


async def healthz(app: Application, request: Request) -> Response:
    """The process answers. Says nothing about workers: that is `readyz`."""
    return Response(200, app.health)


async def readyz(app: Application, request: Request) -> Response:
    states = await asyncio.gather(*(_look(app.pools.get(name)) for name in app.pools.names()))
    late = [f"{state.name}: {state.reason or state.state}" for state in states if not state.ready]
    if late or not states:
        raise PoolNotReady("; ".join(late) or "no pool is connected yet", retry_after_s=1.0)
    return Response(200, _encode(Readiness(True, {state.name: state.state for state in states})))


async def openapi(app: Application, request: Request) -> Response:
    return Response(200, app.document)


async def _look(pool: ServedPool) -> PoolStatus:
    """The pool's status; one that cannot be had is a pool that is not ready, never an error."""
    why = f"no answer within {STATUS_TIMEOUT_S:g} s"
    try:
        return await asyncio.wait_for(pool.status(), STATUS_TIMEOUT_S)
    except PoolError as failed:
        why = failed.message
    except TimeoutError:
        pass
    return PoolStatus(pool.name, "degraded", False, 0, 0, 0, 0, reason=why)


def _summary(state: PoolStatus) -> PoolSummary:
    return PoolSummary(
        state.name, state.state, state.ready, state.desired, state.actual, state.programs, state.reason
    )


# --- the table --------------------------------------------------------------------------------------

_RUN = (
    "malformed_request",
    "unknown_program",
    "payload_too_large",
    "invalid_request",
    "queue_full",
    "program_error",
    "model_error",
    "pool_not_ready",
    "deadline_exceeded",
)
_PAGE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100}),
    ("cursor", {"type": "string"}),
)
_POOL = "/v1/pools/{pool}"
_SESSION = _POOL + "/sessions/{session}"
_PROGRAM = _SESSION + "/programs/{program}"

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        _POOL + "/programs/{program}/execute",
        execute_pool_program,
        "Run a pool program on any worker",
        ExecuteResponse,
        ExecuteRequest,
        problems=_RUN,
    ),
    Route(
        "POST",
        _PROGRAM + "/execute",
        execute_session_program,
        "Run a program of a session, after the session's earlier operations",
        ExecuteResponse,
        ExecuteRequest,
        problems=(*_RUN, "unknown_session"),
    ),
    Route(
        "PUT",
        _PROGRAM,
        put_program,
        "Create or replace a program of a session; creates the session",
        ProgramResponse,
        ProgramRequest | ProgramSpec,
        problems=(*_RUN, "not_allowed", "too_many_sessions"),
    ),
    Route(
        "GET",
        _PROGRAM,
        get_program,
        "A program of a session",
        ProgramResponse,
        problems=("unknown_program", "pool_not_ready", "deadline_exceeded"),
    ),
    Route(
        "DELETE",
        _PROGRAM,
        delete_program,
        "Delete a program of a session",
        status=204,
        problems=("unknown_program", "pool_not_ready", "deadline_exceeded"),
    ),
    Route(
        "GET",
        _POOL + "/sessions",
        list_sessions,
        "The pool's sessions, a page at a time",
        SessionList,
        problems=("unknown_pool", "invalid_request"),
        query=_PAGE,
    ),
    Route("GET", _SESSION, get_session, "One session", SessionInfo, problems=("unknown_session",)),
    Route(
        "DELETE",
        _SESSION,
        end_session,
        "End a session; its programs and variables are gone",
        status=204,
        problems=("unknown_session",),
    ),
    Route("GET", "/v1/pools", list_pools, "The pools of this service", PoolList),
    Route("GET", _POOL, get_pool, "One pool with its workers", PoolStatus, problems=("unknown_pool",)),
    Route("GET", "/healthz", healthz, "The service answers", Health),
    Route("GET", "/readyz", readyz, "Enough workers are warm", Readiness, problems=("pool_not_ready",)),
    Route("GET", "/openapi.json", openapi, "This document", Any),
)
