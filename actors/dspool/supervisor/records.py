"""What the next supervisor of the pool needs to know, written to the store without anybody waiting for it."""

from __future__ import annotations

import asyncio
import logging

from dspool.messages import JSON
from dspool.supervisor.runtime import PoolStore, Sleep

log = logging.getLogger("dspool.supervisor")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


class Records:
    """The last value of each key wins: a value that was replaced before it was written never is."""

    def __init__(self, pool: str, store: PoolStore, sleep: Sleep) -> None:
        self._pool = pool
        self._store = store
        self._sleep = sleep
        self._waiting: dict[str, JSON] = {}
        self._some = asyncio.Event()
        self._writing = asyncio.Lock()

    def put(self, key: str, value: JSON) -> None:
        self._waiting[key] = value
        self._some.set()

    async def run(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            await self._some.wait()
            if await self.flush():
                pause = FIRST_PAUSE_S
            else:
                await self._sleep(pause)
                pause = min(LONGEST_PAUSE_S, pause * 2)

    async def flush(self) -> bool:
        """Write what waits now. False if the store refused; it is kept for the next time."""
        async with self._writing:  # two writers could write an old value after a new one
            self._some.clear()
            waiting, self._waiting = self._waiting, {}
            while waiting:
                key = next(iter(waiting))
                try:
                    await self._store.put_record(self._pool, key, waiting[key])
                except Exception as failed:
                    log.warning("cannot write record %s of pool %s yet: %s", key, self._pool, failed)
                    self._waiting = {**waiting, **self._waiting}
                    self._some.set()
                    return False
                del waiting[key]
        return True
