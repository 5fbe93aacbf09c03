"""The store's tables, its schema version, and the connection to a database.

One table per concern. Everything is keyed by pool first, because several pools share one database.
"""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    and_,
    event,
    make_url,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from dspool import private_files
from dspool.causes import of_os_error
from dspool.config.base import without_secrets
from dspool.config.store import StoreConfig
from dspool.errors import ConfigError, StoreFailed
from dspool.store.postgres import parse_postgres, postgres_engine

LOG_BYTES = 64 * 2**20
"""To which SQLite's write-ahead log is cut back; a transaction may make it longer for as long as it runs."""

# Byte order, so that ids sort and page alike on every database.
_Id = String().with_variant(String(collation="C"), "postgresql")

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

# One row: which database this is, whatever it is called and wherever it lies; a copy is the same.
identity = Table(
    "store_identity",
    metadata,
    Column("identity", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)

# `epoch` is the last epoch given out in this pool. One counter a pool, not one a session: a session id that ended and
# begins again gets a higher epoch, although nothing is kept about ended ids. The rest is about the store that serves
# the pool: see `serving`.
pools = Table(
    "pools",
    metadata,
    Column("pool", _Id, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("store_epoch", BigInteger, nullable=False, server_default="0"),
    Column("served_by", Text),
    Column("heartbeat", BigInteger, nullable=False, server_default="0"),
)

# `last_owner` outlives a release: it tells a move to another worker from a return to the same one. `size` is the sum of
# its items' sizes and its own.
sessions = Table(
    "sessions",
    metadata,
    Column("pool", _Id, primary_key=True),
    Column("session", _Id, primary_key=True),
    Column("principal", Text),
    Column("owner", _Id),
    Column("last_owner", _Id),
    Column("epoch", BigInteger, nullable=False),
    Column("moves", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_used_at", Float, nullable=False),
    Column("size", BigInteger, nullable=False, server_default="0"),
    Index("sessions_by_owner", "pool", "owner"),
    Index("sessions_by_use", "pool", "last_used_at"),
)

session_items = Table(
    "session_items",
    metadata,
    Column("pool", _Id, primary_key=True),
    Column("session", _Id, primary_key=True),
    Column("kind", _Id, primary_key=True),
    Column("name", _Id, primary_key=True),
    Column("payload", Text, nullable=False),
    Column("size", BigInteger, nullable=False, server_default="0"),
    ForeignKeyConstraint(
        ["pool", "session"], ["sessions.pool", "sessions.session"], ondelete="CASCADE", name="item_of_session"
    ),
)

# Workers that were declared dead: an `acquire` of theirs that is still on its way must not get a lease, which nobody
# would free.
dead_workers = Table(
    "dead_workers",
    metadata,
    Column("pool", _Id, primary_key=True),
    Column("worker", _Id, primary_key=True),
    Column("died_at", Float, nullable=False),
)

records = Table(
    "records",
    metadata,
    Column("pool", _Id, primary_key=True),
    Column("key", _Id, primary_key=True),
    Column("value", Text, nullable=False),
)

deployments = Table(
    "deployments",
    metadata,
    Column("pool", _Id, primary_key=True),
    Column("program", _Id, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("body", Text, nullable=False),
)

current_versions = Table(
    "current_versions",
    metadata,
    Column("pool", _Id, primary_key=True),
    Column("program", _Id, primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(
        ["pool", "program", "version"],
        ["deployments.pool", "deployments.program", "deployments.version"],
        name="current_is_deployed",
    ),
)

# `answer` is null while the work runs. `holder` does the work: only it may settle or drop the claim.
idempotency = Table(
    "idempotency",
    metadata,
    Column("pool", _Id, primary_key=True),
    Column("principal", _Id, primary_key=True),
    Column("key", _Id, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("lapses_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("answer", LargeBinary),
    Index("idempotency_by_end", "pool", "expires_at"),
)

# What each principal keeps; see `usage.Usage`.
usage = Table(
    "usage",
    metadata,
    Column("pool", _Id, primary_key=True),
    Column("principal", _Id, primary_key=True),
    Column("sessions", BigInteger, nullable=False),
    Column("stored", BigInteger, nullable=False),
    Column("answers", BigInteger, nullable=False),
)


def upsert(connection: AsyncConnection, table: Table) -> Any:
    """INSERT into `table`, or overwrite the row with the same primary key."""
    return _upsert(connection.dialect.name, table)


@functools.cache  # building one costs more than SQLite takes to run it
def _upsert(dialect: str, table: Table) -> Any:
    statement = _insert(dialect, table)
    key = list(table.primary_key.columns)
    rest = {
        column.name: statement.excluded[column.name] for column in table.columns if column not in set(key)
    }
    return statement.on_conflict_do_update(index_elements=key, set_=rest)


def insert_into(connection: AsyncConnection, table: Table) -> Any:
    return _insert(connection.dialect.name, table)


def _insert(dialect: str, table: Table) -> Any:
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


def among(columns: Sequence[Any], keys: Iterable[tuple[str, ...]]) -> ColumnElement[bool]:
    """The rows whose `columns` are one of `keys`; the first two are pool and session, or the like.

    For several tuples alone SQLite reads the whole table; for columns one by one it uses the index.
    """
    wanted = sorted(set(keys))
    if len(columns) == 2 and len({first for first, _ in wanted}) == 1:
        return and_(columns[0] == wanted[0][0], columns[1].in_([second for _, second in wanted]))
    first = [columns[place].in_(sorted({key[place] for key in wanted})) for place in (0, 1)]
    return and_(*first, tuple_(*columns).in_(wanted))


def parse_url(url: str) -> URL:
    """`url` with its asynchronous driver filled in.

    Raises:
        ConfigError: not a URL, neither SQLite nor PostgreSQL, an SQLite database in memory, or no driver installed.
    """
    if url.startswith(("postgresql://", "postgres://", "postgresql+asyncpg://")):
        return parse_postgres(url)
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        # Neither its message nor ours repeats the URL: it may hold a password.
        raise ConfigError("store_url is not a database URL such as sqlite:////path/file.db") from None
    if address.drivername in ("sqlite", "sqlite+aiosqlite"):
        if not address.database or address.database == ":memory:" or address.database.startswith("file:"):
            raise ConfigError(
                f"store_url must name a file, got {without_secrets(url)!r}: sessions must survive restarts"
            )
        return address.set(drivername="sqlite+aiosqlite")
    raise ConfigError(
        f"store_url must begin with sqlite:/// or postgresql://, got {without_secrets(url)!r}",
        scheme=address.drivername,
    )


def create_engine(url: URL, settings: StoreConfig | None = None) -> AsyncEngine:
    """An engine for `url`; does not connect yet, but makes the SQLite file and its directory."""
    # No `pool_reset_on_return`: connections serve only `begin()` blocks, which end their transaction themselves, and
    # another roll-back would cost a round trip a transaction.
    settings = settings or StoreConfig()
    if url.get_backend_name() == "sqlite":
        _make_private_file(Path(url.database or ""))
        engine = create_async_engine(
            url,
            hide_parameters=True,
            pool_reset_on_return=None,
            connect_args={"timeout": settings.statement_timeout_s},
        )
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    return postgres_engine(url, settings)


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Committed at the end of the block, and rolled back when that raises."""
    async with engine.begin() as connection:
        try:
            yield connection
        except TimeoutError:
            # Nobody knows what the server does with it: the next transaction gets another one.
            await connection.invalidate()
            raise


def _make_private_file(path: Path) -> None:
    """Make the file, and its directory if it is new, readable by this user alone: sessions hold user content."""
    try:
        # One that is there may be shared on purpose, if it is not the state directory (see `runtime.store`).
        if not path.parent.exists():
            private_files.make_directory(path.parent)
        os.close(private_files.open_descriptor(path, os.O_RDWR | os.O_CREAT))
        for suffix in ("-wal", "-shm", "-journal"):
            # SQLite gives new ones the mode of the database; they may be there from an earlier life.
            private_files.narrow(path.with_name(path.name + suffix))
    except OSError as failed:
        raise of_os_error(failed, path).error(StoreFailed) from failed


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # `_begin_sqlite` begins transactions: the driver itself would begin them late and unlocked.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # With NORMAL, too, a killed process loses nothing; only FULL survives a loss of power, as "acknowledged" promises:
    # it syncs the log at every commit. Group commit shares one sync among all waiting callers.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    # Else the log stays as long as its longest transaction has made it.
    cursor.execute(f"PRAGMA journal_size_limit={LOG_BYTES}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # Writers take the write lock at once: SQLite refuses a transaction that reads first and upgrades later, without
    # waiting, when another process wrote in between.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
