"""All rows of a store as they are at one moment: who else serves it, how many there are, and copies of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import URL, delete, func, insert, inspect, null, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from dspool.config.base import without_secrets
from dspool.config.store import StoreConfig
from dspool.errors import ConfigError, Conflict, PoolError
from dspool.store import schema
from dspool.store.claims import StoreServer, decoded
from dspool.store.failures import is_failure, store_failed
from dspool.store.migrations import SCHEMA_VERSION
from dspool.store.serving import TAKE_OVER_S

OFFLINE: Final = StoreConfig(connections=2, statement_timeout_s=3600.0)
"""For commands of an operator: a large table takes its time, and nobody else waits for it."""
_ROWS: Final = 1000
EPOCH_GAP: Final = 2**20
"""A restored pool gives out no epoch that it may have given out after the backup was made."""

TABLES: Final = tuple(
    table for table in schema.metadata.sorted_tables if table not in (schema.schema_version, schema.identity)
)
"""Those with the pools' rows, the ones that others refer to first."""


@asynccontextmanager
async def opened(url: URL, *, must_exist: bool = True) -> AsyncIterator[AsyncEngine]:
    """The database of a parsed URL, for one command.

    Raises:
        ConfigError: there is none, and it `must_exist`.
        StoreFailed: it cannot be reached, or fails within the block.
    """
    if must_exist:
        _refuse_missing(url)
    engine = schema.create_engine(url, OFFLINE)
    try:
        yield engine
    except PoolError:
        raise
    except Exception as failed:
        if is_failure(failed):
            raise store_failed(failed, url) from failed
        raise
    finally:
        await engine.dispose()


def _refuse_missing(url: URL) -> None:
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise ConfigError(f"there is no session store at {url.database}", key="store_url")


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """All that is read in the block is of one moment; writers go on."""
    options = (
        {"read_only": True}
        if engine.dialect.name == "sqlite"
        else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    )
    async with engine.connect() as connection:
        await connection.execution_options(**options)
        async with connection.begin():
            yield connection


async def version_of(connection: AsyncConnection) -> int | None:
    """The schema version; None: nothing is there."""
    has = await connection.run_sync(lambda sync: inspect(sync).has_table("schema_version"))
    if not has:
        return None
    return int((await connection.execute(select(schema.schema_version.c.version))).scalar_one())


def refuse_other_version(version: int | None, what: str) -> None:
    """Raises: ConfigError: it is not this dspool's."""
    if version is None:
        raise ConfigError(f"{what} is no session store: it has no tables")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{what} has schema version {version}, this dspool knows {SCHEMA_VERSION}: upgrade dspool",
            found=version,
            known=SCHEMA_VERSION,
        )
    if version < SCHEMA_VERSION:
        raise ConfigError(
            f"{what} has schema version {version}, this dspool has {SCHEMA_VERSION}: start a pool on it once, which "
            "migrates it",
            found=version,
            known=SCHEMA_VERSION,
        )


async def counts(connection: AsyncConnection) -> dict[str, int]:
    """Rows by table."""
    found = {}
    for table in TABLES:
        found[table.name] = int(
            (await connection.execute(select(func.count()).select_from(table))).scalar_one()
        )
    return found


async def servers(connection: AsyncConnection) -> dict[str, tuple[StoreServer, int]]:
    """By pool: the store that claims it, and its heartbeat."""
    rows = await connection.execute(
        select(schema.pools.c.pool, schema.pools.c.served_by, schema.pools.c.heartbeat)
    )
    found = {row.pool: (decoded(row.served_by), row.heartbeat) for row in rows}
    return {pool: (server, beat) for pool, (server, beat) in found.items() if server and not server.is_gone()}


async def refuse_served(engine: AsyncEngine, why: str, *, watch_s: float = TAKE_OVER_S) -> None:
    """Waits up to `watch_s` where only a heartbeat can tell.

    Raises:
        Conflict: a store serves a pool of this database.
    """
    async with snapshot(engine) as connection:
        first = await servers(connection)
    until = asyncio.get_running_loop().time() + watch_s
    while first:
        late = asyncio.get_running_loop().time() >= until
        async with snapshot(engine) as connection:
            now = await servers(connection)
        for pool, (server, beat) in now.items():
            if pool in first and first[pool][1] != beat:
                raise Conflict(
                    f"pool {pool!r} is being served ({server}): {why}", pool=pool, server=str(server)
                )
        if late or not now:
            return
        await asyncio.sleep(watch_s / 24)


async def copy(source: AsyncConnection, target: AsyncConnection) -> dict[str, int]:
    """Put all rows of `source` in the place of those of `target`, in the caller's transactions; says how many."""
    for table in reversed(TABLES):
        await target.execute(delete(table))
    copied = {}
    for table in TABLES:
        copied[table.name] = 0
        rows = await source.stream(select(table).order_by(*table.primary_key.columns))
        async for part in rows.partitions(_ROWS):
            await target.execute(insert(table), [dict(row._mapping) for row in part])
            copied[table.name] += len(part)
    identity = (await source.execute(select(schema.identity))).mappings().one()
    await target.execute(delete(schema.identity))
    await target.execute(insert(schema.identity), dict(identity))
    return copied


async def prepare(connection: AsyncConnection) -> None:
    """Make the tables in an empty database. An opening store waits for the end of the transaction.

    Raises:
        ConfigError: it is of another version.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('dspool.schema'))"))
    version = await version_of(connection)
    if version is not None:
        refuse_other_version(version, "the database to be written")
        return
    await connection.run_sync(schema.metadata.create_all)
    await connection.execute(insert(schema.schema_version).values(version=SCHEMA_VERSION))


async def begin_anew(connection: AsyncConnection, epochs: dict[str, int]) -> None:
    """Nobody serves the pools, no worker has a lease, and no epoch comes again: neither one given out after the backup,
    nor one that the database had before (`epochs` of stores, by pool)."""
    await connection.execute(update(schema.sessions).values(owner=null()))
    await connection.execute(delete(schema.dead_workers))
    pools = schema.pools
    for row in (await connection.execute(select(pools.c.pool, pools.c.store_epoch))).all():
        anew = {
            "epoch": pools.c.epoch + EPOCH_GAP,
            "store_epoch": max(row.store_epoch, epochs.get(row.pool, 0)) + 1,
            "served_by": None,
        }
        await connection.execute(update(pools).where(pools.c.pool == row.pool).values(anew))


async def store_epochs(connection: AsyncConnection) -> dict[str, int]:
    rows = await connection.execute(select(schema.pools.c.pool, schema.pools.c.store_epoch))
    return {row.pool: row.store_epoch for row in rows}


def shown(url: URL) -> str:
    """Where it is, without secrets."""
    return without_secrets(url.render_as_string(hide_password=True))
