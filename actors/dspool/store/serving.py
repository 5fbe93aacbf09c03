"""One store serves a pool at a time: a claim in the database, which each write compares.

A store claims its pool before it serves: the pool's `store_epoch` becomes one higher, and who serves is written down.
Each transaction that writes locks the pool's row anyway, and compares what stands there: a store that was replaced (it
hung, or its host was cut off) commits nothing any more, however late it wakes up.

A store that serves counts its heartbeat. A store from elsewhere that wants the pool is refused as soon as it has seen
that count, and takes over when it has stood still for `TAKE_OVER_S`, so no two clocks are compared. The same actor,
started again, does not wait, nor does a store that sees on its own machine that the other's process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import URL, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from dspool.errors import PoolError, StoreFailed
from dspool.messages import StoreStatus
from dspool.store.claims import StoreServer, decoded, encoded
from dspool.store.failures import hosts_of
from dspool.store.schema import identity, pools, schema_version
from dspool.store.writer import Transaction

HEARTBEAT_S: Final = 2.0
TAKE_OVER_S: Final = 6.0
"""So long another store's heartbeat must have stood still before its pool is taken from it."""


class _Attempt(NamedTuple):
    server: StoreServer
    """Who serves now."""
    heartbeat: int
    granted: bool


class ServedPools:
    """The part of the session store that claims pools and gives them back."""

    _url: URL
    _read: Callable[[], AbstractAsyncContextManager[AsyncConnection]]
    _write: Callable[[Transaction], Awaitable[Any]]

    def __init__(self) -> None:
        self._claims: dict[str, str] = {}
        """By pool: what its row must say whenever something is written."""
        self._superseded: StoreFailed | None = None
        self._on_superseded: Callable[[StoreFailed], None] = lambda refused: None
        self._heartbeats: list[asyncio.Task[None]] = []

    async def serve(
        self,
        pool: str,
        server: StoreServer,
        *,
        on_superseded: Callable[[StoreFailed], None] = lambda refused: None,
        heartbeat_s: float = HEARTBEAT_S,
        take_over_s: float = TAKE_OVER_S,
    ) -> StoreServer:
        """Claim `pool`; from then on this store writes only as long as no other one has claimed it.

        When another has, it refuses all that it is asked, and calls `on_superseded` once.

        Raises:
            StoreFailed: another store serves the pool, and lives.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + take_over_s
        first = attempt = await self._claim(pool, server)
        while not attempt.granted:
            await asyncio.sleep(heartbeat_s / 4)
            late = loop.time() >= until
            attempt = await self._claim(pool, server, stands_at=first.heartbeat if late else None)
            if not attempt.granted and attempt.heartbeat != first.heartbeat:
                raise StoreFailed(
                    f"pool {pool!r} is served by another store already ({attempt.server}): two would not know of each "
                    "other's sessions; stop that one, or give this pool another name or store_url",
                    pool=pool,
                    server=str(attempt.server),
                )
        self._claims[pool] = encoded(attempt.server)
        self._on_superseded = on_superseded
        self._heartbeats.append(
            loop.create_task(self._beat(pool, heartbeat_s), name="dspool-store-heartbeat")
        )
        return attempt.server

    async def describe(self, pool: str) -> StoreStatus:
        """The database, and the store that serves `pool`."""
        async with self._read() as connection:
            row = (await connection.execute(select(pools).where(pools.c.pool == pool))).first()
            found = (await connection.execute(select(identity.c.identity))).scalar_one()
            version = (await connection.execute(select(schema_version.c.version))).scalar_one()
        holder = decoded(row.served_by) if row is not None else None
        is_file = self._url.get_backend_name() == "sqlite"
        place = (
            str(self._url.database) if is_file else f"{', '.join(hosts_of(self._url))}/{self._url.database}"
        )
        return StoreStatus(
            database=self._url.get_backend_name(),
            place=place,
            identity=found,
            schema_version=version,
            epoch=row.store_epoch if row is not None else 0,
            server="" if holder is None else str(holder),
            node="" if holder is None else holder.node,
            pinned=is_file,
        )

    async def _claim(self, pool: str, server: StoreServer, *, stands_at: int | None = None) -> _Attempt:
        """Take the pool if it is free or the server's own, or if the heartbeat of who has it still `stands_at` this."""

        async def run(connection: AsyncConnection) -> _Attempt:
            columns = (pools.c.store_epoch, pools.c.served_by, pools.c.heartbeat)
            row = (await connection.execute(select(*columns).where(pools.c.pool == pool))).one()
            holder = decoded(row.served_by)
            is_free = holder is None or holder.id == server.id or holder.is_gone()
            if holder is not None and not is_free and row.heartbeat != stands_at:
                return _Attempt(holder, row.heartbeat, False)
            mine = msgspec.structs.replace(server, epoch=row.store_epoch + 1, nonce=secrets.token_hex(8))
            taken = {"store_epoch": mine.epoch, "served_by": encoded(mine), "heartbeat": row.heartbeat + 1}
            await connection.execute(update(pools).where(pools.c.pool == pool).values(taken))
            return _Attempt(mine, row.heartbeat + 1, True)

        attempt: _Attempt = await self._write(Transaction(pool, run))
        return attempt

    async def _beat(self, pool: str, every_s: float) -> None:
        async def run(connection: AsyncConnection) -> None:
            one_more = update(pools).where(pools.c.pool == pool).values(heartbeat=pools.c.heartbeat + 1)
            await connection.execute(one_more)

        while self._superseded is None:
            await asyncio.sleep(every_s)
            with contextlib.suppress(PoolError):  # the database is away, or this store is superseded
                await self._write(Transaction(pool, run))

    async def _give_back(self) -> None:
        """Serve no pool any more, so that the next store need not wait."""
        for task in self._heartbeats:
            task.cancel()
        await asyncio.gather(*self._heartbeats, return_exceptions=True)
        self._heartbeats.clear()
        for pool in self._claims:
            with contextlib.suppress(PoolError):
                await self._write(Transaction(pool, _freeing(pool)))
        self._claims.clear()

    def _supersede(self, refused: StoreFailed) -> None:
        if self._superseded is None:
            self._superseded = refused
            self._on_superseded(refused)


def _freeing(pool: str) -> Callable[[AsyncConnection], Awaitable[None]]:
    async def run(connection: AsyncConnection) -> None:
        await connection.execute(update(pools).where(pools.c.pool == pool).values(served_by=None))

    return run


__all__ = ["HEARTBEAT_S", "TAKE_OVER_S", "ServedPools"]
