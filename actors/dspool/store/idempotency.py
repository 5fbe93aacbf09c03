"""Answers kept under a caller's idempotency key: the same request gets the same answer, and its work is done once.

A key is claimed before the work begins and settled with the answer. Both are one write in the store, so it does not
matter which process asks, nor which one dies in between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from dspool.store.schema import idempotency
from dspool.store.writer import Alone, upsert

NOBODY = ""
"""The principal of callers without one. No principal is called so."""

_row = idempotency.c


class KeptAnswer(Struct, frozen=True):
    """An answer as it went out."""

    status: int
    content_type: str
    headers: list[tuple[str, str]]
    body: bytes


class Claim(Struct, frozen=True):
    """What became of a claim.

    `new`: the key is the caller's, who does the work and then settles or drops it. `done`: the work was done, and
    `answer` is its answer. `running`: another one does it now. `lost`: another one began and never settled; whether the
    work was done nobody knows. `other`: the key was used for another request.
    """

    outcome: Literal["new", "done", "running", "lost", "other"]
    answer: KeptAnswer | None = None


class IdempotencyKeys:
    """The part of the session store that keeps answers. Keys are apart by pool and principal."""

    _clock: Callable[[], float]
    _write: Callable[[Alone], Awaitable[Any]]

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
    ) -> Claim:
        """Claim `key` for `holder`, unless it is taken.

        Args:
            fingerprint: of the request; the same for the same request only.
            holder: unique; says whose claim it is when it is settled or dropped.
            patience_s: after so long a claim that was not settled counts as lost.
            keep_s: after so long the key is forgotten.
        """

        async def run(connection: AsyncConnection) -> Claim:
            now = self._clock()
            await connection.execute(delete(idempotency).where(_row.pool == pool, _row.expires_at <= now))
            mine = (_row.pool == pool, _row.principal == (principal or NOBODY), _row.key == key)
            found = (await connection.execute(select(idempotency).where(*mine))).first()
            if found is None:
                row = {
                    "pool": pool,
                    "principal": principal or NOBODY,
                    "key": key,
                    "fingerprint": fingerprint,
                    "holder": holder,
                    "lapses_at": now + patience_s,
                    "expires_at": now + keep_s,
                    "answer": None,
                }
                await connection.execute(upsert(connection, idempotency), row)
                return Claim("new")
            if found.fingerprint != fingerprint:
                return Claim("other")
            if found.answer is not None:
                return Claim("done", _unpack(found.answer))
            return Claim("running" if found.lapses_at > now else "lost")

        claim: Claim = await self._write(Alone(pool, run))
        return claim

    async def settle_key(
        self, pool: str, key: str, *, principal: str | None, holder: str, answer: KeptAnswer
    ) -> None:
        """Keep `answer` under the key that `holder` claimed; nothing happens if the claim is not there any more."""

        async def run(connection: AsyncConnection) -> None:
            await connection.execute(
                idempotency.update()
                .where(*_claimed(pool, key, principal, holder))
                .values(answer=_pack(answer))
            )

        await self._write(Alone(pool, run))

    async def drop_key(self, pool: str, key: str, *, principal: str | None, holder: str) -> None:
        """Give the claim of `holder` up: no work was done, and the same key may be tried again."""

        async def run(connection: AsyncConnection) -> None:
            await connection.execute(delete(idempotency).where(*_claimed(pool, key, principal, holder)))

        await self._write(Alone(pool, run))


def _claimed(pool: str, key: str, principal: str | None, holder: str) -> tuple[Any, ...]:
    return (
        _row.pool == pool,
        _row.principal == (principal or NOBODY),
        _row.key == key,
        _row.holder == holder,
        _row.answer.is_(None),
    )


def _pack(answer: KeptAnswer) -> bytes:
    return msgspec.msgpack.encode(answer)


def _unpack(packed: bytes) -> KeptAnswer:
    return msgspec.msgpack.decode(packed, type=KeptAnswer)


__all__ = ["Claim", "IdempotencyKeys", "KeptAnswer"]
