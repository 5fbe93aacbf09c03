"""What a database's errors mean: the causes that a user can do something about, and the rest by their kind."""

from __future__ import annotations

import errno
import sqlite3
from typing import Final

from sqlalchemy import URL
from sqlalchemy.exc import DatabaseError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from dspool.causes import Obstacle, met
from dspool.errors import StoreFailed

_SQLITE: Final = {
    sqlite3.SQLITE_FULL: "no_space",
    sqlite3.SQLITE_READONLY: "read_only",
    sqlite3.SQLITE_BUSY: "store_locked",
    sqlite3.SQLITE_LOCKED: "store_locked",
    sqlite3.SQLITE_NOTADB: "store_damaged",
    sqlite3.SQLITE_CORRUPT: "store_damaged",
}
"""By the primary code of the error."""
_POSTGRES: Final = {
    "28": "store_login",
    "3D": "store_missing",
    "53100": "no_space",
    "55P03": "store_locked",
    "57P03": "store_unreachable",
    "53300": "store_unreachable",
    "08": "store_unreachable",
}
"""By SQLSTATE, or its first two characters: its class."""


def store_failed(failed: BaseException, url: URL) -> StoreFailed:
    """`failed` as users see it. It repeats only messages about the database itself: others quote values, which are
    users' content."""
    error: StoreFailed
    if (cause := obstacle_of(failed, url)) is not None:
        error = cause.error(StoreFailed)  # type: ignore[assignment]
    else:
        origin = _origin(failed)
        detail = (
            f": {origin}"
            if isinstance(failed, OperationalError | InterfaceError | OSError)
            or type(failed) is DatabaseError
            else ""
        )
        error = StoreFailed(f"the session store failed ({type(origin).__name__}{detail})")
    error.__cause__ = failed
    return error


def obstacle_of(failed: BaseException, url: URL) -> Obstacle | None:
    """The cause in the table that `failed` is; None if it is none of them."""
    origin = _origin(failed)
    shown = url.render_as_string(hide_password=True).replace("+aiosqlite", "").replace("+asyncpg", "")
    place = url.database if url.get_backend_name() == "sqlite" else shown
    cause, why = _cause_of(origin), type(origin).__name__
    if isinstance(origin, sqlite3.Error):
        why = getattr(origin, "sqlite_errorname", why)
    if cause is None:
        return None
    return met(cause, path=place, url=shown, why=why)


def is_failure(failed: BaseException) -> bool:
    """Whether a driver raised it because a database is away, locked, full or broken; asyncpg's own, by their state."""
    return isinstance(failed, SQLAlchemyError | OSError | TimeoutError) or hasattr(failed, "sqlstate")


def is_full(failed: BaseException) -> bool:
    """Whether SQLite found no room for what it was to write."""
    return _cause_of(_origin(failed)) == "no_space"


def _cause_of(origin: BaseException) -> str | None:
    if isinstance(origin, sqlite3.Error):
        return _SQLITE.get(getattr(origin, "sqlite_errorcode", 0) & 0xFF)
    if isinstance(state := getattr(origin, "sqlstate", None), str):
        return _POSTGRES.get(state) or _POSTGRES.get(state[:2])
    if isinstance(origin, OSError):
        return "no_space" if origin.errno == errno.ENOSPC else "store_unreachable"
    return None


def _origin(failed: BaseException) -> BaseException:
    """The driver's own error: SQLAlchemy's adapter stands in front of asyncpg's."""
    origin = failed.orig if isinstance(failed, DBAPIError) and failed.orig else failed
    if isinstance(getattr(origin, "sqlstate", None), str) or origin.__cause__ is None:
        return origin
    return origin.__cause__ if isinstance(failed, DBAPIError) else origin


__all__ = ["is_failure", "is_full", "obstacle_of", "store_failed"]
