"""What a pool's processes wrote to their logs, read from the files that Ray keeps of a node: also of those that died.

Shown are records of logging (see `logs`), so also what user code logs and prints. What else gets into a file, past
logging, may hold anything: it is shown only where content is captured.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from dspool.config import PoolConfig
from dspool.messages.versioned_pickle import Message

CONTINUED: Final = "  | "
"""Begins each further line of a record: nobody can write a line that looks like another's record."""
READ_BYTES: Final = 256 * 1024
"""Of each file, for the newest lines."""
SEARCH_BYTES: Final = 64 * 2**20
"""Of all files together, for the lines of one operation; the newest files first."""
FILES: Final = 256
LONGEST_LINE: Final = 2000
LONGEST_RECORD: Final = 64 * 1024
MAX_LINES: Final = 1000
PAGE_CHARACTERS: Final = 2**20
_SETTLED_S: Final = 0.5
"""A line may still come that is as much older than the newest."""
_RECORD: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\S*) ([A-Z]+) +([\w.<>-]+): ")
"""How a record of `TextFormatter` begins."""
_CONTEXT: Final = re.compile(
    r" \[((?:pool|worker|session_hash|operation_id|trace_id)=[^\n]*)\]$", re.MULTILINE
)
EVENT_LOGGER: Final = "dspool"
"""Writes nothing but events, which name their fields themselves."""
_FIELD: Final = re.compile(r'(?:^|\s)(pool|worker|operation_id)=("(?:[^"\\]|\\.)*"|\S+)')


class LogTail(Message, Struct, frozen=True):
    lines: list[str]
    truncated: bool
    """There are older lines."""
    source: str
    """The file's name; empty if this process's log goes to no file."""
    filtered: bool
    """Left out what did not come by logging: it may hold what users sent."""


class LogLine(Message, Struct, frozen=True):
    """One record of a log, with its traceback if it has one."""

    at: float
    """Wall-clock seconds."""
    level: str
    logger: str
    """`stdout` and `stderr`: what user code printed."""
    worker: str
    """The worker's id; empty for another process of the pool."""
    operation_id: str | None
    text: str
    """As it stands in the log, in one or more lines."""


class LogPage(Message, Struct, frozen=True):
    lines: list[LogLine]
    """The oldest first."""
    next: float
    """What to give as `after` for the lines that follow; those of the last half second may come again."""
    truncated: bool
    """There are more lines than were asked for, or were looked through."""
    filtered: bool
    """Left out what did not come by logging: it may hold what users sent."""


class LogQuery(Message, Struct, frozen=True):
    """Which lines: of one operation, of one worker, after a time; the newest `limit`, or with `after` the oldest."""

    operation: str | None = None
    worker: str | None = None
    after: float = 0.0
    limit: int = 200


def own_log() -> Path | None:
    """The file behind this process's stderr, where `logs.configure` writes."""
    try:
        path = Path(os.readlink("/proc/self/fd/2"))
    except OSError:
        return None
    return path if path.is_file() else None


def tail(path: Path | None, lines: int, *, show_content: bool) -> LogTail:
    """The last `lines` lines of `path`, reading no more than its last 256 KiB."""
    if path is None:
        return LogTail([], False, "", not show_content)
    text, is_cut = _end_of(path)
    all_lines = text.splitlines()
    if not show_content:
        all_lines = [line for record in _records(text, show_content=False) for line in record]
    return LogTail(
        [line[:LONGEST_LINE] for line in all_lines[-lines:]],
        is_cut or len(all_lines) > lines,
        path.name,
        not show_content,
    )


def search(directory: Path | None, pool: str, query: LogQuery, *, show_content: bool) -> LogPage:
    """The lines of the pool's processes on this node, dead ones too. Takes up to a second: not for an event loop."""
    found: list[LogLine] = []
    truncated = False
    left = SEARCH_BYTES
    for path in _newest(directory, query.after):
        if query.operation is None:
            text, is_cut = _end_of(path)
        else:
            text, size = _around(path, query.operation, left)
            left -= size
            is_cut = left <= 0
        truncated |= is_cut
        for record in _records(text, show_content=show_content):
            line = _line_of(record, pool)
            if line is not None and _matches(line, query):
                found.append(line)
        if left <= 0:
            break
    return page_of(found, query, truncated=truncated, filtered=not show_content)


async def search_node(config: PoolConfig, query: LogQuery) -> LogPage:
    """As `search`, of the node of this process, for its pool."""
    log = own_log()
    directory, show = None if log is None else log.parent, config.telemetry.capture_content
    return await asyncio.to_thread(search, directory, config.name, query, show_content=show)


def merged(pages: Iterable[LogPage], query: LogQuery) -> LogPage:
    """The pages of several nodes as one."""
    pages = list(pages)
    lines = {(line.at, line.worker, line.text): line for page in pages for line in page.lines}
    return page_of(
        list(lines.values()),
        query,
        truncated=any(page.truncated for page in pages),
        filtered=any(page.filtered for page in pages),
    )


