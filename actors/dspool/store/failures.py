"""What a database's errors mean: the causes that a user can do something about, and the rest by their kind."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy import URL
from sqlalchemy.exc import DatabaseError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from dspool.causes import Obstacle, met, of_os_error
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
_STARTING: Final = "57P03"
_POSTGRES: Final = {
    "28": "store_login",
    "3D": "store_missing",
    "53100": "no_space",
    "55P03": "store_locked",
    _STARTING: "store_unreachable",
    "53300": "store_crowded",
    "25006": "store_standby",
    "08": "store_unreachable",
}
"""By SQLSTATE, or its first two characters: its class."""


def store_failed(failed: BaseException, url: URL) -> StoreFailed:
    """`failed` as users see it. It repeats only messages about the database itself: others quote values, which are
    users' content."""
    error: StoreFailed
    if (cause := obstacle_of(failed, url)) is not None:
        error = cause.error(StoreFailed)
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
    if (cause := _cause_of(origin)) is None:
        return None
    if url.get_backend_name() != "sqlite":
        return _of_postgres(cause, origin, url)
    if isinstance(origin, sqlite3.Error):
        return met(cause, path=url.database, why=getattr(origin, "sqlite_errorname", type(origin).__name__))
    return of_os_error(origin, Path(url.database or "")) if isinstance(origin, OSError) else None


def not_connected(failed: BaseException, url: URL) -> StoreFailed:
    """What kept the driver from connecting to PostgreSQL: whatever else it is, that was not reached."""
    error = (obstacle_of(failed, url) or _of_postgres("store_unreachable", failed, url)).error(StoreFailed)
    assert isinstance(error, StoreFailed)
    return error


def _of_postgres(cause: str, origin: BaseException, url: URL) -> Obstacle:
    hosts = ", ".join(hosts_of(url))
    if cause == "no_space":
        return met(cause, path=f"PostgreSQL at {hosts}")
    why = type(origin).__name__
    if isinstance(origin, TimeoutError):
        why = "no answer in time"
    elif getattr(origin, "sqlstate", None) == _STARTING:
        why = "it is starting or stopping"
    user = url.username or "the system's user"
    return met(cause, hosts=hosts, user=user, database=url.database or user, why=why)


def hosts_of(url: URL) -> list[str]:
    """The hosts of a parsed URL, with their ports, in the order in which they are tried."""
    if url.host:
        return [f"{url.host}:{url.port or 5432}"]
    hosts, ports = (str(url.query.get(name, "")).split(",") for name in ("host", "port"))
    if len(ports) != len(hosts):
        ports = [ports[0] or "5432"] * len(hosts)
    return [
        host if host.startswith("/") else f"{host}:{port or 5432}"
        for host, port in zip(hosts, ports, strict=True)
    ]


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
    if type(origin).__name__ == "TargetServerAttributeNotMatched":
        return "store_standby"
    if isinstance(origin, OSError):
        return "no_space" if origin.errno == errno.ENOSPC else "store_unreachable"
    return None


def _origin(failed: BaseException) -> BaseException:
    """The driver's own error: SQLAlchemy's adapter stands in front of asyncpg's."""
    origin = failed.orig if isinstance(failed, DBAPIError) and failed.orig else failed
    if isinstance(getattr(origin, "sqlstate", None), str) or origin.__cause__ is None:
        return origin
    return origin.__cause__ if isinstance(failed, DBAPIError) else origin


__all__ = ["hosts_of", "is_failure", "is_full", "not_connected", "obstacle_of", "store_failed"]
