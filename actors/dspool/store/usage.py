"""What each principal keeps in the store, counted in the transaction that changes it: no race passes a limit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, LargeBinary, cast, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from dspool.core.admission.quotas import ROW_BYTES, Amount, Quotas
from dspool.messages import StorageLimits
from dspool.store.schema import among, idempotency, pools, session_items, sessions, upsert
from dspool.store.schema import usage as table

ALL = ""
"""The row of a pool's sum, which also counts those who have no principal. No principal has this name."""

_KEY = (table.c.pool, table.c.principal)
ANSWER_SIZE = ROW_BYTES + func.length(idempotency.c.key) + func.coalesce(func.length(idempotency.c.answer), 0)
"""Bytes of a claimed key with its answer."""


class Usage:
    """The amounts that one transaction touches: `load` them, `add`, then `save`."""

    def __init__(self, connection: AsyncConnection, quotas: Quotas) -> None:
        self._connection, self._quotas = connection, quotas
        self._amounts: dict[tuple[str, str], Amount] = {}
        self._changed: set[tuple[str, str]] = set()

    async def load(self, owners: Iterable[tuple[str, str | None]]) -> None:
        """Read what these (pool, principal) have, and what their pools have in all."""
        keys = {key for pool, principal in owners for key in ((pool, principal or ALL), (pool, ALL))}
        missing = keys - self._amounts.keys()
        if not missing:
            return
        rows = await self._connection.execute(select(table).where(among(_KEY, missing)))
        self._amounts |= dict.fromkeys(missing, Amount())
        for row in rows:
            self._amounts[row.pool, row.principal] = Amount(row.sessions, row.stored, row.answers)

    def add(
        self,
        pool: str,
        principal: str | None,
        change: Amount,
        own: StorageLimits | None = None,
        *,
        check: bool = True,
    ) -> None:
        """Count `change`.

        Raises:
            QuotaExceeded: it is more than there may be, and is not counted. Never without `check`.
        """
        keys = {(pool, principal or ALL), (pool, ALL)}
        if check:
            now, total = self._amounts[pool, principal or ALL], self._amounts[pool, ALL]
            self._quotas.check(change, now, total, own=own, named=principal is not None)
        for key in keys:
            self._amounts[key] = self._amounts[key].plus(change)
        self._changed |= keys

    async def save(self) -> None:
        """Write what changed."""
        values = [
            {"pool": pool, "principal": principal, **self._amounts[pool, principal]._asdict()}
            for pool, principal in sorted(self._changed)
        ]
        if kept := [row for row in values if any(self._amounts[row["pool"], row["principal"]])]:
            await self._connection.execute(upsert(self._connection, table), kept)
        if gone := [key for key in sorted(self._changed) if not any(self._amounts[key])]:
            await self._connection.execute(delete(table).where(among(_KEY, gone)))
        self._changed.clear()


def count_anew(connection: Connection) -> None:
    """Fill missing sizes, and all amounts, from what is there: a dspool that does not count may have written it."""
    # No other store may write meanwhile; SQLite has one writer anyway.
    connection.execute(select(pools.c.pool).order_by(pools.c.pool).with_for_update()).all()
    payload, by_name = session_items.c.payload, connection.dialect.name
    text = func.octet_length(payload) if by_name == "postgresql" else func.length(cast(payload, LargeBinary))

    def times(character: str) -> Any:
        return func.length(payload) - func.length(func.replace(payload, character, ""))

    size = ROW_BYTES + text + 32 * (times(",") + times("[")) + 200 * times("{")
    connection.execute(update(session_items).where(session_items.c.size == 0).values(size=size))
    of_items = (
        select(func.coalesce(func.sum(session_items.c.size), 0))
        .where(session_items.c.pool == sessions.c.pool, session_items.c.session == sessions.c.session)
        .scalar_subquery()
    )
    connection.execute(update(sessions).where(sessions.c.size == 0).values(size=ROW_BYTES + of_items))
    amounts: dict[tuple[str, str], Amount] = {}

    def count(pool: str, principal: str | None, amount: Amount) -> None:
        for key in {(pool, principal or ALL), (pool, ALL)}:
            amounts[key] = amounts.get(key, Amount()).plus(amount)

    kept = select(sessions.c.pool, sessions.c.principal, func.count(), func.sum(sessions.c.size))
    for pool, principal, number, stored in connection.execute(
        kept.group_by(sessions.c.pool, sessions.c.principal)
    ):
        count(pool, principal, Amount(sessions=number, stored=int(stored)))
    answers = select(idempotency.c.pool, idempotency.c.principal, func.sum(ANSWER_SIZE))
    for pool, principal, number in connection.execute(
        answers.group_by(idempotency.c.pool, idempotency.c.principal)
    ):
        count(pool, principal, Amount(answers=int(number)))
    connection.execute(delete(table))
    if amounts:
        rows = [
            {"pool": pool, "principal": who, **amount._asdict()} for (pool, who), amount in amounts.items()
        ]
        connection.execute(insert(table), rows)
