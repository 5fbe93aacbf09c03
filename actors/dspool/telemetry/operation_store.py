"""The ended operations of one pool on disk: written in batches, bounded, searched.

SQLite in a file of its own. A search reads the narrow table of facts from its newest row to its oldest, a million rows
in a tenth to a fifth of a second, however rare it is what is searched. Failures, which are searched most and are few,
have an index in the same order that holds all their facts. An index of anything else would be written at a random
place with each operation.

Blocking; a thread calls it. Losing the file costs the search of the past, nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from dspool import private_files
from dspool.core.metrics.operation_records import (
    EndedOperation,
    OperationQuery,
    cursor_of,
    key_at,
    key_of,
    micros,
)
from dspool.core.metrics.tally import ERROR, INDEX_OF
from dspool.errors import PoolNotReady

VERSION: Final = 2
"""Of the tables. A file of another version is begun anew."""
SEARCH_S: Final = 4.0
"""Time of one search."""
MEMORY_ROWS: Final = 20_000
"""Most operations of a store that has no file."""
_CHECK_EVERY: Final = 100_000
"""Steps of SQLite's machine between two looks at the clock: about a millisecond."""
_PRUNED_AT_ONCE: Final = 20_000
_SAMPLE: Final = 20_000
"""Operations whose longest say of all others which cannot be among the longest."""
_SUFFIXES: Final = ("", "-wal", "-shm", "-journal")
_COLUMNS: Final = (
    "took", "id", "session", "worker", "program", "version", "outcome", "code", "exception", "principal"
)  # fmt: skip
"""Of the facts: SQLite finds a column the quicker the earlier it stands."""
_FAILED: Final = "(outcome <> 0 OR code <> 0 OR exception <> 0)"
_TABLES: Final = f"""
CREATE TABLE facts (key INTEGER PRIMARY KEY, took INT, id TEXT, session INT, worker INT, program INT, version INT,
  outcome INT, code INT, exception INT, principal INT);
CREATE INDEX failures ON facts (key, {", ".join(_COLUMNS)}) WHERE {_FAILED};
CREATE TABLE records (key INTEGER PRIMARY KEY, record BLOB);
"""

log = logging.getLogger("dspool.metrics")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(EndedOperation).decode


