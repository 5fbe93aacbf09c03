"""Facts as lines of JSON in a file that several processes write, of which each may be killed at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def append_line(path: str | Path, fact: dict[str, Any]) -> None:
    """Whole or not at all: one write, at the end of the file."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, json.dumps(fact).encode() + b"\n")
    finally:
        os.close(file)


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from (json.loads(line) for line in path.read_text().splitlines())
