"""What the routes share: bodies, pages, and how an operation is run."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

import msgspec

from dspool.core.admission.access import allowed
from dspool.errors import InvalidRequest, NotAllowed, PoolError, PoolNotReady
from dspool.messages import AnyCommand, Deployment, Result, StreamEvent
from dspool_serve.api.schema import ExecuteRequest, ExecuteResponse, ProgramCopy, ProgramRequest, Timings
from dspool_serve.api.version_schema import DeployRequest
from dspool_serve.context import Context
from dspool_serve.http.event_stream import EVENT_STREAM, EventStream, ProgressStream, event, stream_event
from dspool_serve.http.forms import form_inputs, is_form
from dspool_serve.http.requests import Request, decode
from dspool_serve.http.responses import Response
from dspool_serve.pools import CallerView, ClusterPool

T = TypeVar("T")

POOL = "/v1/pools/{pool}"
MAX_PAGE = 1000
PAGE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100}),
    ("cursor", {"type": "string"}),
)
LOOK = ("pool_not_ready", "deadline_exceeded")
"""What may go wrong with an operation that runs no program."""
RUN = (
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
CHANGE = ("malformed_request", "payload_too_large", "invalid_request")

ANSWER_S: Final = 5.0
"""How long a pool's actors may take to answer; one may be on its way back from a restart."""
PART_S: Final = 2.0
"""How long an answer waits for one of its parts that it can do without."""
SMALLEST_PACKED: Final = 1024
"""Bytes below which packing costs more than it saves."""

encode = msgspec.json.Encoder().encode
_object_body = msgspec.json.Decoder(dict[str, Any])
_NOTHING: Final[dict[str, Any]] = {}


