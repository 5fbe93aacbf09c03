"""The session store: who owns which session, and the state that survives a session's worker.

What a method has acknowledged is on disk: it survives SIGKILL of any process and, on SQLite with its `FULL`
setting and on PostgreSQL by default, loss of power.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from dspool.config.store import StoreConfig
from dspool.core.admission.access import may_see_session, unknown_session
from dspool.core.admission.quotas import MB, Amount, Quotas
from dspool.core.admission.rates import Allowance, Allowances, RateLimits
from dspool.errors import InvalidRequest, StoreFailed
from dspool.messages import Change, Lease, SessionInfo, StorageLimits, StoredUsage
from dspool.store import schema as store_schema
from dspool.store.disk import StoreDisk
from dspool.store.failures import is_failure, store_failed
from dspool.store.idempotency import IdempotencyKeys
from dspool.store.logins import EndedLogins
from dspool.store.migrations import migrate
from dspool.store.records import PoolRecords
from dspool.store.requests import (
    Acquire,
    Commit,
    Create,
    EndSessionRow,
    StoredChange,
    StoreRequest,
    check_names,
)
from dspool.store.schema import create_engine, dead_workers, parse_url, transaction, upsert
from dspool.store.serving import ServedPools
from dspool.store.silences import SilencedAlerts
from dspool.store.usage import ALL, Usage, count_anew
from dspool.store.writer import Transaction, Writer

MAX_PAGE = 1000
REMEMBER_DEAD_S = 86_400.0
"""A request of a dead worker is on its way for seconds at most; a day is far more, and bounds the table."""

_sessions, _items = store_schema.sessions, store_schema.session_items
_usage = store_schema.usage

_Sessions = list[SessionInfo]  # inside the class `list` is a method
_UsageByPrincipal = tuple[StoredUsage, list[StoredUsage]]
_Expired = list[tuple[str, str | None]]


class SessionStore(IdempotencyKeys, PoolRecords, EndedLogins, SilencedAlerts, ServedPools):
    """Ownership and durable state of the sessions of one or more pools, and the pools' own records.

    All methods raise `StoreFailed` when the database refuses or cannot be reached; then a write may or may not have
    happened. They raise `InvalidRequest` for values that are not JSON and for bad ids. Writes of one store happen
    in the order of the calls, one transaction at a time; reads do not wait for them.

    A session created with a principal exists only for that principal: others get `UnknownSession`, in the same
    words as for a session that never was. `principal=None` on a call is the pool's own trusted code and sees all;
    a session created with `principal=None` belongs to nobody, and all see it.
    """

    def __init__(
        self,
        url: str,
        *,
        quotas: Quotas | None = None,
        settings: StoreConfig | None = None,
        refused: Callable[[str], None] = lambda limit: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`url` is `sqlite:////path/file.db` or `postgresql://...`; anything else is a `ConfigError`.

        Calls `refused` with the name of each limit that refuses a request; by default there are none.
        """
        ServedPools.__init__(self)
        self._url = parse_url(url)
        self._quotas = quotas or Quotas()
        self._settings = settings
        self._refused, self._clock = refused, clock
        self._allowances: dict[str, Allowances] = {}
        self._engine: AsyncEngine | None = None
        self._writer: Writer | None = None

    def limit(self, quotas: Quotas) -> None:
        """From the next change on these hold."""
        self._quotas = quotas
        if self._writer is not None:
            self._writer.quotas = quotas

    async def open(self) -> None:
        """Connect. Makes the file (mode 0600, a new directory 0700) and the tables, or migrates old ones."""
        if self._engine is not None:
            return
        engine = create_engine(self._url, self._settings)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(migrate)
                await connection.run_sync(count_anew)
        except BaseException as failed:
            await engine.dispose()
            if is_failure(failed):
                raise store_failed(failed, self._url) from failed
            raise
        disk = StoreDisk(self._url)
        self._engine = engine
        limits = self._quotas, self._refused
        self._writer = Writer(engine, self._clock, *limits, self._claims, self._supersede, disk)

    async def close(self) -> None:
        """Finish the accepted writes, give back the pools, disconnect. Later calls raise `StoreFailed`."""
        await self._give_back()
        engine, writer = self._engine, self._writer
        self._engine = self._writer = None
        if writer is not None:
            await writer.finish()
        if engine is not None:
            await engine.dispose()

    # --- leases ---------------------------------------------------------------------------------------------

    async def acquire(
        self,
        pool: str,
        session: str,
        worker: str,
        *,
        create: bool,
        principal: str | None = None,
        limits: StorageLimits | None = None,
    ) -> Lease:
        """Make `worker` the owner, unless another worker is.

        Granted: commits need its `epoch`, which is higher than any that the session (or an ended one of the same id)
        had before, unless `worker` owned it already; `items` is its durable state. Not granted: `owner` is the
        living worker that has it, and there are no items.

        Raises:
            UnknownSession: there is none and `create` is false, or the session is another principal's.
            StaleLease: `worker` itself was declared dead.
            QuotaExceeded: it would be one session too many.
        """
        check_names(pool=pool, session=session, worker=worker, principal=principal)
        lease: Lease = await self._write(Acquire((pool, session), worker, create, principal, limits))
        return lease

    async def commit(
        self,
        pool: str,
        session: str,
        worker: str,
        epoch: int,
        changes: Sequence[Change],
        *,
        principal: str | None = None,
        limits: StorageLimits | None = None,
    ) -> int:
        """Make `changes` durable, all or none, in their order. Many concurrent commits share one transaction.

        Returns the session's size, as quotas count it. `limits` are those of `principal`, who asks.

        Raises:
            StaleLease: `worker` does not own the session at `epoch`; nothing was changed.
            PayloadTooLarge, QuotaExceeded: the session, its principal or the pool would have too much; likewise.
        """
        stored_changes = [StoredChange.of(change) for change in changes]
        request = Commit((pool, session), worker, epoch, stored_changes, principal, limits)
        size: int = await self._write(request)
        return size

    async def release(self, pool: str, worker: str, sessions: Sequence[str]) -> None:
        """Give back the leases that `worker` holds on the `sessions`; does not touch others."""
        await self._free(pool, _sessions.c.owner == worker, _sessions.c.session.in_(sessions))

    async def worker_dead(self, pool: str, worker: str) -> int:
        """Free all leases of `worker` and give it no new ones; returns how many it had."""

        async def declare(connection: AsyncConnection) -> None:
            await connection.execute(
                upsert(connection, dead_workers), {"pool": pool, "worker": worker, "died_at": self._clock()}
            )

        return await self._free(pool, _sessions.c.owner == worker, also=declare)

    async def declared_dead(self, pool: str) -> list[str]:
        """The workers of the last `REMEMBER_DEAD_S` that `worker_dead` was called for."""
        async with self._read() as connection:
            found = await connection.execute(select(dead_workers.c.worker).where(dead_workers.c.pool == pool))
            return list(found.scalars())

    async def workers_alive(self, pool: str, workers: Sequence[str]) -> int:
        """Free the leases of every worker not in `workers`; returns their number."""
        return await self._free(pool, _sessions.c.owner.is_not(None), _sessions.c.owner.not_in(workers))

    async def touch(self, pool: str, worker: str, sessions: Sequence[str]) -> None:
        """Set the time of last use of the `sessions` to now; skips those that `worker` does not own."""

        async def run(connection: AsyncConnection) -> None:
            where = (_sessions.c.pool == pool, _sessions.c.owner == worker, _sessions.c.session.in_(sessions))
            await connection.execute(update(_sessions).where(*where).values(last_used_at=self._clock()))

        await self._write(Transaction(pool, run))

    # --- limits ---------------------------------------------------------------------------------------------

    async def take_allowance(self, pool: str, token: str, limits: RateLimits, wanted: int) -> Allowance:
        """Grant up to `wanted` operations of a token, counted over all callers. In memory: a restart begins anew."""
        allowances = self._allowances.setdefault(pool, Allowances())
        return allowances.take(token, limits, wanted, now=time.monotonic(), wall=self._clock())

    # --- lives of sessions ----------------------------------------------------------------------------------

    async def create(
        self,
        pool: str,
        session: str,
        *,
        principal: str | None = None,
        limits: StorageLimits | None = None,
    ) -> SessionInfo:
        """Create an empty session that no worker owns yet.

        Raises:
            Conflict: there is one of that id, of this principal or another.
            QuotaExceeded: it would be one too many.
        """
        check_names(pool=pool, session=session, principal=principal)
        info: SessionInfo = await self._write(Create((pool, session), principal, limits))
        return info

    async def end(self, pool: str, session: str, *, principal: str | None = None) -> bool:
        """Remove the session and its state, owned or not; false if there is none (for this principal)."""
        ended: bool = await self._write(EndSessionRow((pool, session), principal))
        return ended

    async def expire(self, pool: str, idle_s: float) -> _Expired:
        """Remove the sessions idle for more than `idle_s` seconds; returns each with the worker that owned it."""

        async def run(connection: AsyncConnection) -> _Expired:
            now = self._clock()
            old = delete(_sessions).where(_sessions.c.pool == pool, _sessions.c.last_used_at < now - idle_s)
            rows = (
                await connection.execute(
                    old.returning(
                        _sessions.c.session, _sessions.c.owner, _sessions.c.principal, _sessions.c.size
                    )
                )
            ).all()
            usage = Usage(connection, self._quotas)
            await usage.load((pool, row.principal) for row in rows)
            for row in rows:
                usage.add(pool, row.principal, Amount(-1, -row.size))
            await usage.save()
            outdated = (dead_workers.c.pool == pool, dead_workers.c.died_at < now - REMEMBER_DEAD_S)
            await connection.execute(delete(dead_workers).where(*outdated))
            return sorted((row.session, row.owner) for row in rows)

        expired: _Expired = await self._write(Transaction(pool, run))
        return expired

    async def get(self, pool: str, session: str, *, principal: str | None = None) -> SessionInfo:
        """One session. Raises `UnknownSession`."""
        check_names(pool=pool, session=session)
        async with self._read() as connection:
            infos = await _infos(connection, _sessions.c.pool == pool, _sessions.c.session == session)
        if not infos or not may_see_session(infos[0].principal, principal):
            raise unknown_session(pool, session)
        return infos[0]

    # --- what there is ----------------------------------------------------------------------------------

    async def list(
        self,
        pool: str,
        *,
        limit: int = 100,
        after: str | None = None,
        owner: str | None = None,
        principal: str | None = None,
        containing: str = "",
    ) -> tuple[_Sessions, str | None]:
        """Up to `limit` sessions (of the worker `owner`, visible to `principal`) by id, and `after` for the next page.

        With `containing`, only those that have that text in their id, owner or principal.

        The cursor is None on the last page. A session that exists throughout is on exactly one page.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit must be 1..{MAX_PAGE}, got {limit}", limit=limit)
        where = [_sessions.c.pool == pool]
        if after is not None:
            where.append(_sessions.c.session > after)
        if owner is not None:
            where.append(_sessions.c.owner == owner)
        if principal is not None:  # as `may_see_session` has it
            where.append(_sessions.c.principal.is_(None) | (_sessions.c.principal == principal))
        if containing:
            columns = (_sessions.c.session, _sessions.c.owner, _sessions.c.principal)
            where.append(or_(*(column.contains(containing, autoescape=True) for column in columns)))
        async with self._read() as connection:
            infos = await _infos(connection, *where, limit=limit + 1)
        return infos[:limit], infos[limit - 1].id if len(infos) > limit else None

    async def count(self, pool: str) -> int:
        """The number of sessions."""
        async with self._read() as connection:
            result = await connection.execute(select(func.count()).where(_sessions.c.pool == pool))
            return int(result.scalar_one())

    async def usage(self, pool: str) -> _UsageByPrincipal:
        """What the pool keeps in all, and each principal of it, by name."""
        async with self._read() as connection:
            rows = (
                await connection.execute(
                    select(_usage).where(_usage.c.pool == pool).order_by(_usage.c.principal)
                )
            ).all()
        found = [
            StoredUsage(row.principal or None, row.sessions, row.stored / MB, row.answers / MB)
            for row in rows
        ]
        if rows and rows[0].principal == ALL:
            return found[0], found[1:]
        return StoredUsage(None, 0, 0.0, 0.0), []

    # --- how it reads and writes ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        """One snapshot; does not wait for writers."""
        if self._superseded is not None:
            raise self._superseded
        if self._engine is None:
            raise StoreFailed("the session store is closed")
        try:
            async with transaction(self._engine.execution_options(read_only=True)) as connection:
                yield connection
        except Exception as failed:
            if is_failure(failed):
                raise store_failed(failed, self._url) from failed
            raise

    async def _free(
        self, pool: str, *where: Any, also: Callable[[AsyncConnection], Awaitable[None]] | None = None
    ) -> int:
        async def run(connection: AsyncConnection) -> int:
            if also is not None:
                await also(connection)
            result = await connection.execute(
                update(_sessions).where(_sessions.c.pool == pool, *where).values(owner=None)
            )
            return int(result.rowcount)

        count: int = await self._write(Transaction(pool, run))
        return count

    async def _write(self, request: StoreRequest | Transaction) -> Any:
        if self._superseded is not None:
            raise self._superseded
        if self._writer is None:
            raise StoreFailed("the session store is closed")
        return await self._writer.write(request)


async def _infos(connection: AsyncConnection, *where: Any, limit: int = 1) -> list[SessionInfo]:
    """Sessions by id, each with the names of its programs."""
    rows = (
        await connection.execute(select(_sessions).where(*where).order_by(_sessions.c.session).limit(limit))
    ).all()
    if not rows:
        return []
    programs: dict[str, list[str]] = {row.session: [] for row in rows}
    query = select(_items.c.session, _items.c.name).where(
        _items.c.pool == rows[0].pool, _items.c.session.in_(programs), _items.c.kind == "program"
    )
    for item in await connection.execute(query.order_by(_items.c.name)):
        programs[item.session].append(item.name)
    return [
        SessionInfo(
            id=row.session,
            owner=row.owner,
            epoch=row.epoch,
            created_at=row.created_at,
            last_used_at=row.last_used_at,
            programs=tuple(programs[row.session]),
            moves=row.moves,
            principal=row.principal,
        )
        for row in rows
    ]
