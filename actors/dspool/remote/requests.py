"""What the remote pool sends, and how it takes the answers. No connection in here."""

from __future__ import annotations

import email.utils
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import quote, urlencode

import msgspec

from dspool.errors import (
    InProgress,
    InvalidRequest,
    PoolError,
    QuotaExceeded,
    Rejected,
    Unreachable,
    from_wire,
)
from dspool.messages import (
    JSON,
    READ_ONLY,
    AnyCommand,
    ConfigureLM,
    CreateProgram,
    DeleteProgram,
    DeleteVariable,
    Deployment,
    EndSession,
    ExecuteProgram,
    ExecuteSandboxed,
    GetHistory,
    GetProgramInfo,
    GetVariable,
    ListPrograms,
    ListVariables,
    ResetSession,
    Result,
    SetVariable,
    StreamEvent,
    StreamProgram,
)
from dspool.wire.frames import plain_command

ATTEMPTS = 4
BACKOFF_S = 0.1
BACKOFF_MAX_S = 5.0
RETRIED = frozenset({429, 502, 503})
"""429 and 503: nothing was done. 502: something may have been, and so only what may be repeated is."""


class HttpCall(NamedTuple):
    """One HTTP request."""

    method: str
    path: str
    body: dict[str, JSON] | None = None
    repeatable: bool = False
    """It may be sent again although it may have been done: it changes nothing, or carries a key."""
    key: str | None = None
    """The Idempotency-Key."""
    create_only: bool = False
    """Refused if it is there already."""

    def headers(self, timeout_s: float | None) -> dict[str, str]:
        headers = {}
        if self.key is not None:
            headers["idempotency-key"] = self.key
        if self.create_only:
            headers["if-none-match"] = "*"
        if timeout_s is not None:
            headers["x-request-timeout-seconds"] = f"{timeout_s:.3f}"
        return headers


def call_for(
    pool: str,
    command: AnyCommand,
    session: str | None,
    *,
    timeout_s: float | None,
    idempotent: bool | None,
    operation_id: str | None,
) -> HttpCall:
    """The request for a command.

    A POST gets a key, so that sending it again never does it again: unless `idempotent` says that doing it again is
    fine, which saves the service two writes.

    Raises:
        InvalidRequest: there is no way to ask this over HTTP, or a value that no JSON stands for.
    """
    command = plain_command(command)
    root = f"/v1/pools/{part(pool)}"
    at = root if session is None else f"{root}/sessions/{part(session)}"
    repeatable = type(command) in READ_ONLY

    def post(path: str, body: dict[str, JSON] | None) -> HttpCall:
        key = None if idempotent else (operation_id or uuid.uuid4().hex)
        return HttpCall("POST", path, body, True, key)

    match command:
        case ExecuteProgram(program, inputs) | StreamProgram(program, inputs):
            verb = "stream" if isinstance(command, StreamProgram) else "execute"
            body: dict[str, JSON] = {"inputs": inputs}
            if timeout_s is not None:
                body["timeout_s"] = timeout_s
            if command.lm is not None:
                body["lm"] = command.lm
            return post(f"{at}/programs/{part(program)}/{verb}", body)
        case GetProgramInfo(program):
            return HttpCall("GET", f"{at}/programs/{part(program)}", None, repeatable)
    if session is None:
        raise InvalidRequest(f"{_name(command)} needs a session over HTTP")
    match command:
        case CreateProgram():
            sent = {
                "spec": command.spec,
                "state": command.state,
                "import_path": command.import_path,
                "copy_of": command.copy_of,
                "version": command.version or None,
            }
            given: dict[str, JSON] = {name: value for name, value in sent.items() if value is not None}
            if command.kwargs:
                given["kwargs"] = command.kwargs
            path = f"{at}/programs/{part(command.program)}"
            return HttpCall("PUT", path, given, command.replace, create_only=not command.replace)
        case DeleteProgram(program):
            return HttpCall("DELETE", f"{at}/programs/{part(program)}")
        case ListPrograms():
            return HttpCall("GET", f"{at}/programs?limit=1000", None, repeatable)
        case ConfigureLM(profile, overrides):
            return HttpCall("PUT", f"{at}/lm", {"profile": profile, "overrides": overrides}, True)
        case SetVariable(name, value):
            return HttpCall("PUT", f"{at}/variables/{part(name)}", {"value": value}, True)
        case GetVariable(name):
            return HttpCall("GET", f"{at}/variables/{part(name)}", None, repeatable)
        case ListVariables():
            return HttpCall("GET", f"{at}/variables?limit=1000", None, repeatable)
        case DeleteVariable(name):
            return HttpCall("DELETE", f"{at}/variables/{part(name)}")
        case GetHistory(limit):
            return HttpCall("GET", f"{at}/history?limit={limit}", None, repeatable)
        case ExecuteSandboxed(code):
            body = {"code": code}
            if timeout_s is not None:
                body["timeout_s"] = timeout_s
            return post(f"{at}/execute_code", body)
        case ResetSession():
            return HttpCall("POST", f"{at}/reset", None, True)
        case EndSession():
            return HttpCall("DELETE", at)
        case _:
            raise InvalidRequest(f"{_name(command)} is not offered over HTTP")


