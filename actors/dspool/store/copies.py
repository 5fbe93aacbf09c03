"""Backups of a session store, and its way back or to another database.

A backup is an SQLite file with all tables, whatever database it is of. It is of one moment, while the pools go on: each
change that was acknowledged before it began is in it, and of each commit all or nothing.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import Struct
from sqlalchemy import URL, select
from sqlalchemy.ext.asyncio import AsyncEngine

from dspool import private_files
from dspool.errors import ConfigError, Conflict, StoreFailed
from dspool.store import schema, tables
from dspool.store.migrations import SCHEMA_VERSION, migrate
from dspool.store.schema import parse_url
from dspool.store.usage import count_anew


class Copied(Struct, frozen=True, kw_only=True):
    """What a backup, a restore or a migration did."""

    source: str
    target: str
    schema_version: int
    identity: str
    """Of the database, the same in all its copies."""
    rows: dict[str, int]
    """By table, as counted in the target."""
    seconds: float


async def backup(url: str, file: Path) -> Copied:
    """Write all that the store of `url` has at this moment into `file`, which only this user may read.

    Raises:
        Conflict: the file exists.
        ConfigError: there is no such store, or it is of another version.
        StoreFailed: the database cannot be read, or the file cannot be written.
    """
    source, began = parse_url(url), time.monotonic()
    with _new_file(file) as part:
        async with tables.opened(source) as engine:
            if source.get_backend_name() == "sqlite":
                await asyncio.to_thread(_vacuum_into, Path(source.database or ""), part)
            else:
                await _write_rows(engine, part)
        facts = await asyncio.to_thread(_finish, part)
    return Copied(
        source=tables.shown(source), target=str(file), seconds=round(time.monotonic() - began, 3), **facts
    )


@contextmanager
def _new_file(file: Path) -> Iterator[Path]:
    """Where to write what becomes `file` at the end of the block, whole or not at all."""
    if file.exists():
        raise Conflict(f"{file} exists already: a backup does not replace another", path=str(file))
    part = file.with_name(f".{file.name}.part")
    parts = [part.with_name(part.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]
    try:
        if not file.parent.exists():
            private_files.make_directory(file.parent)
        part.unlink(missing_ok=True)
        os.close(private_files.open_descriptor(part, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        yield part
        part.replace(file)
    except OSError as failed:
        raise StoreFailed(f"cannot write the backup {file}: {failed.strerror}", path=str(file)) from failed
    finally:
        for path in parts:
            path.unlink(missing_ok=True)


def _vacuum_into(source: Path, target: Path) -> None:
    # One read transaction, so one moment; the log (WAL) lets writers go on meanwhile.
    with closing(
        sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0)
    ) as connection:
        try:
            connection.execute("VACUUM INTO ?", (str(target),))
        except sqlite3.Error as failed:
            raise StoreFailed(f"the session store failed ({type(failed).__name__}: {failed})") from failed


async def _write_rows(engine: AsyncEngine, target: Path) -> None:
    async with tables.snapshot(engine) as source:
        tables.refuse_other_version(await tables.version_of(source), "the database")
        async with tables.opened(_sqlite(target)) as into, into.begin() as connection:
            await tables.prepare(connection)
            await tables.copy(source, connection)


def _finish(file: Path) -> dict[str, Any]:
    """One file without a log beside it, on disk; what is in it."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        if (said := connection.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            raise StoreFailed(f"the backup is not whole: {said}")
        version = connection.execute("SELECT version FROM schema_version").fetchone()[0]
        present = {
            row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        rows = {
            table.name: connection.execute(f'SELECT count(*) FROM "{table.name}"').fetchone()[0]
            for table in tables.TABLES
            if table.name in present
        }
        known = "store_identity" in present
        identity = connection.execute("SELECT identity FROM store_identity").fetchone()[0] if known else ""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"schema_version": version, "identity": identity, "rows": rows}


