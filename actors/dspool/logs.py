"""Handlers for telemetry events: into the log, and into memory for those who look."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from dspool.telemetry import EVENTS


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
    """One JSON object a line: time, level, logger, and the fields of the event or the message."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "dspool", None)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **(fields if isinstance(fields, dict) else {"message": record.getMessage()}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__qualname__
        return json.dumps(line, default=str)


class Seen(NamedTuple):
    """One event as `EventLog` keeps it. `number` grows by one with each event."""

    number: int
    at: float
    event: str
    measurements: dict[str, float]
    metadata: dict[str, Any]


class EventLog:
    """Keeps the newest events, at most `limit`, and how often each came: what a reporter or a page reads from."""

    def __init__(self, limit: int = 1000, *, wall: Callable[[], float] = time.time) -> None:
        self.counts: Counter[str] = Counter()
        self._kept: deque[Seen] = deque(maxlen=limit)
        self._number = 0
        self._wall = wall

    def __call__(self, event: str, measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        self._number += 1
        self.counts[event] += 1
        self._kept.append(Seen(self._number, self._wall(), event, dict(measurements), dict(metadata)))

    def after(self, number: int = 0) -> list[Seen]:
        """The kept events with a higher number, oldest first; a first number above `number + 1` tells of lost ones."""
        return [seen for seen in self._kept if seen.number > number]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return json.dumps(text) if any(c.isspace() or c in '"=' for c in text) else text