def batch_for(
    pool: str,
    program: str,
    inputs: list[dict[str, JSON]],
    timeout_s: float | None,
    lm: dict[str, JSON] | None = None,
) -> HttpCall:
    """The request that runs a pool program on many inputs."""
    asked = [cast(ExecuteProgram, plain_command(ExecuteProgram(program, one))) for one in inputs]
    body: dict[str, JSON] = {"inputs": [one.inputs for one in asked]}
    if timeout_s is not None:
        body["timeout_s"] = timeout_s
    if lm is not None:
        body["lm"] = lm
    path = f"/v1/pools/{part(pool)}/programs/{part(program)}/batch"
    return HttpCall("POST", path, body, True, uuid.uuid4().hex)


def deploy_for(pool: str, deployment: Deployment, canary_s: float | None, new: bool | None) -> HttpCall:
    """The request that makes the next version of a pool program."""
    sent: dict[str, JSON] = {
        "spec": deployment.spec,
        "state": deployment.state,
        "import_path": deployment.import_path,
        "kwargs": deployment.kwargs or None,
        "program_dir": deployment.program_dir,
        "new": new,
    }
    body = {name: value for name, value in sent.items() if value is not None}
    path = f"/v1/pools/{part(pool)}/programs/{part(deployment.program)}/versions"
    watched_s = None if canary_s is None else f"{canary_s:g}"
    # Without a body it is the current version, with its source as it is now.
    return HttpCall("POST", with_query(path, canary_s=watched_s), body or None, True, uuid.uuid4().hex)


def batch_outcomes(program: str, body: Any) -> list[Result | PoolError]:
    """One outcome for each set of inputs, in their order."""
    command = ExecuteProgram(program, {})
    return [
        problem_of(int(failed.get("status", 500)), msgspec.json.encode(failed), {})
        if (failed := item.get("problem"))
        else result_of(command, item["result"])
        for item in body["items"]
    ]


def result_of(command: AnyCommand, body: Any) -> Result:
    """The answer as `Pool.run` would have given it."""
    value: JSON = body
    match command:
        case ExecuteProgram() | StreamProgram():
            timings = body["timings"]
            return Result(
                body["operation_id"],
                body["worker"],
                {"outputs": body["outputs"]},
                body["program_version"],
                timings["wait_s"],
                timings["run_s"],
                body["usage"],
                body["offline"],
                # A service of an earlier version does not say these.
                body.get("cached", False),
                body.get("truncated", False),
            )
        case CreateProgram() | GetProgramInfo() if isinstance(body, dict) and "info" in body:
            schemas = {side: body[side] for side in ("inputs", "outputs") if side in body}
            value = body["info"]
            if isinstance(command, CreateProgram) and isinstance(value.get("info"), dict):
                value = value | {"info": value["info"] | schemas}
            else:
                value = value | schemas
        case ExecuteSandboxed() if isinstance(body, dict):
            value = {"stdout": body.get("stdout"), "result": body.get("result")}
        case ListVariables() | ListPrograms() if isinstance(body, dict):
            value = {name: item for name, item in body.items() if name != "next_cursor"}
    return Result("", value=value)


