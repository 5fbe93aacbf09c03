"""`execute_code`: Python in the worker, for pools whose configuration allows it."""

from __future__ import annotations

import ast
import io
from typing import Any

import msgspec

from dspool.config import PoolConfig
from dspool.errors import InvalidRequest, NotAllowed, ProgramError, type_of
from dspool.messages import JSON, Change, ExecuteCode
from dspool.messages.plain import NotPlain, plain, plain_text
from dspool.programs.sessions.commands import CommandResult, require_session
from dspool.programs.sessions.session import Session
from dspool.quotations import without_secrets
from dspool.raised import text_of

MAX_OUTPUT = 100_000
"""Characters of what the code prints; the rest is cut."""


def run_code(command: ExecuteCode, session: Session | None, config: PoolConfig) -> CommandResult:
    """Run Python in the session's namespace: `{"stdout", "result"}`, the result of a last expression.

    `variables` in the code is the session's variables; changes to it are stored.

    Raises:
        NotAllowed: the configuration does not allow it. InvalidRequest: it does not parse.
        ProgramError: it raised; says what and in which line.
    """
    if not config.allow_execute_code:
        raise NotAllowed(
            "execute_code is off: the configuration needs allow_execute_code", command="execute_code"
        )
    session = require_session(session, command)
    try:
        tree = ast.parse(command.code, "<execute_code>")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as refused:
        # The last two are those of code that is nested too deeply.
        line = getattr(refused, "lineno", None)
        raise InvalidRequest(f"the code does not parse (line {line})", line=line) from refused
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    stdout = io.StringIO()
    before = dict(session.variables)

    def show(*values: object, **options: Any) -> None:
        # A print of its own: redirecting sys.stdout would catch what other threads print.
        if stdout.tell() < MAX_OUTPUT:
            print(*values, **{**options, "file": options.get("file") or stdout})

    names = session.namespace
    names.update(variables=session.variables, print=show)
    try:
        exec(compile(tree, "<execute_code>", "exec"), names)
        result: Any = None
        if isinstance(last, ast.Expr):
            result = eval(compile(ast.Expression(last.value), "<execute_code>", "eval"), names)
        # What the code left has methods of its own, and reading it runs them.
        value = {"stdout": plain_text(stdout.getvalue()[:MAX_OUTPUT]), "result": _printable(result)}
        return CommandResult(
            value, tuple(_plain(change) for change in variable_changes(before, session.variables))
        )
    except BaseException as raised:  # `exit()` as well: it ends the code, not the worker
        # The store gets none of its changes, so none may stay here.
        session.variables.clear()
        session.variables.update(before)
        if isinstance(raised, _NotJSON):
            raise InvalidRequest(
                f"variable {raised.name!r} is not a JSON value (None, bool, int, finite float, str, list, dict)",
                field=raised.name,
            ) from None
        kind, line = type_of(raised), _line(raised)
        # To whoever sent the code; the worker's log has what `dspool.raised` tells.
        text = text_of(raised, whole=True, hide=without_secrets)
        told = {"text": text} if text else {}
        raise ProgramError(
            f"the code raised {kind} in line {line}", exception=kind, line=line, **told
        ) from raised


class _NotJSON(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name[:80]


def _printable(result: Any) -> JSON:
    try:
        return plain(result)
    except NotPlain:
        return plain_text(repr(result))[:MAX_OUTPUT]


def _plain(change: Change) -> Change:
    """The change with plain data of its own: the way to the store pickles it, which would run the code's methods."""
    if change.payload is None:
        return change
    try:
        payload = msgspec.json.decode(msgspec.json.encode(change.payload))
    except (TypeError, ValueError, RecursionError):
        payload = None
    if payload != change.payload:
        raise _NotJSON(change.name)
    return Change(change.kind, change.name, payload)


def variable_changes(before: dict[str, JSON], after: dict[str, JSON]) -> tuple[Change, ...]:
    """What to store so that the variables `before` become those of `after`."""
    deletions = [Change("variable", name) for name in before if name not in after]
    updates = [
        Change("variable", name, {"value": value})
        for name, value in after.items()
        if name not in before or before[name] != value
    ]
    return (*deletions, *updates)


def _line(raised: BaseException) -> int:
    trace, line = BaseException.__dict__["__traceback__"].__get__(raised), 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<execute_code>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
