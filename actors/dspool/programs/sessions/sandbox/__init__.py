"""`execute_sandboxed`: Python that reaches neither the worker nor its machine.

Each operation has a process of its own: DSPy's interpreter (Pyodide in Deno) without any permission, in an empty
environment, with bounds on memory and processor time. It dies when its operation ends, its deadline passes, its caller
goes away, or its worker dies.
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
from dspool.messages.limits import MAX_VARIABLES
from dspool.programs.sessions.code import MAX_OUTPUT, variable_changes
from dspool.programs.sessions.commands import CommandResult, require_name, require_session
from dspool.programs.sessions.sandbox import deno
from dspool.programs.sessions.session import Session

_log = logging.getLogger(__name__)

MAX_ANSWER: Final = 2_000_000
"""Characters of one message from the sandbox; the worker kills one that sends more."""
_POLL_S: Final = 0.02
_START_CPU_S: Final = 30
"""Processor time for starting, beyond that of the operation."""
_INSIDE: Final = (Path(__file__).parent / "inside.py").read_text()
_RUNNER: Final = Path(inspect.getfile(dspy.PythonInterpreter)).with_name("runner.js")


def run_sandboxed(
    command: ExecuteSandboxed, session: Session | None, config: PoolConfig, stop: threading.Event | None
) -> CommandResult:
    """Run Python in a fresh sandbox: `{"stdout", "result"}`, the result of a last expression.

    `variables` in the code is the session's variables, and the store gets changes to it. Nothing else outlives the
    operation.

    Raises:
        NotAllowed: the configuration does not allow it. SandboxUnavailable: there is none here.
        InvalidRequest: it does not parse. ProgramError: it raised; says what and in which line.
        Cancelled: `stop` was set; the sandbox is gone.
    """
    if not (config.service.execute_code or config.allow_execute_code):
        raise NotAllowed("execute_code is off: the configuration needs service.execute_code")
    session = require_session(session, command)
    deno_command = deno.command(
        _RUNNER,
        memory_bytes=config.service.execute_code_memory_mb * 2**20,
        cpu_s=math.ceil(config.operation_timeout_s) + _START_CPU_S,
    )
    interpreter = _Interpreter(deno_command=deno_command)
    end = threading.Event()
    stop = stop or threading.Event()
    threading.Thread(target=_guard, args=(interpreter, stop, end), daemon=True).start()
    try:
        report = _execute(interpreter, command.code, session.variables)
    except PoolError:
        if stop.is_set():
            raise Cancelled("the operation was cancelled, its sandbox ended") from None
        raise
    finally:
        end.set()
        interpreter.kill()
    return _answer(report, session)


def _execute(interpreter: _Interpreter, code: str, variables: dict[str, Any]) -> dict[str, Any]:
    try:
        interpreter.start()
    except (CodeInterpreterError, OSError) as failed:
        _log.error("the sandbox did not start: %s", str(failed)[:2000])
        raise SandboxUnavailable("the sandbox did not start; the worker's log says why") from failed
    try:
        text = interpreter.execute(
            f"{_INSIDE}\nawait run(_source, _given, {MAX_OUTPUT})", {"_source": code, "_given": variables}
        )
        report = msgspec.json.decode(text)
    except (CodeInterpreterError, CodeExecutionError, SyntaxError, TypeError, msgspec.MsgspecError) as ended:
        # Out of memory or processor time, or it wrote what it must not: the code's own doing all the same.
        raise ProgramError(
            "the sandbox ended before the code did: it used too much, or broke it", exception="SandboxEnded"
        ) from ended
    if not isinstance(report, dict):
        raise ProgramError("the code broke the sandbox", exception="SandboxEnded")
    return report


def _answer(report: dict[str, Any], session: Session) -> CommandResult:
    if "refused" in report:
        line = report["refused"] if type(report["refused"]) is int else 0
        raise InvalidRequest(f"the code does not parse (line {line})", line=line)
    variables = report.get("variables")
    if "raised" in report or not isinstance(variables, dict):
        # Both come from the code, so they are bounded.
        kind = str(report.get("raised", "SandboxEnded"))[:80]
        kind = kind if kind.isidentifier() else "Exception"
        line = report["line"] if type(report.get("line")) is int else 0
        raise ProgramError(f"the code raised {kind} in line {line}", exception=kind, line=line)
    if len(variables) > MAX_VARIABLES:
        raise ProgramError(f"the code left more than {MAX_VARIABLES} variables", exception="TooManyVariables")
    after = {require_name(name, "variable"): value for name, value in variables.items()}
    changes = variable_changes(session.variables, after)
    session.variables.clear()
    session.variables.update(after)
    return CommandResult(
        {"stdout": str(report.get("stdout", ""))[:MAX_OUTPUT], "result": report.get("result")}, changes
    )


class _Interpreter(dspy.PythonInterpreter):
    """DSPy's, with a bound on what it reads from the sandbox, and a kill that does not wait for the code."""

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


def _guard(interpreter: _Interpreter, stop: threading.Event, end: threading.Event) -> None:
    """Kill the sandbox once `stop` is set, also one that starts only then."""
    while not end.wait(_POLL_S):
        if stop.is_set():
            interpreter.kill()


__all__ = ["run_sandboxed"]
