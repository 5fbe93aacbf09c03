"""The end of this process's own log, for somebody who looks at it from afar."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Final

from msgspec import Struct

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