class OperationStore:
    """Keeps at most `max_rows` operations, `max_bytes` of them, none older than `max_age_s`.

    `path` None keeps them in memory, at most `MEMORY_ROWS`.
    """

    def __init__(
        self, path: Path | None, *, max_rows: int, max_bytes: int = 2**40, max_age_s: float = 1e9
    ) -> None:
        self._path = path
        self._max_rows = max_rows if path is not None else min(max_rows, MEMORY_ROWS)
        self._max_bytes, self._max_age_s = max_bytes, max_age_s
        self.kept = 0
        # One writes while others search, except in memory, where both have one connection.
        self._writing = threading.Lock()
        self._reading = threading.Lock() if path is not None else self._writing
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None

    def write(self, operations: Iterable[EndedOperation], now: float) -> None:
        """Keep these, and let go of what is beyond the bounds. One that is here already counts once.

        Raises:
            OSError, sqlite3.Error: it could not; what was kept before is as it was.
        """
        rows, records = [], []
        for one in operations:
            key, row = _facts(one)
            rows.append(row)
            records.append((key, _encode(one)))
        with self._writing:
            to = self._open()
            with _transaction(to):
                before = to.total_changes
                to.executemany(f"INSERT OR IGNORE INTO facts VALUES ({', '.join('?' * 11)})", rows)
                added = to.total_changes - before
                to.executemany("INSERT OR IGNORE INTO records VALUES (?, ?)", records)
            self.kept += added
            self._prune(to, now, added)

    def find(self, query: OperationQuery) -> tuple[list[EndedOperation], str | None]:
        """A page of what fits, and the cursor of the next one.

        Raises:
            PoolNotReady: it took too long.
            OSError, sqlite3.Error: it could not be read.
        """
        with self._reading:
            found = self._search(self._open_reader(), query)
        more = len(found) > query.limit
        page = [(key, _decode(record)) for key, record in found[: query.limit]]
        cursor = cursor_of(page[-1][1], page[-1][0]) if more else None
        # Names are compared by their hashes; here the few that are not meant go.
        return [one for _, one in page if query.fits(one)], cursor

    def oldest_at(self) -> float | None:
        with self._reading:
            row = self._open_reader().execute("SELECT min(key) FROM facts").fetchone()
        return None if row[0] is None else (row[0] >> 10) / 1e6

    def close(self) -> None:
        with self._writing:
            for connection in (self._writer, self._reader):
                if connection is not None:
                    connection.close()
            self._writer = self._reader = None

    # --- within ---

    def _open(self) -> sqlite3.Connection:
        if self._writer is None:
            try:
                self._writer = self._opened()
            except sqlite3.DatabaseError as damaged:
                if self._path is None or isinstance(damaged, sqlite3.OperationalError):
                    raise
                log.warning("the kept operations begin anew: %s", damaged)
                self._remove()
                self._writer = self._opened()
            self.kept = self._writer.execute("SELECT count(*) FROM facts").fetchone()[0]
        return self._writer

    def _opened(self) -> sqlite3.Connection:
        connection = self._connect()
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError(f"their file is of version {version}, this dspool has {VERSION}")
            if version == 0:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
            connection.execute("PRAGMA journal_mode = WAL")
            # A crash of the machine may cost the last seconds, never the file.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("SELECT max(key) FROM facts").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_reader(self) -> sqlite3.Connection:
        if self._path is None:
            return self._open()
        if self._reader is None:
            with self._writing:
                self._open()
            self._reader = self._connect()
            self._reader.execute("PRAGMA query_only = ON")
        return self._reader

    def _connect(self) -> sqlite3.Connection:
        path = self._path
        if path is not None:
            private_files.make_directory(path.parent)
            os.close(private_files.open_descriptor(path, os.O_RDWR | os.O_CREAT))
            for suffix in _SUFFIXES[1:]:
                private_files.narrow(path.with_name(path.name + suffix))
        connection = sqlite3.connect(
            ":memory:" if path is None else path, isolation_level=None, check_same_thread=False, timeout=10.0
        )
        connection.execute("PRAGMA cache_size = -8000")
        return connection

    def _remove(self) -> None:
        assert self._path is not None
        for suffix in _SUFFIXES:
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _search(self, connection: sqlite3.Connection, query: OperationQuery) -> list[tuple[int, bytes]]:
        until = time.monotonic() + SEARCH_S
        connection.set_progress_handler(lambda: time.monotonic() > until, _CHECK_EVERY)
        try:
            # What is found in two steps must be of one moment.
            with _transaction(connection, "DEFERRED"):
                return _found(connection, query)
        except sqlite3.OperationalError as failed:
            if time.monotonic() <= until:
                raise
            raise PoolNotReady(
                f"the search took more than {SEARCH_S:g} s; name a shorter time", retry_after_s=1.0
            ) from failed
        finally:
            connection.set_progress_handler(None, 0)

    def _prune(self, to: sqlite3.Connection, now: float, added: int) -> None:
        """A bounded piece of what is beyond the bounds; the rest goes with the next batches."""
        excess = max(0, self.kept - self._max_rows)
        if self._bytes(to) > self._max_bytes:
            excess = max(excess, self.kept // 20 + added)
        places = [key_at(max(0.0, now - self._max_age_s))]
        if excess:
            row = to.execute(
                "SELECT key FROM facts ORDER BY key LIMIT 1 OFFSET ?", (min(excess, _PRUNED_AT_ONCE),)
            ).fetchone()
            places.append(row[0] if row else 2**63 - 1)
        oldest_kept = max(places)
        with _transaction(to):
            keys = "(SELECT key FROM facts WHERE key < ? ORDER BY key LIMIT ?)"
            for table in ("records", "facts"):
                gone = to.execute(
                    f"DELETE FROM {table} WHERE key IN {keys}", (oldest_kept, _PRUNED_AT_ONCE)
                ).rowcount
        self.kept -= gone
        if gone:
            to.execute("PRAGMA incremental_vacuum(256)").fetchall()

    def _bytes(self, connection: sqlite3.Connection) -> int:
        """Of what is in the file; pages that were let go are used again."""
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _facts(one: EndedOperation) -> tuple[int, tuple[Any, ...]]:
    key = key_of(one, _hash(one.id))
    return key, (
        key,
        max(0, micros(one.duration_s)),
        one.id,
        _hash(one.session),
        _hash(one.worker),
        _hash(one.program or one.command),
        one.version,
        INDEX_OF.get(one.outcome, ERROR),
        _hash(one.code),
        _hash(one.exception),
        _hash(one.principal),
    )


def _hash(name: str | None) -> int:
    """A name in four bytes; 0 is none."""
    return 0 if name is None else (zlib.crc32(name.encode("utf-8", "surrogatepass")) or 1)


def _found(connection: sqlite3.Connection, query: OperationQuery) -> list[tuple[int, bytes]]:
    """A page, and one more if there is one."""
    keys = _keys(connection, query)
    marks = ", ".join("?" * len(keys))
    records = dict(connection.execute(f"SELECT key, record FROM records WHERE key IN ({marks})", keys))
    return [(key, records[key]) for key in keys if key in records]


def _keys(connection: sqlite3.Connection, query: OperationQuery) -> list[int]:
    source, condition, values = _condition(query)
    after, way = (">", "ASC") if query.ascending else ("<", "DESC")
    order = f"key {way}" if query.sort == "time" else f"took {way}, key {way}"
    number = query.limit + 1
    if query.sort == "duration":
        # Sorting a million rows costs more than reading them: most are known not to be among the longest.
        some = f"SELECT key, took FROM {source} WHERE {condition} LIMIT {_SAMPLE}"
        sample = f"SELECT key, took, count(*) OVER () FROM ({some}) ORDER BY {order} LIMIT {number}"
        rows = connection.execute(sample, values).fetchall()
        if not rows or rows[0][2] < _SAMPLE:
            return [row[0] for row in rows]
        condition += f" AND took {after.translate(_TURNED)}= ?"
        values.append(rows[-1][1])
    statement = f"SELECT key FROM {source} WHERE {condition} ORDER BY {order} LIMIT {number}"
    return [row[0] for row in connection.execute(statement, values)]


_TURNED: Final = str.maketrans("<>", "><")


def _condition(query: OperationQuery) -> tuple[str, str, list[Any]]:
    """(facts and the index to read, what holds of those that fit, values)."""
    wheres: list[str] = []
    values: list[Any] = []

    def where(condition: str, *given: Any) -> None:
        wheres.append(condition)
        values.extend(given)

    source = "facts NOT INDEXED"
    if query.error is not None or query.outcome not in (None, "ok"):
        source = "facts INDEXED BY failures"
        where(_FAILED)
    if query.at_least_s is not None:
        where("took >= ?", micros(query.at_least_s))
    if query.at_most_s is not None:
        where("took <= ?", micros(query.at_most_s))
    for name in ("session", "worker", "program", "principal"):
        if (value := getattr(query, name)) is not None:
            where(f"{name} = ?", _hash(value))
    if query.id is not None:
        where("id = ?", query.id)
    if query.version is not None:
        where("version = ?", query.version)
    if query.outcome is not None:
        where("outcome <> 0" if query.outcome == "failed" else f"outcome = {INDEX_OF[query.outcome]}")
    if query.error is not None:
        where("(code = ? OR exception = ?)", _hash(query.error), _hash(query.error))
    if query.since is not None:
        where("key >= ?", key_at(query.since))
    if query.until is not None:
        where("key < ?", key_at(query.until))
    if query.text is not None:
        where("instr(id, ?) > 0", query.text)
    after = ">" if query.ascending else "<"
    if (place := query.place()) is not None:
        took, key = place
        if query.sort == "time":
            where(f"key {after} ?", key)
        else:
            where(f"(took {after} ? OR (took = ? AND key {after} ?))", took, took, key)
    return source, " AND ".join(wheres) or "true", values


__all__ = ["OperationStore"]
