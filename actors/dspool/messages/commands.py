"""The commands: one struct for each. The tag is its public name."""

from __future__ import annotations

from typing import Any, Final, get_args

import msgspec
from msgspec import Struct

from dspool.errors import InvalidRequest

JSON = Any
"""None, bool, int, float, str, list and dict of the same. Checked where it enters, not at each hop."""


class Command(Struct, frozen=True, tag_field="command"):
    """The base of all commands. The tag is the public command name."""


class Ping(Command, frozen=True, tag="ping"):
    pass


class ExecuteProgram(Command, frozen=True, tag="execute_program"):
    """Run `program` on `inputs`. Without a session it is a pool program; `version` 0 is the current one.

    `lm` chooses `profile` and settings of generation for this operation, as far as `request_lm` allows it.
    """

    program: str
    inputs: dict[str, JSON]
    version: int = 0
    lm: dict[str, JSON] | None = None


class StreamProgram(Command, frozen=True, tag="stream_program"):
    """As `execute_program`, with `StreamEvent`s on the way."""

    program: str
    inputs: dict[str, JSON]
    version: int = 0
    lm: dict[str, JSON] | None = None


class ConfigureLM(Command, frozen=True, tag="configure_lm"):
    """Use the configured LM profile `profile` for this session, with `overrides` such as temperature."""

    profile: str
    overrides: dict[str, JSON] = {}


class CreateProgram(Command, frozen=True, tag="create_program"):
    """Create or (with `replace`) replace a program in the session.

    Exactly one of `spec` (signature, module, settings), or `spec` with `state` (saved DSPy JSON state loaded
    into the program that the spec builds), or `import_path` ("package.module:Name", if the
    configuration allows it) with `kwargs`, or `copy_of`: a pool program as it is, or with another `state`.
    """

    program: str
    spec: dict[str, JSON] | None = None
    state: dict[str, JSON] | None = None
    import_path: str | None = None
    kwargs: dict[str, JSON] = {}
    replace: bool = False
    copy_of: str | None = None
    version: int = 0
    """Of `copy_of`: one that the worker has loaded; 0 is the current one."""

    @property
    def names_imports(self) -> bool:
        """Whether it names Python by import path, or may: the program, a tool or a reward."""
        settings = (self.spec or {}).get("settings")
        inner = isinstance(settings, dict) and bool(settings.get("tools") or settings.get("reward"))
        return self.import_path is not None or self.copy_of is not None or inner


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
"""Commands that create their session if it does not exist."""

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


COMMAND_NAMES: Final = frozenset(str(kind.__struct_config__.tag) for kind in get_args(AnyCommand))
"""By these names metrics count the operations of sessions, whose programs belong to users."""


def command_from(data: dict[str, JSON]) -> AnyCommand:
    """The command that `data` (with a "command" key) describes.

    Raises:
        InvalidRequest: unknown command, missing, unknown or mistyped field.
    """
    try:
        return msgspec.convert(data, AnyCommand)  # type: ignore[no-any-return]
    except msgspec.ValidationError as refused:
        raise InvalidRequest(f"not a command: {str(refused)[:300]}") from refused
