"""What crosses between clients, workers, the supervisor, the store and the metrics actor.

All of it is plain data (`msgspec` structs of JSON-like values), so that it can go over a socket as
msgpack without pickle, over a Ray actor call, or into a test, with the same meaning.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from dspool.errors import InvalidRequest

JSON = Any
"""None, bool, int, float, str, list and dict of the same. Checked where it enters, not at each hop."""


# --- commands: what one operation does -------------------------------------------------------------


class Command(Struct, frozen=True, tag_field="command"):
    """The base of all commands. The tag is the public command name."""


class Ping(Command, frozen=True, tag="ping"):
    pass


class ExecuteProgram(Command, frozen=True, tag="execute_program"):
    """Run `program` on `inputs`. Without a session it is a pool program; `version` 0 is the current one."""

    program: str
    inputs: dict[str, JSON]
    version: int = 0


class StreamProgram(Command, frozen=True, tag="stream_program"):
    """As `execute_program`, with `StreamEvent`s on the way."""

    program: str
    inputs: dict[str, JSON]
    version: int = 0


class ConfigureLM(Command, frozen=True, tag="configure_lm"):
    """Use the configured LM profile `profile` for this session, with `overrides` such as temperature."""

    profile: str
    overrides: dict[str, JSON] = {}


class CreateProgram(Command, frozen=True, tag="create_program"):
    """Create or (with `replace`) replace a program in the session.

    Exactly one of `spec` (signature, module, settings), or `spec` with `state` (saved DSPy JSON state loaded
    into the program that the spec builds), or `import_path` ("package.module:Name", if the
    configuration allows it) with `kwargs`.
    """

    program: str
    spec: dict[str, JSON] | None = None
    state: dict[str, JSON] | None = None
    import_path: str | None = None
    kwargs: dict[str, JSON] = {}
    replace: bool = False


class GetProgramInfo(Command, frozen=True, tag="get_program_info"):
    program: str


class ListPrograms(Command, frozen=True, tag="list_programs"):
    pass


class DeleteProgram(Command, frozen=True, tag="delete_program"):
    program: str


class SetVariable(Command, frozen=True, tag="set_variable"):
    name: str
    value: JSON


class GetVariable(Command, frozen=True, tag="get_variable"):
    name: str


class ListVariables(Command, frozen=True, tag="list_variables"):
    pass


class DeleteVariable(Command, frozen=True, tag="delete_variable"):
    name: str


class GetHistory(Command, frozen=True, tag="get_history"):
    """The session's last operations, newest last, at most `limit`."""

    limit: int = 50


class GetStats(Command, frozen=True, tag="get_stats"):
    pass


class ResetSession(Command, frozen=True, tag="reset_session"):
    """Forget programs, variables, LM choice and history; the session stays."""


class EndSession(Command, frozen=True, tag="end_session"):
    pass


class ExecuteCode(Command, frozen=True, tag="execute_code"):
    """Run Python in the worker. Refused unless the configuration allows it; never offered over HTTP."""

    code: str


class ExecuteSandboxed(Command, frozen=True, tag="execute_sandboxed"):
    """Run Python in a sandbox of its own, with nothing but the session's variables."""

    code: str


AnyCommand = (
    Ping
    | ExecuteProgram
    | StreamProgram
    | ConfigureLM
    | CreateProgram
    | GetProgramInfo
    | ListPrograms
    | DeleteProgram
    | SetVariable
    | GetVariable
    | ListVariables
    | DeleteVariable
    | GetHistory
    | GetStats
    | ResetSession
    | EndSession
    | ExecuteCode
    | ExecuteSandboxed
)

READ_ONLY: frozenset[type[Command]] = frozenset(
    {Ping, GetProgramInfo, ListPrograms, GetVariable, ListVariables, GetHistory, GetStats}
)
"""Commands that change nothing: always safe to repeat on another worker."""

CREATES_SESSION: frozenset[type[Command]] = frozenset(
    {ConfigureLM, CreateProgram, SetVariable, ExecuteCode, ExecuteSandboxed}
)
"""Commands that bring their session into being if it does not exist."""

NEEDS_SESSION: frozenset[type[Command]] = frozenset(
    {
        ConfigureLM,
        CreateProgram,
        DeleteProgram,
        SetVariable,
        GetVariable,
        ListVariables,
        DeleteVariable,
        GetHistory,
        ResetSession,
        EndSession,
        ExecuteCode,
        ExecuteSandboxed,
    }
)


def command_from(data: dict[str, JSON]) -> AnyCommand:
    """The command that `data` (with a "command" key) describes.

    Raises:
        InvalidRequest: unknown command, missing, unknown or mistyped field.
    """
    try:
        return msgspec.convert(data, AnyCommand)  # type: ignore[no-any-return]
    except msgspec.ValidationError as refused:
        raise InvalidRequest(f"not a command: {refused}") from refused


# --- one operation and its end ---------------------------------------------------------------------


class Operation(Struct, frozen=True, array_like=True):
    """A command on its way to a worker. `timeout_s` is what is left of the deadline when it is sent."""

    id: str
    command: AnyCommand
    timeout_s: float
    session: str | None = None
    principal: str | None = None
    traceparent: str | None = None


