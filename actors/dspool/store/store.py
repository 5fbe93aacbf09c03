"""The session store: who owns which session, and what of a session survives its worker.

What a method has acknowledged is on disk: it survives SIGKILL of any process and, on SQLite with its `FULL`
setting and on PostgreSQL by default, loss of power.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from dspool.core.admission.rates import Allowance, Allowances, RateLimits
from dspool.errors import Conflict, InvalidRequest, StoreFailed, UnknownProgram
from dspool.messages import JSON, Change, Deployment, Lease, SessionInfo
from dspool.store import schema as store_schema
from dspool.store.idempotency import IdempotencyKeys
from dspool.store.requests import (
    Acquire,
    Commit,
    EndSessionRow,
    StoredChange,
    StoreRequest,
    check_names,
    encode,
    unknown_session,
    visible,
)
from dspool.store.schema import create_engine, dead_workers, migrate, parse_url
from dspool.store.writer import FAILURES, Alone, Writer, store_failed, upsert

MAX_PAGE = 1000
REMEMBER_DEAD_S = 86_400.0
"""A request of a dead worker can be on its way for seconds; a day is far more than that, and bounds the table."""

_sessions, _items = store_schema.sessions, store_schema.session_items
_records, _deployments = store_schema.records, store_schema.deployments
_current = store_schema.current_versions

_Sessions = list[SessionInfo]  # inside the class `list` is a method
_Versions = list[Deployment]
_Expired = list[tuple[str, str | None]]


class SessionStore(IdempotencyKeys):
    """Ownership and durable state of the sessions of one or more pools, and the pools' own records.

    All methods raise `StoreFailed` when the database cannot be reached or refuses; after that a write may or may
    not have happened. They raise `InvalidRequest` for values that are not JSON and for bad ids. Writes of one
    store happen in the order of the calls, one transaction at a time; reads do not wait for them.

    A session created with a principal exists only for that principal: others get `UnknownSession`, in the same
    words as for a session that never was. `principal=None` on a call is the pool's own trusted code and sees all;
    a session created with `principal=None` belongs to nobody and is visible to everyone.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        """`url` is `sqlite:////path/file.db` or `postgresql://...`; anything else is a `ConfigError`."""
        self._url = parse_url(url)
        self._clock = clock
        self._allowances: dict[str, Allowances] = {}
        self._engine: AsyncEngine | None = None
        self._writer: Writer | None = None

    async def open(self) -> None:
        """Connect; make the file (mode 0600, its directory 0700 if new) and the tables, or migrate old ones."""
        if self._engine is not None:
            return
        engine = create_engine(self._url)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(migrate)
        except FAILURES as failed:
            await engine.dispose()
            raise store_failed(failed) from failed
        except BaseException:
            await engine.dispose()
            raise
        self._engine, self._writer = engine, Writer(engine, self._clock)

    async def close(self) -> None:
        """Finish the writes that were accepted, then disconnect. Later calls raise `StoreFailed`."""
        engine, writer = self._engine, self._writer
        self._engine = self._writer = None
        if writer is not None:
            await writer.finish()
        if engine is not None:
            await engine.dispose()

    # --- leases ---------------------------------------------------------------------------------------------

    async def acquire(
        self, pool: str, session: str, worker: str, *, create: bool, principal: str | None = None
    ) -> Lease:
        """Make `worker` the owner, unless another worker is.

        Granted: `epoch` is the one to commit under, higher than any the session (or an ended one of the same id)
        had before, unless `worker` owned it already; `items` is its durable state. Not granted: `owner` is the
        living worker to go to, and there are no items.

        Raises:
            UnknownSession: there is none (for this principal) and `create` is false, or the id is somebody else's.
            StaleLease: `worker` itself was declared dead.
        """
        check_names(pool=pool, session=session, worker=worker, principal=principal)
        lease: Lease = await self._write(Acquire((pool, session), worker, create, principal))
        return lease

    async def commit(
        self, pool: str, session: str, worker: str, epoch: int, changes: Sequence[Change]
    ) -> None:
        """Make `changes` durable, all or none, in their order. Many concurrent commits share one transaction.

        Raises:
            StaleLease: `worker` does not own the session at `epoch`; nothing was changed.
        """
        stored = [StoredChange.of(change) for change in changes]
        await self._write(Commit((pool, session), worker, epoch, stored))

    async def release(self, pool: str, worker: str, sessions: Sequence[str]) -> None:
        """Give back the leases that `worker` holds on the `sessions`; others are left alone."""
        await self._free(pool, _sessions.c.owner == worker, _sessions.c.session.in_(sessions))

    async def worker_dead(self, pool: str, worker: str) -> int:
        """Free all leases of `worker`, and give it no new one; returns how many it held."""

        async def declare(connection: AsyncConnection) -> None:
            await connection.execute(
                upsert(connection, dead_workers), {"pool": pool, "worker": worker, "died_at": self._clock()}
            )

        return await self._free(pool, _sessions.c.owner == worker, also=declare)

    async def workers_alive(self, pool: str, workers: Sequence[str]) -> int:
        """Free the leases of every worker not in `workers`; returns how many were freed."""

        async def revive(connection: AsyncConnection) -> None:
            mine = dead_workers.c.pool == pool
            await connection.execute(delete(dead_workers).where(mine, dead_workers.c.worker.in_(workers)))

        return await self._free(
            pool, _sessions.c.owner.is_not(None), _sessions.c.owner.not_in(workers), also=revive
        )

    async def touch(self, pool: str, worker: str, sessions: Sequence[str]) -> None:
        """Note that the `sessions` were used now; those that `worker` does not own are left alone."""

        async def run(connection: AsyncConnection) -> None:
            owned = (_sessions.c.pool == pool, _sessions.c.owner == worker, _sessions.c.session.in_(sessions))
            await connection.execute(update(_sessions).where(*owned).values(last_used_at=self._clock()))

        await self._write(Alone(pool, run))

    # --- limits ---------------------------------------------------------------------------------------------

    async def take_allowance(self, pool: str, token: str, limits: RateLimits, wanted: int) -> Allowance:
        """Up to `wanted` operations of a token, counted for all who ask here. Not kept: a restart begins anew."""
        counted = self._allowances.setdefault(pool, Allowances())
        return counted.take(token, limits, wanted, now=time.monotonic(), wall=self._clock())

    # --- lives of sessions ----------------------------------------------------------------------------------

    async def create(self, pool: str, session: str, *, principal: str | None = None) -> SessionInfo:
        """A new, empty session that no worker holds yet.

        Raises:
            Conflict: there is one of that id, whoever it belongs to.
        """
        check_names(pool=pool, session=session, principal=principal)
        now = self._clock()
        row = {
            "pool": pool,
            "session": session,
            "principal": principal,
            "owner": None,
            "last_owner": None,
            "epoch": 0,
            "moves": 0,
            "created_at": now,
            "last_used_at": now,
        }

        async def run(connection: AsyncConnection) -> None:
            same = (_sessions.c.pool == pool, _sessions.c.session == session)
            if (await connection.execute(select(_sessions.c.session).where(*same))).first() is not None:
                raise Conflict(f"there is a session {session!r} already in pool {pool!r}", session=session)
            await connection.execute(upsert(connection, _sessions), row)

        await self._write(Alone(pool, run))
        return SessionInfo(session, None, 0, now, now, principal=principal)

    async def end(self, pool: str, session: str, *, principal: str | None = None) -> bool:
        """Remove the session and all it holds, owned or not; false if there is none (for this principal)."""
        ended: bool = await self._write(EndSessionRow((pool, session), principal))
        return ended

    async def expire(self, pool: str, idle_s: float) -> _Expired:
        """Remove the sessions not used for more than `idle_s` seconds; returns each with the worker that held it."""

        async def run(connection: AsyncConnection) -> _Expired:
            now = self._clock()
            old = delete(_sessions).where(_sessions.c.pool == pool, _sessions.c.last_used_at < now - idle_s)
            gone = await connection.execute(old.returning(_sessions.c.session, _sessions.c.owner))
            forgotten = (dead_workers.c.pool == pool, dead_workers.c.died_at < now - REMEMBER_DEAD_S)
            await connection.execute(delete(dead_workers).where(*forgotten))
            return sorted((row.session, row.owner) for row in gone)

        expired: _Expired = await self._write(Alone(pool, run))
        return expired

    async def get(self, pool: str, session: str, *, principal: str | None = None) -> SessionInfo:
        """What is known of one session. Raises `UnknownSession`."""
        check_names(pool=pool, session=session)
        async with self._read() as connection:
            found = await _infos(connection, _sessions.c.pool == pool, _sessions.c.session == session)
        if not found or not visible(found[0].principal, principal):
            raise unknown_session(pool, session)
        return found[0]

    # --- the pool's own records -----------------------------------------------------------------------------

    async def put_record(self, pool: str, key: str, value: JSON) -> None:
        """Keep `value` under `key`, in place of what was there."""
        check_names(pool=pool, key=key)
        row = {"pool": pool, "key": key, "value": encode(value, f"record {key!r}")}

        async def run(connection: AsyncConnection) -> None:
            await connection.execute(upsert(connection, _records), row)

        await self._write(Alone(pool, run))

    async def get_record(self, pool: str, key: str) -> JSON | None:
        """The value last put under `key`, or None."""
        async with self._read() as connection:
            query = select(_records.c.value).where(_records.c.pool == pool, _records.c.key == key)
            found = (await connection.execute(query)).scalar_one_or_none()
        return None if found is None else msgspec.json.decode(found)

    async def add_deployment(self, pool: str, deployment: Deployment) -> Deployment:
        """Keep a new version of a pool program; returns it with its version (1, 2, ...), whatever it came with.

        A program's first version is current at once; later ones become current by `set_current`.
        """
        program = deployment.program
        check_names(pool=pool, program=program)
        body = encode(msgspec.structs.asdict(deployment), f"deployment of {program!r}")

        async def run(connection: AsyncConnection) -> int:
            mine = (_deployments.c.pool == pool, _deployments.c.program == program)
            last = (await connection.execute(select(func.max(_deployments.c.version)).where(*mine))).scalar()
            version = int(last or 0) + 1
            row = {"pool": pool, "program": program, "version": version}
            await connection.execute(upsert(connection, _deployments), row | {"body": body})
            if last is None:
                await connection.execute(upsert(connection, _current), row)
            return version

        return msgspec.structs.replace(deployment, version=await self._write(Alone(pool, run)))

    async def deployments(self, pool: str) -> _Versions:
        """All versions of all pool programs, by program and version."""
        query = select(_deployments).where(_deployments.c.pool == pool)
        async with self._read() as connection:
            found = await connection.execute(query.order_by(_deployments.c.program, _deployments.c.version))
            return [
                msgspec.structs.replace(msgspec.json.decode(row.body, type=Deployment), version=row.version)
                for row in found
            ]

    async def set_current(self, pool: str, program: str, version: int) -> None:
        """Make `version` the current one of `program`. Raises `UnknownProgram` if it was never deployed."""
        row = {"pool": pool, "program": program, "version": version}

        async def run(connection: AsyncConnection) -> None:
            same = [_deployments.c[name] == value for name, value in row.items()]
            if (await connection.execute(select(_deployments.c.version).where(*same))).first() is None:
                raise UnknownProgram(f"no version {version} of {program!r} in pool {pool!r}", program=program)
            await connection.execute(upsert(connection, _current), row)

        await self._write(Alone(pool, run))

    async def current_versions(self, pool: str) -> dict[str, int]:
        """The current version of each pool program."""
        async with self._read() as connection:
            found = await connection.execute(select(_current).where(_current.c.pool == pool))
            return {row.program: row.version for row in found}

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

        `containing` keeps those with that text in their id, owner or principal.

        The cursor is None on the last page. A session that exists throughout is on exactly one page.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit must be 1..{MAX_PAGE}, got {limit}", limit=limit)
        where = [_sessions.c.pool == pool]
        if after is not None:
            where.append(_sessions.c.session > after)
        if owner is not None:
            where.append(_sessions.c.owner == owner)
        if principal is not None:  # as `visible` has it
            where.append(_sessions.c.principal.is_(None) | (_sessions.c.principal == principal))
        if containing:
            columns = (_sessions.c.session, _sessions.c.owner, _sessions.c.principal)
            where.append(or_(*(column.contains(containing, autoescape=True) for column in columns)))
        async with self._read() as connection:
            found = await _infos(connection, *where, limit=limit + 1)
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    async def count(self, pool: str) -> int:
        """How many sessions there are."""
        async with self._read() as connection:
            found = await connection.execute(select(func.count()).where(_sessions.c.pool == pool))
            return int(found.scalar_one())

    # --- how it reads and writes ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        """One snapshot; does not wait for writers."""
        if self._engine is None:
            raise StoreFailed("the session store is closed")
        try:
            async with self._engine.execution_options(reading=True).begin() as connection:
                yield connection
        except FAILURES as failed:
            raise store_failed(failed) from failed

    async def _free(
        self, pool: str, *where: Any, also: Callable[[AsyncConnection], Awaitable[None]] | None = None
    ) -> int:
        async def run(connection: AsyncConnection) -> int:
            if also is not None:
                await also(connection)
            freed = await connection.execute(
                update(_sessions).where(_sessions.c.pool == pool, *where).values(owner=None)
            )
            return int(freed.rowcount)

        count: int = await self._write(Alone(pool, run))
        return count

    async def _write(self, request: StoreRequest | Alone) -> Any:
        if self._writer is None:
            raise StoreFailed("the session store is closed")
        return await self._writer.write(request)


async def _infos(connection: AsyncConnection, *where: Any, limit: int = 1) -> list[SessionInfo]:
    """Sessions by id, each with the names of its programs."""
    found = (
        await connection.execute(select(_sessions).where(*where).order_by(_sessions.c.session).limit(limit))
    ).all()
    if not found:
        return []
    programs: dict[str, list[str]] = {row.session: [] for row in found}
    query = select(_items.c.session, _items.c.name).where(
        _items.c.pool == found[0].pool, _items.c.session.in_(programs), _items.c.kind == "program"
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
        for row in found
    ]
