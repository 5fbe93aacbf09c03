"""Whether a session store is as it should be: its file or server, its schema, and what must hold between its rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import and_, exists, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from dspool.core.admission.quotas import ROW_BYTES
from dspool.store import schema, tables
from dspool.store.migrations import SCHEMA_VERSION
from dspool.store.schema import parse_url
from dspool.store.usage import ALL, ANSWER_SIZE

_pools, _sessions, _items = schema.pools.c, schema.sessions.c, schema.session_items.c
_usage, _current, _deployments = schema.usage.c, schema.current_versions.c, schema.deployments.c


class StoreCheck(Struct, frozen=True):
    """One thing that must hold."""

    check: str
    ok: bool
    found: str


class StoreReport(Struct, frozen=True, kw_only=True):
    """What a check of a store found. `ok`: all of it."""

    store: str
    ok: bool
    schema_version: int | None
    identity: str
    rows: dict[str, int]
    served: dict[str, str]
    """By pool, the store that claims it and may live."""
    checks: list[StoreCheck]


async def check(url: str) -> StoreReport:
    """Look at the store of `url`, as it is at one moment; changes nothing, and the pools go on.

    Raises:
        ConfigError: there is none.
        StoreFailed: it cannot be reached.
    """
    address = parse_url(url)
    async with tables.opened(address) as engine, tables.snapshot(engine) as connection:
        version = await tables.version_of(connection)
        fits = version == SCHEMA_VERSION
        said = "none: this is no session store" if version is None else str(version)
        checks = [StoreCheck("schema version", fits, f"{said}, this dspool has {SCHEMA_VERSION}")]
        if not fits:
            return StoreReport(
                store=tables.shown(address),
                ok=False,
                schema_version=version,
                identity="",
                rows={},
                served={},
                checks=checks,
            )
        checks += [await _run(name, look, connection) for name, look in _CHECKS.items()]
        identity = (await connection.execute(select(schema.identity.c.identity))).scalars().all()
        served = await tables.servers(connection)
        return StoreReport(
            store=tables.shown(address),
            ok=all(one.ok for one in checks),
            schema_version=version,
            identity=identity[0] if identity else "",
            rows=await tables.counts(connection),
            served={pool: str(server) for pool, (server, _) in served.items()},
            checks=checks,
        )


Look = Callable[[AsyncConnection], Awaitable[list[str]]]
"""Says what is wrong; nothing if nothing is."""


async def _run(name: str, look: Look, connection: AsyncConnection) -> StoreCheck:
    wrong = await look(connection)
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return StoreCheck(name, not wrong, "; ".join(wrong[:3]) + more or "in order")


async def _whole(connection: AsyncConnection) -> list[str]:
    if connection.dialect.name != "sqlite":
        query = text("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
        return [f"index {name} is not valid" for name in (await connection.execute(query)).scalars()]
    said = (await connection.execute(text("PRAGMA integrity_check"))).scalars().all()
    return [one for one in said if one != "ok"]


async def _one_identity(connection: AsyncConnection) -> list[str]:
    number = len((await connection.execute(select(schema.identity))).all())
    return [] if number == 1 else [f"{number} identities"]


async def _pools_known(connection: AsyncConnection) -> list[str]:
    wrong = []
    for table in (schema.sessions, schema.deployments, schema.records):
        missing = select(table.c.pool).distinct().where(~exists().where(_pools.pool == table.c.pool))
        found = (await connection.execute(missing)).scalars()
        wrong += [f"pool {pool!r} of {table.name} has no epoch" for pool in found]
    return wrong


async def _epochs(connection: AsyncConnection) -> list[str]:
    ahead = select(_sessions.pool, func.count()).where(
        exists().where(and_(_pools.pool == _sessions.pool, _sessions.epoch > _pools.epoch))
    )
    rows = await connection.execute(ahead.group_by(_sessions.pool))
    wrong = [f"{number} sessions of pool {pool!r} are ahead of its epoch" for pool, number in rows]
    twice = (
        select(_sessions.pool, _sessions.epoch, func.count())
        .where(_sessions.owner.is_not(None))
        .group_by(_sessions.pool, _sessions.epoch)
        .having(func.count() > 1)
    )
    rows = await connection.execute(twice)
    return wrong + [f"{number} sessions of pool {pool!r} have epoch {epoch}" for pool, epoch, number in rows]


async def _orphans(connection: AsyncConnection) -> list[str]:
    has_session = exists().where(and_(_sessions.pool == _items.pool, _sessions.session == _items.session))
    deployed = exists().where(
        and_(
            _deployments.pool == _current.pool,
            _deployments.program == _current.program,
            _deployments.version == _current.version,
        )
    )
    items = await connection.scalar(
        select(func.count()).select_from(schema.session_items).where(~has_session)
    )
    versions = await connection.scalar(
        select(func.count()).select_from(schema.current_versions).where(~deployed)
    )
    wrong = [f"{items} items have no session"] if items else []
    return wrong + ([f"{versions} current versions are not there"] if versions else [])


async def _sizes(connection: AsyncConnection) -> list[str]:
    of_items = (
        select(func.coalesce(func.sum(_items.size), 0))
        .where(_items.pool == _sessions.pool, _items.session == _sessions.session)
        .scalar_subquery()
    )
    wrong = await connection.scalar(
        select(func.count()).select_from(schema.sessions).where(_sessions.size != ROW_BYTES + of_items)
    )
    return [f"{wrong} sessions have not the size of their items"] if wrong else []


async def _usages(connection: AsyncConnection) -> list[str]:
    kept = select(_sessions.pool, func.count(), func.sum(_sessions.size)).group_by(_sessions.pool)
    found = {row[0]: [row[1], int(row[2]), 0] for row in await connection.execute(kept)}
    answers = select(schema.idempotency.c.pool, func.sum(ANSWER_SIZE)).group_by(schema.idempotency.c.pool)
    for pool, size in await connection.execute(answers):
        found.setdefault(pool, [0, 0, 0])[2] = int(size)
    counted = select(_usage.pool, _usage.sessions, _usage.stored, _usage.answers)
    rows = await connection.execute(counted.where(_usage.principal == ALL))
    said = {row.pool: [row.sessions, row.stored, row.answers] for row in rows}
    return [
        f"pool {pool!r} counts {said.get(pool)} and has {found.get(pool)}"
        for pool in sorted(found.keys() | said.keys())
        if (said.get(pool) or [0, 0, 0]) != (found.get(pool) or [0, 0, 0])
    ]


async def _readable(connection: AsyncConnection) -> list[str]:
    wrong: list[str] = []
    columns = {
        schema.session_items: schema.session_items.c.payload,
        schema.records: schema.records.c.value,
        schema.deployments: schema.deployments.c.body,
    }
    for table, column in columns.items():
        unreadable = 0
        async for value in _values(connection, column):
            try:
                msgspec.json.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError):
                unreadable += 1
        if unreadable:
            wrong.append(f"{unreadable} rows of {table.name} are not JSON")
    return wrong


async def _values(connection: AsyncConnection, column: Any) -> AsyncIterator[str]:
    async for value in await connection.stream_scalars(select(column)):
        yield value


_CHECKS: Final[dict[str, Look]] = {
    "integrity": _whole,
    "identity": _one_identity,
    "pools": _pools_known,
    "epochs": _epochs,
    "orphans": _orphans,
    "sizes": _sizes,
    "usage": _usages,
    "contents": _readable,
}

__all__ = ["StoreCheck", "StoreReport", "check"]
