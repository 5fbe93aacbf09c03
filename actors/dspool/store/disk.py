"""A session store whose disk fills up: what is new is refused, and sessions are still opened and read.

To read a session its worker takes a lease, which is a write. So while there is room, the database keeps a reserve:
pages in its file that nothing uses, and a write-ahead log that is as long. Both are written over when the disk is full,
and leases need a few pages at a time. Values, sessions and versions of users get none of it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from dspool.causes import met
from dspool.errors import StoreFailed

RESERVE_BYTES: Final = 2**20
LEAST_FREE_BYTES: Final = 2**19
"""With less on its file system, nothing new is taken."""
_SHARE: Final = 8
"""A small file system gives a smaller reserve: so many times as much must be free."""


class StoreDisk:
    """The disk of one SQLite database; one of PostgreSQL is not ours to look after, and never short."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self._path = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
        self._grown = RESERVE_BYTES

    def refusal(self) -> StoreFailed | None:
        """What who wants to keep something new is told now; None while there is room."""
        if self._path is None or (free := _free_bytes(self._path)) is None or free >= LEAST_FREE_BYTES:
            return None
        return self.no_room()

    def no_room(self) -> StoreFailed:
        return met("no_space", path=str(self._path)).error(StoreFailed)

    async def keep_reserve(self, engine: AsyncEngine, grown: int = 0) -> None:
        """Make the reserve whole again, once what was written since (`grown` bytes more) may have used half of it."""
        self._grown += grown
        if self._path is None or self._grown < RESERVE_BYTES // 2:
            return
        size = min(RESERVE_BYTES, (_free_bytes(self._path) or 0) // _SHARE)
        self._grown = 0
        await self._run(engine, lambda raw: _keep_pages(raw, size))

    async def begin_log_anew(self, engine: AsyncEngine) -> None:
        """Write the log over from its beginning from now on: it needs no more room then."""
        if self._path is not None:
            await self._run(engine, _checkpoint)

    async def _run(self, engine: AsyncEngine, work: Any) -> None:
        with contextlib.suppress(sqlite3.Error, SQLAlchemyError):
            # Not by SQLAlchemy's own connection, which has begun a transaction.
            connection = await engine.raw_connection()
            try:
                await work(connection.driver_connection)
            finally:
                connection.close()


async def _checkpoint(raw: Any) -> None:
    async with raw.execute("PRAGMA wal_checkpoint(PASSIVE)"):
        pass


async def _keep_pages(raw: Any, size: int) -> None:
    pages, page = [await _number(raw, name) for name in ("freelist_count", "page_size")]
    missing = size - pages * page
    if missing > 0:
        await raw.execute("BEGIN IMMEDIATE")
        try:
            await raw.execute("CREATE TABLE reserve (room BLOB)")
            await raw.execute("INSERT INTO reserve VALUES (zeroblob(?))", (missing,))
            await raw.execute("DROP TABLE reserve")
            await raw.execute("COMMIT")
        except sqlite3.Error:
            await raw.execute("ROLLBACK")
            raise
    await _checkpoint(raw)


async def _number(raw: Any, name: str) -> int:
    async with raw.execute(f"PRAGMA {name}") as cursor:
        return int((await cursor.fetchone())[0])


def _free_bytes(path: Path) -> int | None:
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return None
    # Root may use what is kept for it.
    return disk.f_frsize * (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail)


__all__ = ["LEAST_FREE_BYTES", "RESERVE_BYTES", "StoreDisk"]
