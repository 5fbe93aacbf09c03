"""How the session store writes: one writer, and many requests in one transaction.

`Batch` loads the rows of many requests at once, lets each decide, writes all results and commits. So all requests
share the cost of one commit (a sync to disk), and each is answered only after it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from dspool.core.admission.access import may_see_session
from dspool.core.admission.quotas import Amount, Quotas
from dspool.errors import InternalError, PayloadTooLarge, PoolError, QuotaExceeded, StoreFailed
from dspool.messages import Change, Lease
from dspool.store.claims import hold_pools, refuse_superseded_of
from dspool.store.disk import StoreDisk
from dspool.store.failures import is_failure, is_full, store_failed
from dspool.store.requests import (
    ALL_NAMES,
    Acquire,
    Commit,
    ItemSizes,
    Key,
    Outcome,
    SessionRow,
    StoredChange,
    StoreRequest,
    added_bytes,
    growth,
    item_size,
    owner_of,
)
from dspool.store.schema import (
    among,
    dead_workers,
    pools,
    session_items,
    sessions,
    transaction,
    upsert,
)
from dspool.store.usage import Usage

MAX_BATCH = 256
"""At most so many requests share a transaction: bounds how long one of them can hold the database."""


@dataclass(frozen=True)
class Transaction:
    """A write that takes a transaction of its own."""

    pool: str
    run: Callable[[AsyncConnection], Awaitable[Any]]
    adds: bool = False
    """It keeps something new, for which there must be room."""


_Batch = Sequence["StoreRequest | Transaction"]
_Requests = list[tuple[StoreRequest | Transaction, "asyncio.Future[Any]"]]


class Writer:
    """Carries out all writes of one store, one transaction at a time, in the order of their arrival.

    It needs no timer: what arrives while a transaction waits for the disk is the next batch.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        clock: Callable[[], float],
        quotas: Quotas,
        refused: Callable[[str], None],
        claims: Mapping[str, str],
        superseded: Callable[[StoreFailed], None],
        disk: StoreDisk,
    ) -> None:
        """`claims` has what the row of a pool must say for anything to be written, see `claims`; calls `superseded`
        when it says something else."""
        self._engine, self.quotas, self._refused = engine, quotas, refused
        self._clock, self._claims, self._superseded = clock, claims, superseded
        self._disk = disk
        self._queue: deque[tuple[StoreRequest | Transaction, asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def write(self, request: StoreRequest | Transaction) -> Any:
        """The request's answer, once it is on disk. A cancelled caller's request may still be carried out."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((request, future))
        if self._task is None:
            self._task = asyncio.create_task(self._write_all(), name="dspool-store-writer")
        return await future

    async def finish(self) -> None:
        """Returns when the queue is written."""
        if self._task is not None:
            await self._task

    async def _write_all(self) -> None:
        try:
            while self._queue:
                await self._transact(self._next_batch())
        finally:
            self._task = None
            while self._queue:  # only if this task was cancelled
                _answer(self._queue.popleft()[1], StoreFailed("the session store stopped"))

    def _next_batch(self) -> _Requests:
        """The oldest requests that can share a transaction: all about different sessions, or one `Transaction`."""
        batch = [self._queue.popleft()]
        if isinstance(batch[0][0], Transaction):
            return batch
        keys = {batch[0][0].key}
        while self._queue and len(batch) < MAX_BATCH:
            request = self._queue[0][0]
            if isinstance(request, Transaction) or request.key in keys:
                break
            keys.add(request.key)
            batch.append(self._queue.popleft())
        return batch

    async def _transact(self, batch: _Requests) -> None:
        replies: Sequence[Any]
        requests, added = [request for request, _ in batch], None
        try:
            replies = await self._carried_out(requests)
            added = added_bytes(requests)
        except PoolError as refused:
            replies = [refused] * len(batch)
            if isinstance(refused, StoreFailed) and refused.details.get("superseded"):
                self._superseded(refused)
        except Exception as failed:
            if is_failure(failed):
                replies = [store_failed(failed, self._disk.url) for _ in batch]
            else:
                said = f"the session store has a defect: {type(failed).__name__}"
                replies = [InternalError(said) for _ in batch]
                replies[0].__cause__ = failed
        except BaseException:
            for _, future in batch:
                _answer(future, StoreFailed("the session store stopped"))
            raise
        for (_, future), reply in zip(batch, replies, strict=True):
            if isinstance(reply, QuotaExceeded | PayloadTooLarge):
                self._refused(reply.details["limit"])
            _answer(future, reply)
        if added is not None:  # after the answers: it prepares for what comes
            await self._disk.keep_reserve(self._engine, added)

    async def _carried_out(self, requests: _Batch) -> Sequence[Any]:
        """Their answers. On a full disk those that add nothing are carried out within the reserve."""
        try:
            async with transaction(self._engine) as connection:
                return await self._replies(connection, requests, self._disk.refusal())
        except Exception as failed:
            if not is_full(failed):
                raise
        await self._disk.begin_log_anew(self._engine)
        no_room = self._disk.no_room()
        try:
            async with transaction(self._engine) as connection:
                return await self._replies(connection, requests, no_room)
        except Exception as failed:
            if not is_full(failed):
                raise
        async with transaction(self._engine.execution_options(read_only=True)) as connection:
            return await self._replies(connection, requests, no_room, writes=False)

    async def _replies(
        self, connection: AsyncConnection, batch: _Batch, no_room: PoolError | None, *, writes: bool = True
    ) -> Sequence[Any]:
        first = batch[0]
        if isinstance(first, Transaction):
            if no_room is not None and (first.adds or not writes):
                raise no_room
            await hold_pools(connection, [first.pool], self._claims)
            return [await first.run(connection)]
        requests = [request for request in batch if not isinstance(request, Transaction)]
        work = Batch(connection, self._clock(), self.quotas, self._claims, no_room)
        return await (work.run(requests) if writes else work.leases_held(requests))


@dataclass
class Batch:
    """Requests about different sessions, carried out in one transaction."""

    connection: AsyncConnection
    now: float
    quotas: Quotas
    claims: Mapping[str, str]
    no_room: PoolError | None = None
    """What is answered to whoever adds something."""
    _epochs: dict[str, int] = field(default_factory=dict)
    _advanced: set[str] = field(default_factory=set)

    def next(self, pool: str) -> int:
        self._epochs[pool] += 1
        self._advanced.add(pool)
        return self._epochs[pool]

    async def run(self, requests: Sequence[StoreRequest]) -> list[Any]:
        """One answer a request, in order; a `PoolError` for a refused one."""
        keys = [request.key for request in requests]
        assert len(set(keys)) == len(keys), "two requests on one session must not share a batch"
        self._epochs = await hold_pools(self.connection, {pool for pool, _ in keys}, self.claims)
        rows = await self._rows(keys)
        dead = await self._dead(requests)
        sizes = await self._sizes(requests)
        usage = Usage(self.connection, self.quotas)
        await usage.load(owner_of(request, rows.get(request.key)) for request in requests)
        outcomes = []
        for request in requests:
            is_dead = isinstance(request, Acquire) and (request.key[0], request.worker) in dead
            row = rows.get(request.key)
            try:
                outcome = request.decide(row, self, dead=is_dead, now=self.now)
                self._count(request, row, outcome, usage, sizes.get(request.key, {}))
            except PoolError as refused:
                outcome = Outcome(refused)
            outcomes.append(outcome)
        await self._write(keys, outcomes)
        await usage.save()
        await self._fill_leases(outcomes)
        return [outcome.reply for outcome in outcomes]

    async def leases_held(self, requests: Sequence[StoreRequest]) -> list[Any]:
        """One answer a request without writing: a lease that its worker has is given again, all else is refused."""
        keys = [request.key for request in requests]
        await refuse_superseded_of(self.connection, {pool for pool, _ in keys}, self.claims)
        rows = await self._rows(keys)
        outcomes = []
        for request in requests:
            row = rows.get(request.key)
            held = isinstance(request, Acquire) and row is not None and row.owner == request.worker
            if held and may_see_session(row.principal if row else None, request.principal):
                outcomes.append(Outcome(row=row, granted=True, previous=row.last_owner if row else None))
            else:
                outcomes.append(Outcome(self.no_room))
        await self._fill_leases(outcomes)
        return [outcome.reply for outcome in outcomes]

    async def _rows(self, keys: list[Key]) -> dict[Key, SessionRow]:
        query = select(sessions).where(among(_SESSION_KEY, keys))
        rows = await self.connection.execute(query)
        return {(row.pool, row.session): SessionRow(**row._mapping) for row in rows}

    async def _dead(self, requests: Sequence[StoreRequest]) -> set[Key]:
        workers = {(request.key[0], request.worker) for request in requests if isinstance(request, Acquire)}
        if not workers:
            return set()
        columns = (dead_workers.c.pool, dead_workers.c.worker)
        rows = await self.connection.execute(select(*columns).where(among(columns, workers)))
        return {(row.pool, row.worker) for row in rows}

    async def _sizes(self, requests: Sequence[StoreRequest]) -> dict[Key, ItemSizes]:
        """The sizes of the items that commits replace or delete."""
        commits = [request for request in requests if isinstance(request, Commit)]
        kinds = {
            (*request.key, change.kind)
            for request in commits
            for change in request.changes
            if change.name == ALL_NAMES
        }
        items = {
            (*request.key, change.kind, change.name)
            for request in commits
            for change in request.changes
            if change.name != ALL_NAMES
        }
        sizes: dict[Key, ItemSizes] = {request.key: {} for request in commits}
        # Two queries: SQLite would read the whole table for an OR of them.
        for columns, wanted in ((_ITEM_KEY[:3], kinds), (_ITEM_KEY, items)):
            if wanted:
                query = select(*_ITEM_KEY, session_items.c.size).where(among(columns, wanted))
                for item in await self.connection.execute(query):
                    sizes[item.pool, item.session][item.kind, item.name] = item.size
        return sizes

    def _count(
        self, request: StoreRequest, row: SessionRow | None, outcome: Outcome, usage: Usage, sizes: ItemSizes
    ) -> None:
        """Count what the outcome adds or removes. Raises `QuotaExceeded`, `PayloadTooLarge`."""
        pool, principal = owner_of(request, row)
        if self.no_room is not None and outcome.adds(row):
            raise self.no_room
        # An admin's own limits are not those of the session's owner.
        limits = request.limits if request.principal == principal else None
        if outcome.removed and row is not None:
            usage.add(pool, principal, Amount(-1, -row.size))
        elif outcome.row is not None and row is None:
            usage.add(pool, principal, Amount(1, outcome.row.size), limits)
        elif outcome.changes and outcome.row is not None:
            added = growth(outcome.changes, sizes)
            size = outcome.row.size + added
            self.quotas.check_session(outcome.row.size, size, limits)
            usage.add(pool, principal, Amount(stored=added), limits)
            outcome.row = replace(outcome.row, size=size)
            outcome.reply = size

    async def _write(self, keys: list[Key], outcomes: list[Outcome]) -> None:
        removed_keys = [key for key, outcome in zip(keys, outcomes, strict=True) if outcome.removed]
        if removed_keys:  # their items go with them, by the foreign key
            await self.connection.execute(delete(sessions).where(among(_SESSION_KEY, removed_keys)))
        rows = [vars(outcome.row) for outcome in outcomes if outcome.row]
        if rows:
            await self.connection.execute(upsert(self.connection, sessions), rows)
        await self._write_items(
            (key, change) for key, outcome in zip(keys, outcomes, strict=True) for change in outcome.changes
        )
        if self._advanced:
            counters = [{"p": pool, "e": self._epochs[pool]} for pool in sorted(self._advanced)]
            await self.connection.execute(_ADVANCE, counters)

    async def _write_items(self, changes: Iterable[tuple[Key, StoredChange]]) -> None:
        """Deletions first, then what remains set: within one commit a later change beats an earlier one."""
        kinds: dict[tuple[str, str, str], None] = {}
        items: dict[tuple[str, str, str, str], str | None] = {}
        for (pool, session), change in changes:
            if change.name == ALL_NAMES:
                kinds[pool, session, change.kind] = None
                items = {
                    key: value for key, value in items.items() if key[:3] != (pool, session, change.kind)
                }
            else:
                items[pool, session, change.kind, change.name] = change.payload
        kind_keys = [dict(zip("psk", kind, strict=True)) for kind in kinds]
        if kind_keys:
            await self.connection.execute(_DELETE_KIND, kind_keys)
        item_keys = [dict(zip("pskn", key, strict=True)) for key, payload in items.items() if payload is None]
        if item_keys:
            await self.connection.execute(_DELETE_ITEM, item_keys)
        names = ("pool", "session", "kind", "name", "payload", "size")
        rows = [
            dict(zip(names, (*key, value, item_size(value)), strict=True))
            for key, value in items.items()
            if value is not None
        ]
        if rows:
            await self.connection.execute(upsert(self.connection, session_items), rows)

    async def _fill_leases(self, outcomes: list[Outcome]) -> None:
        grants = {
            (row.pool, row.session): outcome
            for outcome in outcomes
            if outcome.granted and (row := outcome.row)
        }
        if not grants:
            return
        items: dict[Key, list[Change]] = {key: [] for key in grants}
        query = (
            select(session_items)
            .where(among(_ITEM_KEY[:2], grants))
            .order_by(session_items.c.kind, session_items.c.name)
        )
        for item in await self.connection.execute(query):
            change = Change(item.kind, item.name, msgspec.json.decode(item.payload))
            items[item.pool, item.session].append(change)
        for key, outcome in grants.items():
            row = outcome.row
            assert row is not None
            assert row.owner is not None
            outcome.reply = Lease(
                row.session,
                granted=True,
                owner=row.owner,
                epoch=row.epoch,
                items=tuple(items[key]),
                principal=row.principal,
                created=outcome.previous is None,
                previous=outcome.previous,
                size=row.size,
            )


def _answer(future: asyncio.Future[Any], reply: Any) -> None:
    if future.done():  # the caller was cancelled
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
    else:
        future.set_result(reply)


_SESSION_KEY = (sessions.c.pool, sessions.c.session)
_ITEM_KEY = (session_items.c.pool, session_items.c.session, session_items.c.kind, session_items.c.name)
_ADVANCE = update(pools).where(pools.c.pool == bindparam("p")).values(epoch=bindparam("e"))
_DELETE_KIND = delete(session_items).where(
    session_items.c.pool == bindparam("p"),
    session_items.c.session == bindparam("s"),
    session_items.c.kind == bindparam("k"),
)
_DELETE_ITEM = _DELETE_KIND.where(session_items.c.name == bindparam("n"))
