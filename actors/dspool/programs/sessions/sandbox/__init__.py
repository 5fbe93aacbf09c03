"""`execute_sandboxed`: Python that reaches neither the worker nor its machine.

Each operation has a process of its own: DSPy's interpreter (Pyodide in Deno) without any permission, in an empty
environment, with bounds on memory and processor time, killed when its operation is over, its deadline passed, its
caller gone, or its worker dead.
"""

from __future__ import annotations

import inspect
import logging
import math
import threading
from pathlib import Path
from typing import Any, Final

import dspy
import msgspec
from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreterError

from dspool.config import PoolConfig
from dspool.errors import Cancelled, InvalidRequest, NotAllowed, PoolError, ProgramError, SandboxUnavailable
from dspool.messages import ExecuteSandboxed
from dspool.programs.sessions.code import MAX_OUTPUT, changed
from dspool.programs.sessions.commands import MAX_VARIABLES, CommandResult, checked_name, needed
from dspool.programs.sessions.sandbox import deno
from dspool.programs.sessions.state import Session

_log = logging.getLogger(__name__)

MAX_ANSWER: Final = 2_000_000
"""Characters of one message from the sandbox; one that says more is killed."""
_LOOK_S: Final = 0.02
_START_CPU_S: Final = 30
"""Processor time for starting, beyond that of the operation."""
_INSIDE: Final = (Path(__file__).parent / "inside.py").read_text()
_RUNNER: Final = Path(inspect.getfile(dspy.PythonInterpreter)).with_name("runner.js")


def run_sandboxed(
    command: ExecuteSandboxed, session: Session | None, config: PoolConfig, stop: threading.Event | None
) -> CommandResult:
    """Run Python in a fresh sandbox: `{"stdout", "result"}`, the result of a last expression.

    `variables` in the code is the session's variables; changes to it are stored. Nothing else outlives the operation.

    Raises:
        NotAllowed: the configuration does not allow it. SandboxUnavailable: there is none here.
        InvalidRequest: it does not parse. ProgramError: it raised; says what and in which line.
        Cancelled: `stop` was set; the sandbox is gone.
    """
    if not (config.service.execute_code or config.allow_execute_code):
        raise NotAllowed("execute_code is off: the configuration needs service.execute_code")
    session = needed(session, command)
    started = deno.command(
        _RUNNER,
        memory_bytes=config.service.execute_code_memory_mb * 2**20,
        cpu_s=math.ceil(config.operation_timeout_s) + _START_CPU_S,
    )
    interpreter = _Interpreter(deno_command=started)
    over = threading.Event()
    asked_to_stop = stop or threading.Event()
    threading.Thread(target=_guard, args=(interpreter, asked_to_stop, over), daemon=True).start()
    try:
        said = _said(interpreter, command.code, session.variables)
    except PoolError:
        if asked_to_stop.is_set():
            raise Cancelled("the operation was cancelled, its sandbox ended") from None
        raise
    finally:
        over.set()
        interpreter.kill()
    return _answer(said, session)


def _said(interpreter: _Interpreter, code: str, variables: dict[str, Any]) -> dict[str, Any]:
    try:
        interpreter.start()
    except (CodeInterpreterError, OSError) as failed:
        _log.error("the sandbox did not start: %s", str(failed)[:2000])
        raise SandboxUnavailable("the sandbox did not start; the worker's log says why") from failed
    try:
        said = interpreter.execute(
            f"{_INSIDE}\nawait run(_source, _given, {MAX_OUTPUT})", {"_source": code, "_given": variables}
        )
        found = msgspec.json.decode(said)
    except (CodeInterpreterError, CodeExecutionError, SyntaxError, TypeError, msgspec.MsgspecError) as ended:
        # Out of memory, out of processor time, or it said what it should not: its own doing all the same.
        raise ProgramError(
            "the sandbox ended before the code did: it used too much, or broke it", exception="SandboxEnded"
        ) from ended
    if not isinstance(found, dict):
        raise ProgramError("the code broke the sandbox", exception="SandboxEnded")
    return found


def _answer(said: dict[str, Any], session: Session) -> CommandResult:
    if "refused" in said:
        line = said["refused"] if type(said["refused"]) is int else 0
        raise InvalidRequest(f"the code does not parse (line {line})", line=line)
    variables = said.get("variables")
    if "raised" in said or not isinstance(variables, dict):
        # Both come from the code: bounded, and a name at most.
        kind = str(said.get("raised", "SandboxEnded"))[:80]
        kind = kind if kind.isidentifier() else "Exception"
        line = said["line"] if type(said.get("line")) is int else 0
        raise ProgramError(f"the code raised {kind} in line {line}", exception=kind, line=line)
    if len(variables) > MAX_VARIABLES:
        raise ProgramError(f"the code left more than {MAX_VARIABLES} variables", exception="TooManyVariables")
    after = {checked_name(name, "variable"): value for name, value in variables.items()}
    changes = changed(session.variables, after)
    session.variables.clear()
    session.variables.update(after)
    return CommandResult(
        {"stdout": str(said.get("stdout", ""))[:MAX_OUTPUT], "result": said.get("result")}, changes
    )


class _Interpreter(dspy.PythonInterpreter):
    """DSPy's, with a bound on what it takes from the sandbox, and an end that waits for nobody."""

    def _read_response_line(self, context: str) -> str:
        line = self.deno_process.stdout.readline(MAX_ANSWER)
        if len(line) >= MAX_ANSWER:
            self.kill()
            raise CodeInterpreterError("the sandbox said too much")
        if line.strip():
            return str(line.strip())
        # It ended, or sent an empty line: DSPy tells these apart.
        return str(super()._read_response_line(context)) if not line else "-"

    def kill(self) -> None:
        process = self.deno_process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()


def _guard(interpreter: _Interpreter, stop: threading.Event, over: threading.Event) -> None:
    """Kills the sandbox when `stop` is set; also one that only starts then."""
    while not over.wait(_LOOK_S):
        if stop.is_set():
            interpreter.kill()


__all__ = ["run_sandboxed"]
