"""How a command is entered and left: errors in one voice, pipes that close, Ctrl-C."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from typer.core import TyperGroup

from dspool.cli.output import EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, EXIT_REFUSED, Output
from dspool.errors import InvalidRequest

_WORDS: Final = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
}
"""What pydantic calls a value that does not fit, as a person would say it."""


class Commands(TyperGroup):
    """All verbs. What is wrong with a command line is one line, as any other error is; JSON with `--json`."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(given, prog_name, complete_var, False, windows_expand_args, **extra)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)
        except Exception as wrong:
            # What older Typers make of it.
            if isinstance(wrong.__cause__, KeyboardInterrupt):
                sys.exit(EXIT_INTERRUPTED)
            if not hasattr(wrong, "format_message"):
                raise
            message = usage_text(wrong)
            Output("--json" in given).error(InvalidRequest(message))
            sys.exit(EXIT_REFUSED)
        sys.exit(code if isinstance(code, int) else 0)


def usage_text(wrong: Any) -> str:
    """What is wrong with the command line, and where its rules are."""
    context = getattr(wrong, "ctx", None)
    help_of = f"; see `{context.command_path} --help`" if context is not None else ""
    said = _value_text(wrong) or wrong.format_message().strip().rstrip(".")
    return said + help_of


def _value_text(wrong: Any) -> str:
    """Empty if it is not about a value that does not fit."""
    parameter, cause = getattr(wrong, "param", None), wrong.__cause__
    if parameter is None or not callable(getattr(cause, "errors", None)):
        return ""
    first = cause.errors()[0]
    name = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
    words = _WORDS.get(first["type"])
    if words is None:
        return f"{name}: {first['msg'].removeprefix('Value error, ').rstrip('.')}"
    return f"{name} {words.format(**first.get('ctx', {}))}, got {str(first['input'])[:40]!r}"


class PipedOutput(io.TextIOWrapper):
    """Standard output or error. When nobody reads it any more, the command ends quietly, cleaning up on its way."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._leave()

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._leave()

    def _leave(self) -> NoReturn:
        # What is still in the buffer goes nowhere, and what cleans up may print.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        raise SystemExit(EXIT_PIPE_CLOSED)


def piped(stream: Any) -> Any:
    """`stream` as one that ends the command when its reader is gone; as it is where it is no file."""
    try:
        raw = io.FileIO(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):
        return stream
    stream.flush()
    return PipedOutput(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        # Names that it cannot write must not end a command.
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.isatty() or stream is sys.__stderr__,
    )


__all__ = ["Commands", "PipedOutput", "piped", "usage_text"]
