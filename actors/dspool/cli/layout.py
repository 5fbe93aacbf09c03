"""Text that fits the terminal: tables, and lines that go on below. Where no terminal reads it, a line stays a line."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from datetime import datetime
from itertools import zip_longest
from typing import Final

_NARROWEST: Final = 9
"""Characters that a column keeps at least."""
_GAP: Final = "  "


def terminal_width() -> int | None:
    """Columns of the terminal, or what COLUMNS says; None where nothing is read by a terminal."""
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given) > 0:
        return int(given)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their content; where that is too wide, cells of the widest go on below."""
    widths = _fitting(titles, rows, terminal_width())
    lines = []
    for row in (titles, *rows):
        cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            line = _GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True))
            lines.append(line.rstrip())
    return "\n".join(lines)


def folded(text: str) -> str:
    """Lines that are too long go on below, indented. Words stay whole, to be copied."""
    limit = terminal_width()
    if limit is None:
        return text
    return "\n".join(part for line in text.split("\n") for part in _folded(line, limit))


def local_time(at: float | None) -> str:
    """Day and time here, without the year; a dash where there is none."""
    return "-" if not at else datetime.fromtimestamp(at).strftime("%m-%d %H:%M:%S")


def many(count: int) -> str:
    """At most seven characters."""
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:.4g}M"


def _folded(line: str, limit: int) -> list[str]:
    if len(line) <= limit:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(
        line,
        limit,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


def _fitting(titles: Sequence[str], rows: Sequence[Sequence[str]], limit: int | None) -> list[int]:
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles))]
    if limit is None:
        return widths
    least = [min(width, max(len(title), _NARROWEST)) for width, title in zip(widths, titles, strict=True)]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > limit:
        slack = [(width, column) for column, width in enumerate(widths) if width > least[column]]
        if not slack:
            break
        widths[max(slack)[1]] -= 1
    return widths


def _wrapped(cell: str, width: int) -> list[str]:
    return [cell] if len(cell) <= width else textwrap.wrap(cell, width, break_on_hyphens=False)


__all__ = ["folded", "local_time", "many", "table", "terminal_width"]
