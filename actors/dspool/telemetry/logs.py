"""Logs: events as log lines, and every line with the pool, worker, session and operation it belongs to."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO

from msgspec import Struct

from dspool.config import PoolConfig
from dspool.errors import PoolError
from dspool.messages import Operation
from dspool.telemetry.events import EVENTS, attach, session_hash
from dspool.telemetry.tracing import trace_id_of

working_on: ContextVar[Operation | None] = ContextVar("dspool_operation", default=None)
"""The operation that this task or thread works for."""
FIELDS = ("pool", "worker", "session_hash", "operation_id", "trace_id")
"""What every line says, where it applies, in this order."""


class LogContext(logging.Filter):
    """Adds `FIELDS` to each record. On a handler, so that lines of every library pass through it."""

    def __init__(self, pool: str, worker: str | None = None) -> None:
        super().__init__()
        self._pool, self._worker = pool, worker

    def filter(self, record: logging.LogRecord) -> bool:
        operation = working_on.get()
        session = None if operation is None else operation.session
        record.pool = self._pool
        record.worker = self._worker
        record.operation_id = None if operation is None else operation.id
        record.session_hash = None if session is None else session_hash(session)
        record.trace_id = None if operation is None else trace_id_of(operation.traceparent)
        return True


class Lines(logging.Formatter):
    """One line of text: time, level, logger, message, and the context in brackets.

    Exceptions show where, not what: the text of one may quote what a user sent. `show_content` shows it.
    """

    def __init__(self, *, show_content: bool = False) -> None:
        super().__init__()
        self._show_content = show_content

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname:7s} {record.name}: {record.getMessage()}"
        context = " ".join(f"{key}={_short(value)}" for key, value in _context(record).items())
        if context:
            line += f" [{context}]"
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + trace_of(record.exc_info, show_content=self._show_content)
        return line


def configure(
    config: PoolConfig, *, worker: str | None = None, events: bool = True, stream: TextIO | None = None
) -> None:
    """Write this process's log to `stream` (stderr, which Ray keeps in its session directory), with context.

    For processes that are ours: workers, the pool's actors, the HTTP ingress. A program that uses `dspool` as a library
    keeps its own logging; it may use `LogContext`, `Lines` and `JsonFormatter` as it likes.
    """
    telemetry = config.telemetry
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Ours)]:
        root.removeHandler(old)
    handler = _Ours(stream or sys.stderr)
    show = telemetry.capture_content
    handler.setFormatter(
        JsonFormatter(show_content=show) if telemetry.log_format == "json" else Lines(show_content=show)
    )
    handler.addFilter(LogContext(config.name, worker))
    root.addHandler(handler)
    logging.getLogger("dspool").setLevel(telemetry.log_level.upper())
    if events:
        attach(_log_event)


class _Ours(logging.StreamHandler[TextIO]):
    pass


class LogHandler:
    """Writes each event to a standard logger: the name and its numbers as text, and all of it as fields.

    Only what the table declares is written, so nothing gets into a log that was not meant to be seen. The fields are
    at `record.dspool`, for `JsonFormatter` or any other.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("dspool")

    def __call__(self, event: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        row = EVENTS[event]
        if not self._logger.isEnabledFor(row.level):
            return
        fields: dict[str, Any] = {"event": event}
        for key in row.metadata:
            if metadata.get(key) is not None:
                fields[key] = metadata[key]
        for key in row.measurements:
            if key in measurements:
                fields[key] = measurements[key]
        text = " ".join(f"{key}={_short(value)}" for key, value in fields.items() if key != "event")
        self._logger.log(row.level, "%s %s", event, text, extra={"dspool": fields})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, context, and the fields of the event or the message."""

    def __init__(self, *, show_content: bool = False) -> None:
        super().__init__()
        self._show_content = show_content

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "dspool", None)
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            **_context(record),
            **(fields if isinstance(fields, dict) else {"message": record.getMessage()}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__qualname__
            line["traceback"] = trace_of(record.exc_info, show_content=self._show_content)
        return json.dumps(line, default=str)


_ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


def trace_of(exc_info: _ExcInfo, *, show_content: bool) -> str:
    """A traceback whose exceptions are named, but quoted only if they are ours or `show_content` is set."""
    kind, raised, trace = exc_info
    if show_content:
        return "".join(traceback.format_exception(kind, raised, trace)).rstrip()
    parts: list[str] = []
    seen: set[int] = set()
    while raised is not None and id(raised) not in seen:
        seen.add(id(raised))
        frames = "".join(traceback.format_tb(raised.__traceback__))
        told = f": {raised.message}" if isinstance(raised, PoolError) else ""
        parts.append(f"{frames}{type(raised).__qualname__}{told}")
        raised = raised.__cause__ or (None if raised.__suppress_context__ else raised.__context__)
    return "\nwhich came from\n".join(parts)


_log_event = LogHandler()


def _context(record: logging.LogRecord) -> dict[str, Any]:
    event = getattr(record, "dspool", None) or {}
    found = {key: getattr(record, key, None) for key in FIELDS}
    return {key: value for key, value in found.items() if value is not None and key not in event}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return json.dumps(text) if any(c.isspace() or c in '"=' for c in text) else text


READ_BYTES: Final = 256 * 1024
LONGEST_LINE: Final = 2000
_OURS: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\S* [A-Z]+ +[\w.]+: ")
"""A line as `logs.Lines` writes it."""


class LogTail(Struct, frozen=True):
    lines: list[str]
    truncated: bool
    """There are older lines."""
    source: str
    """The file's name; empty if this process's log goes to no file."""
    filtered: bool
    """Lines that are not of dspool's own logging were left out: they may hold what users sent."""


def own_log() -> Path | None:
    """The file that this process's stderr is, which is where `logs.configure` writes."""
    try:
        path = Path(os.readlink("/proc/self/fd/2"))
    except OSError:
        return None
    return path if path.is_file() else None


def tail(path: Path | None, lines: int, *, show_content: bool) -> LogTail:
    """The last `lines` lines of `path`, reading no more than its last 256 KiB."""
    if path is None:
        return LogTail([], False, "", not show_content)
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - READ_BYTES))
        text = file.read(READ_BYTES).decode("utf-8", "replace")
    found = text.splitlines()
    cut = size > READ_BYTES
    if cut:
        found = found[1:]  # the first one lacks its beginning
    if not show_content:
        found = [line for line in found if _is_ours(line)]
    return LogTail(
        [line[:LONGEST_LINE] for line in found[-lines:]],
        cut or len(found) > lines,
        path.name,
        not show_content,
    )


def _is_ours(line: str) -> bool:
    if _OURS.match(line):
        return True
    if not line.startswith('{"time": '):
        return False
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and {"time", "level", "logger"} <= record.keys()
