"""Sessions: their lives, and the programs that run in them."""

from __future__ import annotations

import secrets
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from dspool.errors import Conflict, InvalidRequest, NotAllowed, UnknownProgram
from dspool.messages import (
    ConfigureLM,
    CreateProgram,
    DeleteProgram,
    ExecuteProgram,
    GetHistory,
    GetProgramInfo,
    ListPrograms,
    ResetSession,
    Result,
    SessionInfo,
    StreamProgram,
)
from dspool_serve.api.common import (
    CHANGE,
    LOOK,
    PAGE,
    POOL,
    RUN,
    answer_json,
    body_of,
    callers_pool,
    cut,
    deadline,
    execution_of,
    optional_body,
    page_of,
    parted,
    pool_of,
    program_or_copy,
    result_of,
    run,
    stream_program,
    whole_number,
)
from dspool_serve.api.schema import (
    ExecuteRequest,
    ExecuteResponse,
    History,
    LMRequest,
    LMResponse,
    ProgramCopy,
    ProgramRequest,
    ProgramResponse,
    ProgramSpec,
    SessionList,
    SessionProgramList,
    SessionRequest,
)
from dspool_serve.context import Context
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

MAX_HISTORY = 1000

_execute_body = msgspec.json.Decoder(ExecuteRequest)
_session_body = msgspec.json.Decoder(SessionRequest)
_lm_body = msgspec.json.Decoder(LMRequest)


# --- their lives ------------------------------------------------------------------------------------


async def create_session(context: Context, request: Request) -> Response:
    asked = await optional_body(context, request, _session_body, SessionRequest())
    pool = callers_pool(context, request)
    id = secrets.token_urlsafe(16) if asked.id is None else asked.id
    if not id.isprintable():
        raise InvalidRequest("a session id has printable characters only")
    info = await pool.create_session(id)
    path = f"{context.settings.root_path}/v1/pools/{quote(pool.name, safe='')}/sessions/{quote(id, safe='')}"
    return answer_json(info, 201, ((b"location", path.encode()),))


async def list_sessions(context: Context, request: Request) -> Response:
    limit, cursor, _ = page_of(request)
    pool = callers_pool(context, request)
    sessions, following = await pool.sessions(limit=limit, after=cursor)
    return answer_json(SessionList(sessions, following))


async def get_session(context: Context, request: Request) -> Response:
    pool = callers_pool(context, request)
    return answer_json(await pool.session_info(request.params["session"]))


async def end_session(context: Context, request: Request) -> Response:
    await callers_pool(context, request).end_session(request.params["session"])
    return Response(204, b"")


async def reset_session(context: Context, request: Request) -> Response:
    await _run(context, request, ResetSession())
    return Response(204, b"")


async def configure_session_lm(context: Context, request: Request) -> Response:
    asked = await body_of(context, request, _lm_body)
    return answer_json((await _run(context, request, ConfigureLM(asked.profile, asked.overrides))).value)


async def get_session_history(context: Context, request: Request) -> Response:
    limit = whole_number(request.query(frozenset({"limit"})), "limit", 1, MAX_HISTORY, 50)
    return answer_json((await _run(context, request, GetHistory(limit or 0))).value)


# --- their programs ---------------------------------------------------------------------------------


async def execute_session_program(context: Context, request: Request) -> Response:
    asked = await execution_of(context, request, _execute_body)
    command = ExecuteProgram(request.params["program"], asked.inputs, lm=asked.lm)
    return answer_json(result_of(await _run(context, request, command, deadline(context, asked.timeout_s))))


async def stream_session_program(context: Context, request: Request) -> EventStream:
    asked = await execution_of(context, request, _execute_body)
    command = StreamProgram(request.params["program"], asked.inputs, lm=asked.lm)
    session = request.params["session"]
    return stream_program(context, request, command, session=session, timeout_s=asked.timeout_s)


async def list_session_programs(context: Context, request: Request) -> Response:
    limit, cursor, _ = page_of(request)
    # Asked first: running a command in a session that is not there must say so, not list the pool's programs.
    await callers_pool(context, request).session_info(request.params["session"])
    programs: list[dict[str, Any]] = (await _run(context, request, ListPrograms())).value["programs"]
    found, following = cut(programs, lambda one: f"{one['program']}\n{one['scope']}", limit, cursor)
    return answer_json({"programs": found, "next_cursor": following})


async def put_program(context: Context, request: Request) -> Response:
    # As HTTP has it for "only if there is none yet".
    over = request.headers.get(b"if-none-match") != b"*"
    name = request.params["program"]
    asked = await program_or_copy(context, request)
    if isinstance(asked, ProgramCopy):
        command = CreateProgram(
            name, state=asked.state, replace=over, copy_of=asked.copy_of, version=asked.version or 0
        )
    else:
        command = CreateProgram(name, asked.spec, asked.state, asked.import_path, asked.kwargs, over)
    if command.names_imports and request.role != "admin" and not context.settings.session_imports:
        raise NotAllowed(
            "import paths in sessions are for admins here (also as tools and rewards): run a pool program, or ask for "
            "service.session_imports",
            needs="admin",
        )
    if command.version:
        command = await _of_version(context, request, command)
    return _program(request, await _run(context, request, command))


