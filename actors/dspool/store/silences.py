"""Silenced alerts, for all ingress processes and over restarts: one record of the pool."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from dspool.core.admission.silences import AlertSilence, Silences, changed
from dspool.store.schema import records, upsert
from dspool.store.writer import Transaction

RECORD: Final = "silences"


class SilencedAlerts:
    """The part of the session store that keeps them, as its record `RECORD`."""

    _clock: Callable[[], float]
    _write: Callable[[Transaction], Awaitable[Any]]

    async def silence_alert(self, pool: str, alert: str, silence: AlertSilence | None) -> Silences:
        """Keep that `alert` is silenced so, or not any more; returns all that are."""

        async def run(connection: AsyncConnection) -> Silences:
            query = select(records.c.value).where(records.c.pool == pool, records.c.key == RECORD)
            text = (await connection.execute(query)).scalar_one_or_none()
            before = {} if text is None else msgspec.json.decode(text, type=Silences)
            kept = changed(before, alert, silence, now=self._clock())
            row = {"pool": pool, "key": RECORD, "value": msgspec.json.encode(kept).decode()}
            await connection.execute(upsert(connection, records), row)
            return kept

        silences: Silences = await self._write(Transaction(pool, run))
        return silences


__all__ = ["RECORD", "SilencedAlerts"]