def answer_json(value: Any, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    return Response(status, encode(value), headers=headers)


def pool_of(context: Context, request: Request) -> ClusterPool:
    """The pool itself, for operators and those who look. Raises: UnknownPool."""
    return context.pools.get(request.params["pool"])


def callers_pool(context: Context, request: Request) -> CallerView:
    """The pool as the one who asks may use it. Raises: UnknownPool."""
    return context.caller(request.params["pool"])


def answer_packed(request: Request, value: Any) -> Response:
    """As `answer_json`, packed if the reader takes that and it is worth it; bytes are JSON already."""
    body = value if isinstance(value, bytes) else encode(value)
    if len(body) < SMALLEST_PACKED or not takes_gzip(request):
        return Response(200, body, headers=(VARY,))
    return Response(200, gzip.compress(body, 1), headers=(VARY, (b"content-encoding", b"gzip")))


VARY: Final = (b"vary", b"accept-encoding")


def takes_gzip(request: Request) -> bool:
    return b"gzip" in request.headers.get(b"accept-encoding", b"")


def measured_pool(context: Context, request: Request) -> ClusterPool:
    """As `pool_of`, of a pool that keeps metrics. Raises: UnknownPool, NotAllowed."""
    pool = pool_of(context, request)
    if not pool.config.enable_metrics:
        raise NotAllowed(f"pool {pool.name!r} keeps no metrics: enable_metrics is off", pool=pool.name)
    return pool


def names_sessions(request: Request) -> bool:
    """Whether the caller may see ids of sessions and who they belong to, which may name people."""
    return allowed(request.role, "admin")


async def patiently(asked: Awaitable[T], seconds: float = ANSWER_S) -> T:
    try:
        return await asyncio.wait_for(asked, seconds)
    except TimeoutError:
        raise PoolNotReady("the pool does not answer in time; try again", retry_after_s=1.0) from None


async def in_time(context: Context, asked: Awaitable[T]) -> T:
    """What the supervisor answers within the request's deadline: it may be away for long. Raises: PoolNotReady."""
    return await patiently(asked, context.settings.operation_timeout_s)


async def or_none(asked: Awaitable[T], seconds: float = PART_S) -> T | None:
    """None where the pool cannot say: a part that is away must not keep the others from being shown."""
    try:
        return await asyncio.wait_for(asked, seconds)
    except (PoolError, TimeoutError):
        return None


async def body_of(context: Context, request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """The request's body, checked; see `decode` for what it raises."""
    return decode(decoder, await request.body(context.settings.max_body_bytes))


async def execution_of(
    context: Context, request: Request, decoder: msgspec.json.Decoder[ExecuteRequest]
) -> ExecuteRequest:
    """What is to be run: as JSON, or as a form with files."""
    body = await request.body(context.settings.max_body_bytes)
    return ExecuteRequest(form_inputs(request, body)) if is_form(request) else decode(decoder, body)


async def optional_body(
    context: Context, request: Request, decoder: msgspec.json.Decoder[T], default: T
) -> T:
    """As `body_of`; no body at all means `default`."""
    body = await request.body(context.settings.max_body_bytes)
    return decode(decoder, body) if body else default


def deadline(context: Context, asked: float | None) -> float:
    longest = context.settings.operation_timeout_s
    return longest if asked is None else min(asked, longest)


async def run(
    context: Context,
    request: Request,
    command: AnyCommand,
    *,
    session: str | None = None,
    timeout_s: float | None = None,
) -> Result:
    """Run one command for this request. Raises what `Pool.run` does."""
    return await callers_pool(context, request).run(
        command,
        session=session,
        timeout_s=timeout_s,
        traceparent=request.traceparent,
    )


def parted(info: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What a worker says of a program: its facts, and the schemas of its inputs and outputs."""
    facts = {key: value for key, value in info.items() if key not in ("inputs", "outputs")}
    return facts, info.get("inputs") or {}, info.get("outputs") or {}


def result_of(answer: Result) -> ExecuteResponse:
    return ExecuteResponse(
        outputs=answer.value["outputs"],
        operation_id=answer.operation_id,
        worker=answer.worker,
        program_version=answer.program_version,
        timings=Timings(answer.wait_s, answer.run_s),
        usage=answer.usage,
        cost_usd=answer.cost_usd,
        offline=answer.offline,
        cached=answer.cached,
        truncated=answer.truncated,
    )


def stream_program(
    context: Context, request: Request, command: AnyCommand, *, session: str | None, timeout_s: float | None
) -> EventStream:
    """The events of a program, then `final` with its result. Leaving cancels the operation."""
    source = callers_pool(context, request).stream(
        command,
        session=session,
        timeout_s=deadline(context, timeout_s),
        traceparent=request.traceparent,
    )

    async def events() -> AsyncGenerator[bytes]:
        try:
            async for one in source:
                yield stream_event(one) if isinstance(one, StreamEvent) else event("final", result_of(one))
        finally:
            # At once, not when the garbage collector finds it: the slot is held until then.
            await source.aclose()

    return EventStream(events(), heartbeat_s=context.settings.heartbeat_s)


def wants_events(request: Request) -> bool:
    """Whether who asks takes server-sent events and nothing else."""
    accepted = request.headers.get(b"accept", b"")
    return EVENT_STREAM in accepted and b"application/json" not in accepted


def stream_progress(context: Context, source: AsyncGenerator[Any], last: type) -> EventStream:
    """A `status` event for each moment of `source`, then `final` with the `last`. Leaving it changes nothing."""

    async def events() -> AsyncGenerator[bytes]:
        async with aclosing(source):
            async for moment in source:
                yield event("final" if isinstance(moment, last) else "status", moment)

    return ProgressStream(events(), heartbeat_s=context.settings.heartbeat_s)


async def gather(work: Sequence[Any]) -> list[Any]:
    """Their results in order; a `PoolError` is returned in its place. Cancelling cancels them all."""

    async def one(each: Any) -> Any:
        try:
            return await each
        except PoolError as failed:
            return failed

    return list(await asyncio.gather(*(one(each) for each in work)))


# --- programs as they are sent ----------------------------------------------------------------------


async def program_or_copy(context: Context, request: Request) -> ProgramRequest | ProgramCopy:
    """What was sent: a `ProgramRequest`; a bare spec, known by its `signature`; or a pool program to copy, known by its
    `copy_of`."""
    body = await body_of(context, request, _object_body)
    if "copy_of" in body and "signature" not in body:
        return _program(body, ProgramCopy)
    asked = _program(body, ProgramRequest)
    if not Deployment("", 0, spec=asked.spec, import_path=asked.import_path).has_one_source:
        raise InvalidRequest(
            'a program needs either "spec" (or "signature" and the rest of a spec) or "import_path"'
        )
    return asked


async def deploy_body(context: Context, request: Request) -> DeployRequest:
    """The next version of a program; a part of it, or nothing, is about the current one."""
    body = await optional_body(context, request, _object_body, _NOTHING)
    if body is _NOTHING:
        return DeployRequest()
    asked = _program(body, DeployRequest, ("new",))
    if body.keys() == {"new"}:
        return asked
    named = (asked.spec, asked.import_path, asked.program_dir)
    alone = asked.state is not None or asked.kwargs
    version = Deployment("", 0, spec=asked.spec, import_path=asked.import_path, program_dir=asked.program_dir)
    if not version.has_one_source and (not alone or any(one is not None for one in named)):
        raise InvalidRequest(
            'a program needs one of "spec" (or "signature" and the rest of a spec), "import_path" and "program_dir"'
        )
    return asked


def _program(body: dict[str, Any], kind: type[T], beside: tuple[str, ...] = ()) -> T:
    """A bare spec may have the members `beside` it."""
    if "signature" in body:
        more = {name: value for name, value in body.items() if name in beside}
        body = {"spec": {name: value for name, value in body.items() if name not in beside}, **more}
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as refused:
        raise InvalidRequest(f"not a program: {str(refused)[:300]}") from refused


# --- pages ------------------------------------------------------------------------------------------


def page_of(request: Request, *more: str) -> tuple[int, str | None, dict[str, str]]:
    """Limit, cursor and all query parameters; `more` are those of the route besides the two.

    Raises:
        InvalidRequest: an unknown parameter, or a limit out of range.
    """
    query = request.query(frozenset({"limit", "cursor", *more}))
    limit = query.get("limit", "100")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_PAGE):
        raise InvalidRequest(f"limit must be a whole number from 1 to {MAX_PAGE}, got {limit[:20]!r}")
    return int(limit), query.get("cursor"), query


def cut(
    items: Sequence[T], key: Callable[[T], str], limit: int, after: str | None
) -> tuple[list[T], str | None]:
    """The page of `items` that follows `after` by `key`, and the cursor of the next one."""
    left = sorted((item for item in items if after is None or key(item) > after), key=key)
    found = left[:limit]
    return found, key(found[-1]) if len(left) > limit else None


def whole_number(
    query: dict[str, str], name: str, least: int, most: int, default: int | None = None
) -> int | None:
    """The whole number that the query parameter `name` holds. Raises: InvalidRequest."""
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and least <= int(text) <= most):
        raise InvalidRequest(f"{name} must be a whole number from {least} to {most}, got {text[:20]!r}")
    return int(text)