def problem_of(status: int, body: bytes, headers: Mapping[str, str], place: str = "the service") -> PoolError:
    """The error that an answer of 300 and above of `place` means; the same class that `Pool.run` raises."""
    retry_after_s = _retry_after(headers.get("retry-after"))
    try:
        problem = msgspec.json.decode(body)
        code, detail = problem["code"], problem["detail"]
        details = {str(name): value for name, value in (problem.get("details") or {}).items()}
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        code, detail, details = "pool_error", f"{place} answered {status}, and not as dspool does", {}
    details |= {"status": status}
    if retry_after_s is not None:
        # The header is rounded up to whole seconds; the details may be finer.
        details.setdefault("retry_after_s", retry_after_s)
    return from_wire({"code": code, "message": detail, "details": details})


def pause_s(
    failed: PoolError, call: HttpCall, attempt: int, spread: float | None = None, *, attempts: int = ATTEMPTS
) -> float | None:
    """How long to wait before sending `call` again after `attempt` tries of `attempts`; None is not at all."""
    if attempt >= attempts:
        return None
    status = failed.details.get("status")
    if isinstance(failed, Unreachable) or status == 502:
        if not call.repeatable:
            return None
    elif isinstance(failed, InProgress):
        pass
    elif (
        isinstance(failed, QuotaExceeded)
        or status not in RETRIED
        or not (isinstance(failed, Rejected) or status in (429, 503))
    ):
        return None
    # Spread, so that those who were refused together do not come back together.
    random_share = random.random() if spread is None else spread
    backoff: float = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (attempt - 1)) * (0.5 + random_share / 2)
    asked = failed.details.get("retry_after_s")
    return max(backoff, float(asked)) if isinstance(asked, (int, float)) and asked >= 0 else backoff


def _retry_after(text: str | None) -> float | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:6])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


class Events:
    """Server-sent events, taken apart as they come."""

    def __init__(self) -> None:
        self._name = ""
        self._data: list[str] = []
        self._rest = b""

    def feed(self, part: bytes) -> Iterator[tuple[str, Any]]:
        """The events that `part` ends, name and data.

        Lines end with LF or CRLF alone: whatever else counts as a line's end somewhere may stand in a text.
        """
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            event = self._line(line.removesuffix(b"\r").decode())
            if event is not None:
                yield event

    def _line(self, line: str) -> tuple[str, Any] | None:
        if line:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                self._name = value
            elif field == "data":
                self._data.append(value)
            return None
        name, data = self._name or "message", "\n".join(self._data)
        self._name, self._data = "", []
        return (name, msgspec.json.decode(data)) if data else None

    def error(self, data: Any) -> PoolError:
        """The error that an `error` event holds."""
        return problem_of(int(data.get("status", 500)), msgspec.json.encode(data), {})


def event_of(command: AnyCommand, name: str, data: Any) -> StreamEvent | Result | None:
    """What one event of a program's stream means; None if it is of a kind that is not known here."""
    match name:
        case "token":
            return StreamEvent("token", data["field"], data["text"])
        case "field":
            return StreamEvent("field", data["field"], data["value"])
        case "status":
            return StreamEvent("status", "", data["text"])
        case "final":
            return result_of(command, data)
    return None


def with_query(path: str, **query: str | float | None) -> str:
    """`path` with those of the parameters that are given."""
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def part(name: str) -> str:
    """`name` as one step of a path. Raises: InvalidRequest: it cannot be one."""
    if name in (".", ".."):
        # Every client on the way would take it for a step in the path.
        raise InvalidRequest(f"{name!r} cannot be a name over HTTP")
    return quote(name, safe="")


def _name(command: AnyCommand) -> str:
    return str(type(command).__struct_config__.tag)


__all__ = [
    "Events",
    "HttpCall",
    "batch_for",
    "batch_outcomes",
    "call_for",
    "deploy_for",
    "event_of",
    "part",
    "pause_s",
    "problem_of",
    "result_of",
    "with_query",
]
