"""What a check found."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from dspool.causes import CAUSES, Obstacle
from dspool.errors import PoolError

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
    cause: str = ""
    """Its name in the table of causes, where it is one that a start meets too."""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warn(check: str, found: str, meaning: str, advice: str) -> Finding:
    """It works, but worse than it could."""
    return Finding(check, "warn", found, meaning, advice)


def fail(check: str, found: str, meaning: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, "fail", found, meaning, advice)


def of(check: str, obstacle: Obstacle) -> Finding:
    """What a start says that meets it."""
    level: Level = "fail" if CAUSES[obstacle.cause].blocks else "warn"
    return Finding(check, level, obstacle.found, obstacle.meaning, obstacle.remedy, obstacle.cause)


def of_error(check: str, refused: PoolError, meaning: str, advice: str) -> Finding:
    """As a start says it: the error has its remedy in its message, unless the table has it."""
    name = refused.details.get("cause")
    if not isinstance(name, str) or name not in CAUSES:
        return fail(check, refused.message, meaning, advice)
    cause = CAUSES[name]
    return Finding(
        check, "fail", refused.message.removesuffix(f"; {cause.remedy}"), cause.meaning, cause.remedy, name
    )
