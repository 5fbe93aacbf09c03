"""Answers kept under a caller's idempotency key: the same request gets the same answer, and its work happens once.

A caller claims a key before the work begins and settles it with the answer. Each is one write in the store, so it does
not matter which process asks, or dies in between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from dspool.core.admission.quotas import ROW_BYTES, Amount, Quotas
from dspool.messages import StorageLimits
from dspool.messages.versioned_pickle import Message
from dspool.store.schema import idempotency, upsert
from dspool.store.usage import ANSWER_SIZE, Usage
from dspool.store.writer import Transaction

NOBODY = ""
"""Stands for the principal of callers without one. No principal has this name."""

_row = idempotency.c


class KeptAnswer(Message, Struct, frozen=True):
    """An HTTP answer as it went out."""

    status: int
    content_type: str
    headers: list[tuple[str, str]]
    body: bytes


class Claim(Message, Struct, frozen=True):
    """The outcome of a claim.

    `new`: the key is the caller's, who does the work and then settles or drops it. `done`: the work was done before,
    and `answer` is its answer. `running`: another caller does it now. `lost`: another caller began and never settled;
    nobody knows whether the work was done. `other`: the key was used for another request.
    """

    outcome: Literal["new", "done", "running", "lost", "other"]
    answer: KeptAnswer | None = None


class IdempotencyKeys:
    """The part of the session store that keeps answers. Each pool and principal has keys of its own."""

    _clock: Callable[[], float]
    _quotas: Quotas
    _write: Callable[[Transaction], Awaitable[Any]]

    async def claim_key(
        self,
        pool: str,
        key: str,
        *,
        principal: str | None,
        fingerprint: str,
        holder: str,
        patience_s: float,
        keep_s: float,
        limits: StorageLimits | None = None,
    ) -> Claim:
        """Claim `key` for `holder`, unless it is taken.

        Args:
            fingerprint: of the request; the same for the same request only.
            holder: unique; only it may settle or drop the claim.
            patience_s: after so long an unsettled claim counts as lost.
            keep_s: after so long the store forgets the key.

        Raises:
            QuotaExceeded: the principal, or the pool, has too many answers kept for another one.
        """

        async def run(connection: AsyncConnection) -> Claim:
            now = self._clock()
            usage = Usage(connection, self._quotas)
            await usage.load([(pool, principal)])
            await _forget(connection, usage, _row.pool == pool, _row.expires_at <= now)
            claim = await find(connection, usage, now)
            await usage.save()
            return claim

        async def find(connection: AsyncConnection, usage: Usage, now: float) -> Claim:
            where = (_row.pool == pool, _row.principal == (principal or NOBODY), _row.key == key)
            row = (await connection.execute(select(idempotency).where(*where))).first()
            if row is None:
                usage.add(pool, principal, Amount(answers=ROW_BYTES + len(key)), limits)
                values = {
                    "pool": pool,
                    "principal": principal or NOBODY,
                    "key": key,
                    "fingerprint": fingerprint,
                    "holder": holder,
                    "lapses_at": now + patience_s,
                    "expires_at": now + keep_s,
                    "answer": None,
                }
                await connection.execute(upsert(connection, idempotency), values)
                return Claim("new")
            if row.fingerprint != fingerprint:
                return Claim("other")
            if row.answer is not None:
                return Claim("done", _unpack(row.answer))
            return Claim("running" if row.lapses_at > now else "lost")

        claim: Claim = await self._write(Transaction(pool, run, adds=True))
        return claim

    async def settle_key(
        self, pool: str, key: str, *, principal: str | None, holder: str, answer: KeptAnswer
    ) -> None:
        """Keep `answer` under the key that `holder` claimed; nothing happens if that claim is gone.

        What was done has an answer to keep, so this one counts without being refused: the next claim may be.
        """
        packed = _pack(answer)

        async def run(connection: AsyncConnection) -> None:
            settled = await connection.execute(
                idempotency.update().where(*_claim_of(pool, key, principal, holder)).values(answer=packed)
            )
            if settled.rowcount:
                usage = Usage(connection, self._quotas)
                await usage.load([(pool, principal)])
                usage.add(pool, principal, Amount(answers=len(packed)), check=False)
                await usage.save()

        await self._write(Transaction(pool, run))

    async def drop_key(self, pool: str, key: str, *, principal: str | None, holder: str) -> None:
        """Give up the claim of `holder`: no work was done, and the key may be claimed again."""

        async def run(connection: AsyncConnection) -> None:
            usage = Usage(connection, self._quotas)
            await _forget(connection, usage, *_claim_of(pool, key, principal, holder))
            await usage.save()

        await self._write(Transaction(pool, run))


async def _forget(connection: AsyncConnection, usage: Usage, *where: Any) -> None:
    gone = delete(idempotency).where(*where).returning(_row.pool, _row.principal, ANSWER_SIZE.label("size"))
    rows = (await connection.execute(gone)).all()
    await usage.load((row.pool, row.principal or None) for row in rows)
    for row in rows:
        usage.add(row.pool, row.principal or None, Amount(answers=-row.size))


def _claim_of(pool: str, key: str, principal: str | None, holder: str) -> tuple[Any, ...]:
    return (
        _row.pool == pool,
        _row.principal == (principal or NOBODY),
        _row.key == key,
        _row.holder == holder,
        _row.answer.is_(None),
    )


def _pack(answer: KeptAnswer) -> bytes:
    return msgspec.msgpack.encode(answer)


def _unpack(body: bytes) -> KeptAnswer:
    return msgspec.msgpack.decode(body, type=KeptAnswer)


__all__ = ["Claim", "IdempotencyKeys", "KeptAnswer"]