async def restore(file: Path, url: str, *, replace: bool = False) -> Copied:
    """Put what `file` has into the store of `url`, all or nothing. Sessions belong to no worker then.

    Raises:
        ConfigError: it is no backup, or it or the store is of a newer dspool.
        Conflict: a pool of that store is being served; or it has rows already, and `replace` was not said.
    """
    target, began = parse_url(url), time.monotonic()
    async with _migrated(file) as source, tables.opened(target, must_exist=False) as engine:
        facts = await _replace_all(source, engine, replace, "stop it with `dspool down` before you restore")
    return Copied(
        source=str(file), target=tables.shown(target), seconds=round(time.monotonic() - began, 3), **facts
    )


async def move(source_url: str, target_url: str, *, replace: bool = False) -> Copied:
    """Copy the store of `source_url` into that of `target_url`; the source stays as it is.

    Raises: as `restore`; and Conflict: a pool of the source is being served, whose next changes the copy would lack.
    """
    source_at, target_at, began = parse_url(source_url), parse_url(target_url), time.monotonic()
    if source_at == target_at:
        raise ConfigError("the store is at that address already", key="to")
    why = "what it acknowledges from now on would be missing; stop it with `dspool down` before you migrate"
    async with tables.opened(source_at) as source, tables.opened(target_at, must_exist=False) as target:
        async with tables.snapshot(source) as connection:
            tables.refuse_other_version(await tables.version_of(connection), "the database")
        await tables.refuse_served(source, why)
        facts = await _replace_all(source, target, replace, "stop it with `dspool down` before you migrate")
    return Copied(
        source=tables.shown(source_at),
        target=tables.shown(target_at),
        seconds=round(time.monotonic() - began, 3),
        **facts,
    )


async def _replace_all(
    source: AsyncEngine, target: AsyncEngine, replace: bool, advice: str
) -> dict[str, Any]:
    async with target.connect() as connection:
        version = await tables.version_of(connection)
    if version is not None:
        tables.refuse_other_version(version, "the database to be written")
        await tables.refuse_served(target, advice)
    async with tables.snapshot(source) as rows, target.begin() as connection:
        await tables.prepare(connection)
        before = await tables.counts(connection)
        if any(before.values()) and not replace:
            raise Conflict(
                f"the database has {before['sessions']} sessions of {before['pools']} pools already: name another one, "
                "or say --replace, and they are gone",
                sessions=before["sessions"],
            )
        epochs = await tables.store_epochs(connection)
        copied = await tables.copy(rows, connection)
        await tables.begin_anew(connection, epochs)
        after = await tables.counts(connection)
        if lacking := {name: n for name, n in copied.items() if after[name] != n and name != "dead_workers"}:
            raise StoreFailed(f"not all rows arrived: {', '.join(sorted(lacking))}")
        identity = (await connection.execute(select(schema.identity.c.identity))).scalar_one()
    return {"schema_version": SCHEMA_VERSION, "identity": identity, "rows": after}


@asynccontextmanager
async def _migrated(file: Path) -> AsyncIterator[AsyncEngine]:
    """A backup, brought to this dspool's schema in a copy of its own."""
    if not _is_file(file):
        raise ConfigError(f"there is no backup {file}", path=str(file))
    with TemporaryDirectory(prefix=".dspool-restore-", dir=file.parent) as directory:
        copy = Path(directory) / "backup.db"
        try:
            await asyncio.to_thread(_vacuum_into, file, copy)
        except StoreFailed as failed:
            raise ConfigError(f"{file} is no backup of a session store", path=str(file)) from failed
        async with tables.opened(_sqlite(copy)) as engine:
            async with engine.connect() as connection:
                version = await tables.version_of(connection)
            if version is None or version > SCHEMA_VERSION:
                tables.refuse_other_version(version, f"the backup {file}")
            async with engine.begin() as connection:
                await connection.run_sync(migrate)
                await connection.run_sync(count_anew)
            yield engine


def _is_file(path: Path) -> bool:
    return path.is_file()


def _sqlite(path: Path) -> URL:
    return parse_url(f"sqlite:///{path.absolute()}")


__all__ = ["Copied", "backup", "move", "restore"]