async def _of_version(context: Context, request: Request, command: CreateProgram) -> CreateProgram:
    """The same as a worker takes it, which has loaded the current version and knows no other."""
    pool = pool_of(context, request)
    name, version = str(command.copy_of), command.version
    current = (await pool.current_versions()).get(name)
    if version == current:
        return replace(command, version=0)
    versions = {one.version: one for one in await pool.deployments() if one.program == name}
    if current is None or (found := versions.get(version)) is None:
        known = ", ".join(map(str, sorted(versions))) or "none"
        raise UnknownProgram(
            f"pool program {name[:80]!r} has no version {version}; it has: {known}", program=name[:80]
        )
    if found.spec is None:
        raise Conflict(
            f"version {version} of {name!r} is from an import path, and workers have the source of version {current}: "
            "roll back to it, or try another state of the current one",
            program=name,
        )
    state = found.state if command.state is None else command.state
    return replace(command, spec=found.spec, state=state, copy_of=None, version=0)


async def get_program(context: Context, request: Request) -> Response:
    return _program(request, await _run(context, request, GetProgramInfo(request.params["program"])))


async def delete_program(context: Context, request: Request) -> Response:
    await _run(context, request, DeleteProgram(request.params["program"]))
    return Response(204, b"")


def _program(request: Request, answer: Result) -> Response:
    told = answer.value if isinstance(answer.value, dict) else {}
    params = request.params
    if isinstance(made := told.get("info"), dict):
        facts, *schemas = parted(made)
        facts = told | {"info": facts}
    else:
        facts, *schemas = parted(told)
    return answer_json(ProgramResponse(params["session"], params["program"], facts, *schemas))


async def _run(context: Context, request: Request, command: Any, timeout_s: float | None = None) -> Result:
    return await run(context, request, command, session=request.params["session"], timeout_s=timeout_s)


_SESSIONS = POOL + "/sessions"
SESSION = _SESSIONS + "/{session}"
_PROGRAM = SESSION + "/programs/{program}"

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        _SESSIONS,
        create_session,
        "Create an empty session",
        SessionInfo,
        SessionRequest,
        status=201,
        problems=(*CHANGE, "conflict", "quota_exceeded", "store_failed"),
        body_optional=True,
        role="caller",
    ),
    Route(
        "GET",
        _SESSIONS,
        list_sessions,
        "The pool's sessions, a page at a time",
        SessionList,
        problems=("invalid_request", "store_failed"),
        query=PAGE,
        role="caller",
    ),
    Route(
        "GET",
        SESSION,
        get_session,
        "One session",
        SessionInfo,
        problems=("unknown_session", "invalid_request", "store_failed"),
        role="caller",
    ),
    Route(
        "DELETE",
        SESSION,
        end_session,
        "End a session; its programs and variables are gone",
        status=204,
        problems=("unknown_session", "invalid_request", *LOOK),
        role="caller",
    ),
    Route(
        "POST",
        SESSION + "/reset",
        reset_session,
        "Forget the session's programs, variables, LM choice and history; the session stays",
        status=204,
        problems=("unknown_session", "invalid_request", *LOOK),
        role="caller",
    ),
    Route(
        "PUT",
        SESSION + "/lm",
        configure_session_lm,
        "Use a configured LM profile for the session's programs; creates the session",
        LMResponse,
        LMRequest,
        problems=(*CHANGE, "unknown_name", "too_many_sessions", "quota_exceeded", "not_allowed", *LOOK),
        role="caller",
    ),
    Route(
        "GET",
        SESSION + "/history",
        get_session_history,
        "The session's last operations, newest last; gone if its worker dies",
        History,
        problems=("unknown_session", "invalid_request", *LOOK),
        query=(("limit", {"type": "integer", "minimum": 1, "maximum": MAX_HISTORY, "default": 50}),),
        role="caller",
    ),
    Route(
        "GET",
        SESSION + "/programs",
        list_session_programs,
        "The programs that the session can run: its own and the pool's",
        SessionProgramList,
        problems=("unknown_session", "invalid_request", *LOOK),
        query=PAGE,
        role="caller",
    ),
    Route(
        "PUT",
        _PROGRAM,
        put_program,
        "Create or replace a program of a session; creates the session",
        ProgramResponse,
        ProgramRequest | ProgramSpec | ProgramCopy,
        problems=(*RUN, "not_allowed", "unknown_program", "conflict", "too_many_sessions", "quota_exceeded"),
        role="caller",
    ),
    Route(
        "GET",
        _PROGRAM,
        get_program,
        "A program of a session",
        ProgramResponse,
        problems=("unknown_program", "unknown_session", "invalid_request", *LOOK),
        role="caller",
    ),
    Route(
        "DELETE",
        _PROGRAM,
        delete_program,
        "Delete a program of a session",
        status=204,
        problems=("unknown_program", "unknown_session", "invalid_request", *LOOK),
        role="caller",
    ),
    Route(
        "POST",
        _PROGRAM + "/execute",
        execute_session_program,
        "Run a program of a session, after the session's earlier operations",
        ExecuteResponse,
        ExecuteRequest,
        problems=(*RUN, "unknown_session"),
        takes_form=True,
        role="caller",
    ),
    Route(
        "POST",
        _PROGRAM + "/stream",
        stream_session_program,
        "Run a program of a session and send its output as it comes",
        ExecuteResponse,
        ExecuteRequest,
        problems=(*RUN, "unknown_session"),
        stream="program",
        takes_form=True,
        role="caller",
    ),
)