def page_of(found: list[LogLine], query: LogQuery, *, truncated: bool, filtered: bool) -> LogPage:
    found.sort(key=lambda line: line.at)
    lines = _within(found[: query.limit] if query.after else found[-query.limit :], newest=not query.after)
    following = query.after
    if lines:
        following = max(following, lines[-1].at - _SETTLED_S)
        if query.after and len(lines) < len(found) and following <= query.after:
            following = lines[-1].at  # else the same page would come for ever
    return LogPage(lines, following, truncated or len(found) > len(lines), filtered)


def _within(lines: list[LogLine], *, newest: bool) -> list[LogLine]:
    """As many as one answer holds."""
    left = PAGE_CHARACTERS
    kept: list[LogLine] = []
    for line in reversed(lines) if newest else lines:
        left -= len(line.text)
        if left < 0 and kept:
            break
        kept.append(line)
    return kept[::-1] if newest else kept


def _newest(directory: Path | None, after: float) -> list[Path]:
    """The files that something was written to after that time, the newest first."""
    if directory is None:
        return []
    files: list[tuple[float, Path]] = []
    for path in (*directory.glob("*.err"), *directory.glob("*.err.old")):
        try:
            about = path.stat()
        except FileNotFoundError:
            continue
        if about.st_size and about.st_mtime >= after:
            files.append((about.st_mtime, path))
    return [path for _, path in sorted(files, reverse=True)[:FILES]]


def _end_of(path: Path) -> tuple[str, bool]:
    """The file's last lines, and whether there are more."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - READ_BYTES))
            data = file.read(READ_BYTES)
    except FileNotFoundError:
        return "", False
    if size > READ_BYTES:
        data = data.partition(b"\n")[2]  # the first lacks its beginning
    return data.decode("utf-8", "replace"), size > READ_BYTES


def _around(path: Path, operation: str, most: int) -> tuple[str, int]:
    """The records of the file that name the operation, and how many bytes were looked through."""
    try:
        with path.open("rb") as file:
            data = file.read(most)
    except FileNotFoundError:
        return "", 0
    wanted, continued = operation.encode(), CONTINUED.encode()
    parts: list[bytes] = []
    end = 0
    while len(parts) < MAX_LINES and (at := data.find(wanted, end)) >= 0:
        start = data.rfind(b"\n", 0, at) + 1
        while start and data.startswith(continued, start):
            start = data.rfind(b"\n", 0, start - 1) + 1
        end = data.find(b"\n", at) + 1 or len(data)
        while data.startswith(continued, end):
            end = data.find(b"\n", end) + 1 or len(data)
        parts.append(data[start:end])
    return b"".join(parts).decode("utf-8", "replace"), len(data)


def _records(text: str, *, show_content: bool) -> Iterator[list[str]]:
    """Each record of logging, in its lines; with content, other lines go with the record before them."""
    record: list[str] = []
    shown = False
    for line in text.splitlines():
        if line.startswith(CONTINUED):
            if shown:
                record.append(line)
        elif _is_record(line):
            if record:
                yield record
            record, shown = [line], True
        elif show_content and record:
            record.append(line)
        else:
            shown = False
    if record:
        yield record


def _is_record(line: str) -> bool:
    return _RECORD.match(line) is not None or _json_of(line) is not None


def _json_of(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"time": '):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"time", "level", "logger"} <= record.keys() else None


def _line_of(record: list[str], pool: str) -> LogLine | None:
    """None: of another pool."""
    fields = _json_of(record[0])
    text = "\n".join(line.removeprefix(CONTINUED) for line in record)
    if fields is None:
        begin = _RECORD.match(record[0])
        assert begin is not None
        time, level, logger = begin.groups()
        fields = _fields_of(logger, text)
    else:
        time, level, logger = (str(fields[key]) for key in ("time", "level", "logger"))
    if fields.get("pool") != pool:
        return None
    try:
        at = datetime.fromisoformat(time).timestamp()
    except ValueError:
        return None
    operation = fields.get("operation_id")
    return LogLine(
        at, level.lower(), logger, str(fields.get("worker") or ""), operation, text[:LONGEST_RECORD]
    )


def _fields_of(logger: str, text: str) -> dict[str, str]:
    """What the record says of itself: an event its own fields, then the context, of which each record has one."""
    context = _CONTEXT.search(text)
    fields = {} if context is None else dict(_FIELD.findall(context[1]))
    if logger == EVENT_LOGGER:
        fields = dict(_FIELD.findall(text.partition("\n")[0].partition(" [")[0])) | fields
    return {key: json.loads(value) if value[0] == '"' else value for key, value in fields.items()}


def _matches(line: LogLine, query: LogQuery) -> bool:
    return (
        line.at >= query.after
        and (query.operation is None or line.operation_id == query.operation)
        and (query.worker is None or line.worker == query.worker)
    )


__all__ = [
    "MAX_LINES",
    "LogLine",
    "LogPage",
    "LogQuery",
    "LogTail",
    "merged",
    "own_log",
    "search",
    "search_node",
    "tail",
]
