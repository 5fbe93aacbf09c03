"""Logins to the dashboard that were ended before their time, for all ingress processes and over restarts.

A login is a cookie that proves itself, so only its end needs to be kept, until it would have ended anyway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from dspool.store.schema import records, upsert
from dspool.store.writer import Transaction

RECORD: Final = "ended_logins"
KEPT_EACH: Final = 64
"""Of one token. Who holds it can begin new logins anyway, so forgetting its oldest gives nobody anything."""

Ended = dict[str, dict[str, float]]
"""By token, each login and until when it counts."""


def together(before: Ended, more: Ended, *, now: float) -> Ended:
    """Both, without those that are over; of each token the `KEPT_EACH` that were ended last."""
    found = {}
    for token in before.keys() | more.keys():
        # In the order in which they were ended: the newest must not make room, however soon it would have been over.
        logins = {**before.get(token, {}), **more.get(token, {})}
        left = [(login, until) for login, until in logins.items() if until > now]
        if left:
            found[token] = dict(left[-KEPT_EACH:])
    return found


class EndedLogins:
    """The part of the session store that keeps them, as its record `RECORD`."""

    _clock: Callable[[], float]
    _write: Callable[[Transaction], Awaitable[Any]]

    async def end_login(self, pool: str, token: str, login: str, until: float) -> Ended:
        """Keep that `login`, made with `token`, has ended; returns all."""

        async def run(connection: AsyncConnection) -> Ended:
            ended = await _read(connection, pool)
            left = together(ended, {token: {login: until}}, now=self._clock())
            value = msgspec.json.encode(left).decode()
            await connection.execute(
                upsert(connection, records), {"pool": pool, "key": RECORD, "value": value}
            )
            return left

        ended: Ended = await self._write(Transaction(pool, run))
        return ended


async def _read(connection: AsyncConnection, pool: str) -> Ended:
    query = select(records.c.value).where(records.c.pool == pool, records.c.key == RECORD)
    text = (await connection.execute(query)).scalar_one_or_none()
    return {} if text is None else msgspec.json.decode(text, type=Ended)


__all__ = ["KEPT_EACH", "RECORD", "Ended", "EndedLogins", "together"]
