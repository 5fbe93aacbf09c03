"""What a check found."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Level = Literal["ok", "warn", "fail"]


class Finding(Struct, frozen=True):
    check: str
    level: Level
    found: str
    """What is there."""
    meaning: str = ""
    """What follows from it; empty when all is well."""
    advice: str = ""
    """What to do."""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warn(check: str, found: str, meaning: str, advice: str) -> Finding:
    """It works, but worse than it could."""
    return Finding(check, "warn", found, meaning, advice)


def fail(check: str, found: str, meaning: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, "fail", found, meaning, advice)
