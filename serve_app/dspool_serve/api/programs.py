"""Pool programs: run them, look at them, deploy new versions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, Literal

import msgspec

from dspool.core.lifecycle.source import digest_of
from dspool.core.lifecycle.version_diff import differences
from dspool.core.lifecycle.versions import check_known
from dspool.errors import InvalidRequest, PoolError, UnknownProgram
from dspool.messages import Deployment, ExecuteProgram, GetProgramInfo, StreamProgram
from dspool.supervisor.canary import Rollout
from dspool_serve.api.common import (
    CHANGE,
    LOOK,
    PAGE,
    POOL,
    RUN,
    answer_json,
    answer_packed,
    body_of,
    cut,
    deadline,
    deploy_body,
    execution_of,
    gather,
    names_sessions,
    optional_body,
    page_of,
    parted,
    pool_of,
    result_of,
    run,
    stream_program,
    stream_progress,
    wants_events,
    whole_number,
)
from dspool_serve.api.schema import (
    BatchItem,
    BatchRequest,
    BatchResponse,
    ExecuteRequest,
    ExecuteResponse,
    Problem,
    ProgramSpec,
)
from dspool_serve.api.version_schema import (
    Deployed,
    DeployRequest,
    PoolProgram,
    PoolProgramInfo,
    PoolProgramList,
    ProgramVersion,
    RollbackRequest,
    VersionComparison,
)
from dspool_serve.context import Context
from dspool_serve.costly import in_thread
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.problems import problem_body
from dspool_serve.http.requests import Request, number
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

_execute_body = msgspec.json.Decoder(ExecuteRequest)
_batch_body = msgspec.json.Decoder(BatchRequest)
MAX_CANARY_S = 3600
"""Longest time that somebody may have a canary watched."""
LONGEST_SUMMARY: Final = 200
"""Characters."""

_rollback_body = msgspec.json.Decoder(RollbackRequest)


async def execute_pool_program(context: Context, request: Request) -> Response:
    """The hot path: everything here is paid by each operation."""
    params = request.params
    pool = context.caller(params["pool"])
    asked = await execution_of(context, request, _execute_body)
    answer = await pool.run(
        ExecuteProgram(params["program"], asked.inputs, lm=asked.lm),
        timeout_s=deadline(context, asked.timeout_s),
        traceparent=request.traceparent,
    )
    return answer_json(result_of(answer))


async def stream_pool_program(context: Context, request: Request) -> EventStream:
    asked = await execution_of(context, request, _execute_body)
    command = StreamProgram(request.params["program"], asked.inputs, lm=asked.lm)
    return stream_program(context, request, command, session=None, timeout_s=asked.timeout_s)


async def execute_batch(context: Context, request: Request) -> Response:
    program = request.params["program"]
    asked = await body_of(context, request, _batch_body)
    most = context.settings.max_batch
    if len(asked.inputs) > most:
        raise InvalidRequest(
            f"a batch has at most {most} sets of inputs, got {len(asked.inputs)}", limit=most
        )
    timeout_s = deadline(context, asked.timeout_s)
    pool_of(context, request)
    ends = await gather(
        [
            run(context, request, ExecuteProgram(program, inputs, lm=asked.lm), timeout_s=timeout_s)
            for inputs in asked.inputs
        ]
    )
    items = [
        BatchItem(problem=Problem(**problem_body(end)))
        if isinstance(end, PoolError)
        else BatchItem(result=result_of(end))
        for end in ends
    ]
    failed = sum(item.problem is not None for item in items)
    return answer_json(BatchResponse(items, len(items) - failed, failed))


async def list_pool_programs(context: Context, request: Request) -> Response:
    limit, cursor, _ = page_of(request)
    programs = list((await _programs(context, request)).values())
    return answer_json(PoolProgramList(*cut(programs, lambda one: one.program, limit, cursor)))


async def get_pool_program(context: Context, request: Request) -> Response:
    name = request.params["program"]
    known = (await _programs(context, request)).get(name)
    if known is None:
        raise UnknownProgram(f"pool {request.params['pool']} has no program {name!r}", program=name)
    info = (await run(context, request, GetProgramInfo(name))).value
    return answer_json(PoolProgramInfo(name, known.version, known.versions, *parted(info)))


async def _programs(context: Context, request: Request) -> dict[str, PoolProgram]:
    pool = pool_of(context, request)
    current = await pool.current_versions()
    kept: dict[str, list[Deployment]] = {program: [] for program in current}
    for deployment in sorted(await pool.deployments(), key=lambda one: -one.version):
        kept.setdefault(deployment.program, []).append(deployment)
    return {
        program: PoolProgram(
            program,
            version,
            sorted({*(one.version for one in kept[program]), version}),
            [program_version(one, with_who=names_sessions(request)) for one in kept[program]],
        )
        for program, version in current.items()
    }


def program_version(deployment: Deployment, *, with_who: bool = False) -> ProgramVersion:
    """What may be shown of a version: descriptions, demonstrations and states may hold anything."""
    kind, summary = _made_from(deployment)
    return ProgramVersion(
        deployment.version,
        kind,
        summary[:LONGEST_SUMMARY],
        digest_of(deployment.source),
        digest_of(deployment.state),
        deployment.made_by,
        deployment.made_at or None,
        deployment.by if with_who else "",
    )


def _made_from(deployment: Deployment) -> tuple[Literal["spec", "state", "import_path", "program_dir"], str]:
    if deployment.import_path is not None:
        return "import_path", deployment.import_path
    if deployment.program_dir is not None:
        return "program_dir", deployment.program_dir
    signature = (deployment.spec or {}).get("signature")
    summary = signature if isinstance(signature, str) else ""
    # The long form: only the fields' names.
    if isinstance(signature, dict):
        sides = (signature.get("inputs"), signature.get("outputs"))
        summary = " -> ".join(", ".join(map(str, side or ())) for side in sides)
    return "state" if deployment.state is not None else "spec", summary


async def compare_versions(context: Context, request: Request) -> Response:
    """Instructions and demonstrations may hold anything: for admins."""
    name = request.params["program"]
    query = request.query(frozenset({"old", "new"}))
    pool = pool_of(context, request)
    made = {one.version: one for one in await pool.deployments() if one.program == name}
    if not made:
        check_known(name, await pool.current_versions(), "to compare")
    old, new = (_version_named(query, side, name, made) for side in ("old", "new"))
    found = await context.service.costly.run(
        request.principal, lambda: in_thread(lambda: differences(old, new))
    )
    both, of_program = (
        {old.version, new.version},
        [one for one in await pool.rollouts() if one.program == name],
    )
    tried = next((one for one in of_program if one.new and {one.version, one.previous} == both), None)
    before, after = (program_version(one, with_who=names_sessions(request)) for one in (old, new))
    return answer_packed(request, VersionComparison(name, before, after, found, tried))


def _version_named(query: dict[str, str], side: str, program: str, made: dict[int, Deployment]) -> Deployment:
    number = whole_number(query, side, 1, 2**31)
    if number is None:
        raise InvalidRequest(f"{side} is missing: the version to compare", field=side)
    if number not in made:
        raise UnknownProgram(
            f"there is no version {number} of {program}; known: {sorted(made)}", program=program
        )
    return made[number]


async def deploy_pool_program(context: Context, request: Request) -> Response | EventStream:
    name = request.params["program"]
    query = request.query(frozenset({"canary_s"}))
    watch_s = number(query, "canary_s", 0.0, least=0.0, most=MAX_CANARY_S) if query else None
    asked = await deploy_body(context, request)
    wanted = Deployment(
        name,
        0,
        asked.spec,
        asked.state,
        asked.import_path,
        asked.kwargs,
        program_dir=asked.program_dir,
        by=request.principal or "",
    )
    pool = pool_of(context, request)
    if wants_events(request):
        moments = pool.stream_deploy(wanted, canary_s=watch_s, new=asked.new)
        return stream_progress(context, _deployed(moments), Deployed)
    done = await pool.deploy(wanted, canary_s=watch_s, new=asked.new)
    return answer_json(Deployed(done.program, done.version), 201)


async def _deployed(source: AsyncGenerator[Rollout | Deployment]) -> AsyncGenerator[Rollout | Deployed]:
    async with aclosing(source):
        async for moment in source:
            yield Deployed(moment.program, moment.version) if isinstance(moment, Deployment) else moment


async def roll_back_pool_program(context: Context, request: Request) -> Response:
    asked = await optional_body(context, request, _rollback_body, RollbackRequest())
    pool, who = pool_of(context, request), request.principal or ""
    done = await pool.rollback(request.params["program"], asked.version, by=who)
    return answer_json(Deployed(done.program, done.version))


_PROGRAM = POOL + "/programs/{program}"

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        _PROGRAM + "/execute",
        execute_pool_program,
        "Run a pool program on any worker",
        ExecuteResponse,
        ExecuteRequest,
        problems=RUN,
        takes_form=True,
        role="caller",
    ),
    Route(
        "POST",
        _PROGRAM + "/batch",
        execute_batch,
        "Run a pool program on many inputs; each ends by itself",
        BatchResponse,
        BatchRequest,
        problems=CHANGE,
        role="caller",
    ),
    Route(
        "POST",
        _PROGRAM + "/stream",
        stream_pool_program,
        "Run a pool program and send its output as it comes",
        ExecuteResponse,
        ExecuteRequest,
        problems=RUN,
        stream="program",
        takes_form=True,
        role="caller",
    ),
    Route(
        "GET",
        POOL + "/programs",
        list_pool_programs,
        "The pool's programs and their versions, a page at a time",
        PoolProgramList,
        problems=("invalid_request", *LOOK),
        query=PAGE,
        role="reader",
    ),
    Route(
        "GET",
        _PROGRAM,
        get_pool_program,
        "A pool program, as its workers describe it",
        PoolProgramInfo,
        problems=("unknown_program", *LOOK),
        role="reader",
    ),
    Route(
        "GET",
        _PROGRAM + "/compare",
        compare_versions,
        "In what two versions differ, and what both did while the later one was tried",
        VersionComparison,
        problems=("invalid_request", "unknown_program", "queue_full", *LOOK),
        query=tuple((side, {"type": "integer", "minimum": 1}) for side in ("old", "new")),
    ),
    Route(
        "POST",
        _PROGRAM + "/versions",
        deploy_pool_program,
        "Deploy a new version of a pool program, a canary first; answers when every warm worker has it",
        Deployed,
        DeployRequest | ProgramSpec,
        body_optional=True,
        status=201,
        problems=(*CHANGE, "not_allowed", "unknown_program", "conflict", "program_error", "pool_not_ready"),
        query=(("canary_s", {"type": "number", "minimum": 0, "maximum": MAX_CANARY_S}),),
        stream="deploy",
    ),
    Route(
        "POST",
        _PROGRAM + "/rollback",
        roll_back_pool_program,
        "Make an earlier version of a pool program current again",
        Deployed,
        RollbackRequest,
        problems=(*CHANGE, "unknown_program", "conflict", "pool_not_ready"),
        body_optional=True,
    ),
)
