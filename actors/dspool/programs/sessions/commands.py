"""The commands of a session besides running programs. The docstring of each shows its answer."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec.structs import replace

from dspool.errors import Cancelled, Conflict, InvalidRequest, PoolError
from dspool.messages import (
    JSON,
    READ_ONLY,
    AnyCommand,
    Change,
    ConfigureLM,
    CreateProgram,
    DeleteProgram,
    DeleteVariable,
    EndSession,
    GetHistory,
    GetProgramInfo,
    GetStats,
    GetVariable,
    ListPrograms,
    ListVariables,
    Ping,
    ResetSession,
    SetVariable,
)
from dspool.messages.limits import MAX_NAME, MAX_PROGRAMS, MAX_VARIABLES
from dspool.programs.models.lm import LMs, check_overrides
from dspool.programs.program import Definition, Program
from dspool.programs.sessions.pool_programs import PoolPrograms
from dspool.programs.sessions.session import LMChoice, Session


class CommandResult(NamedTuple):
    """The result of a command that succeeded. Commit `changes` before anybody hears of `value`."""

    value: JSON
    changes: tuple[Change, ...] = ()
    usage: dict[str, dict[str, int | float]] = {}  # noqa: RUF012  (never written to)
    offline: bool = False
    program_version: int = 0
    cached: bool = False
    truncated: bool = False


class SessionCommands:
    """Answers commands. Raises only `PoolError`s."""

    def __init__(
        self,
        lms: LMs,
        pool_programs: PoolPrograms,
        *,
        load: Callable[[Definition], Program],
        history_limit: int,
    ) -> None:
        self._lms = lms
        self._pool_programs = pool_programs
        self._load = load
        self._history_limit = history_limit
        self._by_kind: dict[type[Any], Callable[[Any, Any], CommandResult]] = {
            Ping: self._ping,
            ConfigureLM: self._configure_lm,
            GetProgramInfo: self._get_program_info,
            ListPrograms: self._list_programs,
            DeleteProgram: self._delete_program,
            SetVariable: self._set_variable,
            GetVariable: self._get_variable,
            ListVariables: self._list_variables,
            DeleteVariable: self._delete_variable,
            GetHistory: self._get_history,
            GetStats: self._get_stats,
            ResetSession: self._reset_session,
            EndSession: self._end_session,
        }

    def run(
        self, command: AnyCommand, session: Session | None, stop: threading.Event | None = None
    ) -> CommandResult:
        """The answer to `command` and the changes to store, which `Session.undo` takes back.

        Once `stop` is set, a program is no longer created.
        """
        if session is not None and type(command) not in READ_ONLY:
            session.mark()
        if type(command) is CreateProgram:
            return self._create_program(command, session, stop)
        return self._by_kind[type(command)](command, session)

    def _ping(self, command: Ping, session: Session | None) -> CommandResult:
        """`{"pong": true, "pid", "session"}`"""
        return CommandResult({"pong": True, "pid": os.getpid(), "session": session.id if session else None})

    def _configure_lm(self, command: ConfigureLM, session: Session | None) -> CommandResult:
        """`{"profile", "model", "overrides", "offline"}`"""
        session = require_session(session, command)
        overrides = check_overrides(command.overrides)
        # Now, so that a missing key shows here and not at the first program.
        lm = self._lms.get(command.profile, overrides)
        session.lm = LMChoice(command.profile, overrides)
        choice = {"profile": command.profile, "overrides": overrides}
        value = {**choice, "model": lm.model, "offline": self._lms.in_process(lm)}
        return CommandResult(value, (Change("lm", "lm", choice),))

    def _create_program(
        self, command: CreateProgram, session: Session | None, stop: threading.Event | None
    ) -> CommandResult:
        """`{"program", "created", "replaced", "info"}`; repeating the same creation changes nothing."""
        session = require_session(session, command)
        name = require_name(command.program, "program")
        if [command.spec, command.import_path, command.copy_of].count(None) != 2:
            raise InvalidRequest("give exactly one of spec, import_path and copy_of", program=name)
        definition = Definition(command.spec, command.state, command.import_path, command.kwargs)
        if command.copy_of is not None:
            original, _ = self._pool_programs.get(command.copy_of, command.version)
            definition = original.definition
            if command.state is not None:
                definition = replace(definition, state=command.state)
        old = session.definitions.get(name)
        if old == definition:
            info = session.program(name).describe()
            return CommandResult({"program": name, "created": False, "replaced": False, "info": info})
        if old is not None and not command.replace:
            raise Conflict(
                f"session {session.id!r} has a program {name!r} already: set replace", program=name
            )
        if old is None and len(session.definitions) >= MAX_PROGRAMS:
            raise Conflict(
                f"session {session.id!r} has {MAX_PROGRAMS} programs already: delete one", program=name
            )
        program = self._load(definition)
        if stop is not None and stop.is_set():
            raise Cancelled("the operation was cancelled")
        change = session.keep_program(name, definition, program)
        value = {
            "program": name,
            "created": old is None,
            "replaced": old is not None,
            "info": program.describe(),
        }
        return CommandResult(value, (change,))

    def _get_program_info(self, command: GetProgramInfo, session: Session | None) -> CommandResult:
        """`{"program", "scope": "session" | "pool", "version", "module", "signature", "lm", "adapter", ...}`"""
        name = command.program
        if session is not None and name in session.definitions:
            info = session.program(name).describe()
            return CommandResult({"program": name, "scope": "session", "version": 0, **info})
        program, version = self._pool_programs.get(name)
        return CommandResult({"program": name, "scope": "pool", "version": version, **program.describe()})

    def _list_programs(self, command: ListPrograms, session: Session | None) -> CommandResult:
        """`{"programs": [{"program", "scope", "version"}]}`, the session's own first."""
        names = sorted(session.definitions) if session is not None else []
        programs: list[JSON] = [{"program": name, "scope": "session", "version": 0} for name in names]
        for name, version in sorted(self._pool_programs.current.items()):
            programs.append({"program": name, "scope": "pool", "version": version})
        return CommandResult({"programs": programs})

    def _delete_program(self, command: DeleteProgram, session: Session | None) -> CommandResult:
        """`{"deleted": name}`"""
        change = require_session(session, command).drop_program(command.program)
        return CommandResult({"deleted": command.program}, (change,))

    def _set_variable(self, command: SetVariable, session: Session | None) -> CommandResult:
        """`{"name"}`"""
        session = require_session(session, command)
        name = require_name(command.name, "variable")
        if name not in session.variables and len(session.variables) >= MAX_VARIABLES:
            raise Conflict(f"session {session.id!r} has {MAX_VARIABLES} variables already", variable=name)
        session.variables[name] = command.value
        return CommandResult({"name": name}, (Change("variable", name, {"value": command.value}),))

    def _get_variable(self, command: GetVariable, session: Session | None) -> CommandResult:
        """`{"name", "value"}`"""
        return CommandResult(
            {"name": command.name, "value": require_session(session, command).variable(command.name)}
        )

    def _list_variables(self, command: ListVariables, session: Session | None) -> CommandResult:
        """`{"variables": [names]}`"""
        return CommandResult({"variables": sorted(require_session(session, command).variables)})

    def _delete_variable(self, command: DeleteVariable, session: Session | None) -> CommandResult:
        """`{"deleted": name}`"""
        session = require_session(session, command)
        session.variable(command.name)
        del session.variables[command.name]
        return CommandResult({"deleted": command.name}, (Change("variable", command.name),))

    def _get_history(self, command: GetHistory, session: Session | None) -> CommandResult:
        """`{"operations": [...]}`, newest last."""
        return CommandResult({"operations": require_session(session, command).recent(command.limit)})

    def _get_stats(self, command: GetStats, session: Session | None) -> CommandResult:
        """Counts of the session; without one, of the worker's pool programs and LM profiles."""
        if session is None:
            return CommandResult(
                {
                    "pid": os.getpid(),
                    "programs": dict(self._pool_programs.current),
                    "lms": self._lms.names(),
                }
            )
        return CommandResult(
            {
                "session": session.id,
                "operations": session.operations,
                "errors": session.errors,
                "total_tokens": session.tokens,
                "cost_usd": session.cost_usd,
                "programs": len(session.definitions),
                "variables": len(session.variables),
                "lm": session.lm.profile if session.lm else None,
                "active_since": session.created_at,
                "last_used_at": session.last_used,
            }
        )

    def _reset_session(self, command: ResetSession, session: Session | None) -> CommandResult:
        """`{"reset": true}`"""
        return CommandResult({"reset": True}, require_session(session, command).clear())

    def _end_session(self, command: EndSession, session: Session | None) -> CommandResult:
        """`{"ended": true}`; the worker then drops the session and ends it in the store."""
        return CommandResult({"ended": True}, require_session(session, command).clear())

    def remember(
        self,
        command: AnyCommand,
        session: Session,
        started_at: float,
        now: float,
        result: CommandResult | None,
        error: PoolError | None,
    ) -> None:
        """Write `command` into the session's history, unless it only reads."""
        if type(command) in READ_ONLY or isinstance(command, ResetSession | EndSession):
            return
        entry: dict[str, JSON] = {
            "command": type(command).__struct_config__.tag,
            "at": started_at,
            "run_s": round(now - started_at, 6),
            "outcome": "ok" if error is None else error.outcome,
        }
        content: dict[str, JSON] = {}
        for key in ("program", "name", "profile"):
            if hasattr(command, key):
                entry[key] = getattr(command, key)
        if error is not None:
            entry["error"] = error.code
        if hasattr(command, "inputs"):
            content["inputs"] = command.inputs
            if result is not None:
                content["outputs"] = result.value["outputs"]
        session.remember(entry, content, self._history_limit)


def require_session(session: Session | None, command: AnyCommand) -> Session:
    """`session`, without which `command` cannot run. Raises `InvalidRequest`."""
    if session is None:
        tag = type(command).__struct_config__.tag
        raise InvalidRequest(f"{tag} needs a session", command=tag)
    return session


def require_name(name: str, what: str) -> str:
    """`name`, if a program or variable may have it. Raises `InvalidRequest`."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name == "*":
        raise InvalidRequest(
            f"a {what} name has 1 to {MAX_NAME} printable characters and is not '*'", field=what
        )
    return sys.intern(name)