class Usage(Struct, frozen=True):
    """Tokens the LM back end reported, summed over the calls of one operation, by model name."""

    by_model: dict[str, dict[str, int]] = {}

    @property
    def total_tokens(self) -> int:
        return sum(usage.get("total_tokens", 0) for usage in self.by_model.values())


class Finished(Struct, frozen=True, array_like=True):
    """How one operation ended: `error` is None, or a `PoolError.to_wire()` dict and `value` is None."""

    id: str
    value: JSON = None
    error: dict[str, JSON] | None = None
    run_s: float = 0.0
    wait_s: float = 0.0
    """Time the worker held it before it started (behind another operation of its session)."""
    usage: dict[str, dict[str, int]] = {}
    offline: bool = False
    program_version: int = 0


class StreamEvent(Struct, frozen=True, array_like=True):
    """One event of a stream: `kind` "token" (field, text), "field" (field, value), or "status" (text)."""

    kind: Literal["token", "field", "status"]
    field: str = ""
    value: JSON = None


class Change(Struct, frozen=True, array_like=True):
    """One durable change of a session. `payload` None deletes; name "*" with payload None deletes the kind."""

    kind: Literal["program", "lm", "variable"]
    name: str
    payload: JSON = None


class Deployment(Struct, frozen=True):
    """One version of a pool program: what `CreateProgram` takes, and its version (1, 2, ...)."""

    program: str
    version: int
    spec: dict[str, JSON] | None = None
    state: dict[str, JSON] | None = None
    import_path: str | None = None
    kwargs: dict[str, JSON] = {}

    @property
    def has_one_source(self) -> bool:
        """Either a spec or an import path; beside the latter, a spec that only chooses LM and adapter."""
        if self.import_path is None:
            return self.spec is not None
        return self.spec is None or set() < set(self.spec) <= {"lm", "adapter"}


class VersionNumbers(Struct, frozen=True):
    """What one version of a pool program did in some time, as its workers measured it."""

    operations: int = 0
    """Ended ones."""
    errors: int = 0
    """Those that did not end well. Callers' own mistakes count too: they meet both versions alike, and a version that
    no longer takes what callers send is no better than one that fails."""
    run_s: float = 0.0
    """Mean run time."""
    running: int = 0
    running_s: float = 0.0
    """How long those that still run have run, on average: a version that hangs ends nothing."""

    @property
    def error_rate(self) -> float:
        return self.errors / self.operations if self.operations else 0.0

    @property
    def least_s(self) -> float:
        """The mean run time, at least: what runs now counts with what it has run so far if that makes it longer."""
        count = self.operations + self.running
        if not count:
            return 0.0
        return max(self.run_s, (self.run_s * self.operations + self.running_s * self.running) / count)


# --- who is there ----------------------------------------------------------------------------------

WorkerState = Literal["starting", "warming", "ready", "spare", "draining", "stopped", "failed"]


class Member(Struct, frozen=True):
    """A worker that takes traffic, as clients see it."""

    worker_id: str
    slot: int
    """The worker's number in the pool: small, reused after death. Not to be confused with its operation slots."""
    host: str
    port: int
    slots: int
    pid: int = 0
    node: str = ""


class Membership(Struct, frozen=True):
    """Who takes traffic. `version` only grows (also over supervisor restarts), so a client can wait for the next."""

    version: int
    workers: tuple[Member, ...] = ()
    paused: bool = False
    closed: bool = False
    programs: dict[str, int] = {}
    """Current version by pool program."""


class WorkerStatus(Struct, frozen=True):
    """One worker as the supervisor knows it: what `GET /v1/pools/{pool}` shows."""

    id: str
    slot: int
    state: WorkerState
    pid: int = 0
    node: str = ""
    sessions: int = 0
    running: int = 0
    slots: int = 0
    started_at: float = 0.0
    """Wall-clock seconds since the epoch."""
    operations: int = 0
    errors: int = 0
    busy_s: float = 0.0
    rss_mb: float = 0.0
    overflow: bool = False
    reason: str = ""
    start: str = ""
    """How its process was started: `fork`, `exec`, or `exec: why it was not forked`; empty until it has said so."""
    checked_at: float | None = None
    """Wall-clock seconds of the last health check that it answered."""


class PoolStatus(Struct, frozen=True):
    name: str
    state: Literal["starting", "ready", "degraded", "paused", "closed"]
    ready: bool
    """At least `min_ready` workers are warm."""
    desired: int
    actual: int
    spares: int
    membership_version: int
    workers: tuple[WorkerStatus, ...] = ()
    programs: dict[str, int] = {}
    reason: str = ""
    failures: int = 0
    """Workers that died, were given up or could not be started, since the supervisor began."""


class SessionInfo(Struct, frozen=True):
    id: str
    owner: str | None
    """The worker id that holds its lease; None when it is not active anywhere."""
    epoch: int
    created_at: float
    last_used_at: float
    programs: tuple[str, ...] = ()
    moves: int = 0
    principal: str | None = None


class Lease(Struct, frozen=True):
    """The store's answer to a worker that wants a session."""

    session: str
    granted: bool
    owner: str
    """The owner after the call: the asking worker, or the living one to go to."""
    epoch: int
    items: tuple[Change, ...] = ()
    """The session's durable state, when granted."""
    principal: str | None = None
    created: bool = False
    """The session began with this lease."""
    previous: str | None = None
    """The worker that held it last."""
