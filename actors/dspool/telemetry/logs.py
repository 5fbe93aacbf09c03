"""Logs: events as log lines, and every line with the pool, worker, session and operation it belongs to."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from dspool.config import PoolConfig
from dspool.messages import Operation
from dspool.raised import is_own_module, traceback_of
from dspool.telemetry.events import EVENTS, attach
from dspool.telemetry.log_files import CONTINUED, EVENT_LOGGER
from dspool.telemetry.pseudonyms import session_hash
from dspool.telemetry.tracing import trace_id_of

current_operation: ContextVar[Operation | None] = ContextVar("dspool_operation", default=None)
"""The operation that this task or thread works for."""
FIELDS = ("pool", "worker", "session_hash", "operation_id", "trace_id")
"""The context of a line, as far as it applies, in this order."""


class LogContext(logging.Filter):
    """Adds `FIELDS` to each record. It sits on a handler: lines of every library pass there."""

    def __init__(self, pool: str, worker: str | None = None) -> None:
        super().__init__()
        self._pool, self._worker = pool, worker

    def filter(self, record: logging.LogRecord) -> bool:
        operation = current_operation.get()
        session = None if operation is None else operation.session
        record.pool = self._pool
        record.worker = self._worker
        record.operation_id = None if operation is None else operation.id
        record.session_hash = None if session is None else session_hash(session, self._pool)
        record.trace_id = None if operation is None else trace_id_of(operation.traceparent)
        return True


class TextFormatter(logging.Formatter):
    """One line of text: time, level, logger, message, and the context in brackets.

    Exceptions say what `dspool.raised` lets them say: other texts may quote what a user sent. `show_content` shows all.
    """

    def __init__(self, *, show_content: bool = False) -> None:
        super().__init__()
        self._show_content = show_content

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname:7s} {record.name}: {_without_context(record.getMessage())}"
        context = " ".join(f"{key}={_short(value)}" for key, value in _context(record).items())
        if context:
            line += f" [{context}]"
        if trace := _traceback(record, whole=self._show_content):
            line += f"\n{_without_context(trace)}"
        # A line that follows says so: nobody can write a line that looks like another's.
        return f"\n{CONTINUED}".join(line.translate(_CONTROLS).splitlines())


_CONTEXT: Final = re.compile(rf" \[(?=(?:{'|'.join(FIELDS)})=)")
_CONTROLS: Final = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in b"\t\n\r"
}
"""A terminal that shows a log obeys these."""


def _without_context(text: str) -> str:
    """`text` with nothing in it that would be read as the record's context: users may have written it."""
    return _CONTEXT.sub(" [ ", text)


def configure(
    config: PoolConfig, *, worker: str | None = None, events: bool = True, stream: TextIO | None = None
) -> logging.Handler:
    """Write this process's log to `stream` (stderr, which Ray keeps in its session directory), with context.

    For our own processes: workers, the pool's actors, the HTTP ingress. A program that uses `dspool` as a library
    keeps its own logging; it may use `LogContext`, `TextFormatter` and `JsonFormatter` as it likes.
    """
    telemetry = config.telemetry
    root = logging.getLogger()
    for earlier in [handler for handler in root.handlers if isinstance(handler, _OwnHandler)]:
        root.removeHandler(earlier)
    handler = _OwnHandler(stream or sys.stderr)
    formatter = JsonFormatter if telemetry.log_format == "json" else TextFormatter
    handler.setFormatter(formatter(show_content=telemetry.capture_content))
    handler.addFilter(LogContext(config.name, worker))
    root.addHandler(handler)
    set_level(config)
    if events:
        attach(_log_event)
    return handler


def include_own(config: PoolConfig) -> None:
    """Let the author's modules that are imported by now log from the configured level on, as dspool does.

    Loggers that have a level of their own keep it.
    """
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level == logging.NOTSET and is_own_module(name):
            logger.setLevel(config.telemetry.log_level.upper())


def set_level(config: PoolConfig, before: PoolConfig | None = None) -> None:
    """Log from the configured level on; `before` is the configuration that set the level there is."""
    own = logging.NOTSET if before is None else logging.getLevelName(before.telemetry.log_level.upper())
    for module in ("dspool", *config.allowed_imports):
        package = logging.getLogger(module.partition(".")[0])
        if package.name == "dspool" or package.level in (logging.NOTSET, own):
            package.setLevel(config.telemetry.log_level.upper())


class _OwnHandler(logging.StreamHandler[TextIO]):
    pass


class LogHandler:
    """Writes each event to a standard logger: its name and numbers as text, and all of it as fields.

    It writes only what the table declares, so no other value gets into a log. The fields are at `record.dspool`, for
    `JsonFormatter` or any other formatter.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger(EVENT_LOGGER)

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
        if trace := _traceback(record, whole=self._show_content):
            line["traceback"] = trace
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__qualname__
        return json.dumps(line, default=str)


_log_event = LogHandler()


def _traceback(record: logging.LogRecord, *, whole: bool) -> str:
    """That of the exception, or one that is text already."""
    if not record.exc_info or record.exc_info[1] is None:
        return str(getattr(record, "traceback", ""))
    return traceback_of(record.exc_info[1], whole=whole)


def _context(record: logging.LogRecord) -> dict[str, Any]:
    event = getattr(record, "dspool", None) or {}
    values = {key: getattr(record, key, None) for key in FIELDS}
    return {key: value for key, value in values.items() if value is not None and key not in event}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return json.dumps(text) if any(c.isspace() or c in '"=' for c in text) else text
