"""The kept operations beside the metrics' event loop: batches in, pages out, all that touches the disk in threads."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from dspool.config import PoolConfig
from dspool.core.metrics.operation_records import (
    FoundOperations,
    OperationBatch,
    OperationQuery,
    decode_records,
)
from dspool.errors import PoolNotReady, QueueFull
from dspool.telemetry.operation_store import OperationStore

MAX_BATCHES: Final = 64
"""Batches that wait for the disk; more are counted and dropped."""
MAX_SEARCHES: Final = 32
"""Searches that wait for their turn; one runs at a time."""

log = logging.getLogger("dspool.metrics")


class OperationKeeper:
    """One event loop owns it. Losing records never shows anywhere but in `left_out`."""

    def __init__(self, store: OperationStore, pool: str, *, wall: Callable[[], float] = time.time) -> None:
        self._store, self._pool, self._wall = store, pool, wall
        self._waiting: deque[OperationBatch] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._searching = asyncio.Lock()
        self._searches = 0
        self._is_failing = False
        self.left_out = 0

    @classmethod
    def of(cls, config: PoolConfig, path: Path | None) -> OperationKeeper:
        bounds = config.operations
        store = OperationStore(
            path, max_rows=bounds.max_rows, max_bytes=bounds.max_bytes, max_age_s=bounds.max_age_s
        )
        return cls(store, config.name)

    def take(self, batch: OperationBatch) -> None:
        """Keep a batch soon; returns at once."""
        if batch.pool != self._pool:
            return
        self.left_out += batch.left_out
        if len(self._waiting) >= MAX_BATCHES:
            self.left_out += _number_of(batch.records)
            return
        self._waiting.append(batch)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def written(self) -> None:
        """Until all that was taken is kept, or counted as left out."""
        while self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing])

    async def find(self, query: OperationQuery) -> FoundOperations:
        """Raises: InvalidRequest. QueueFull: too many searches wait. PoolNotReady: it could not be searched now."""
        query.checked()
        if self._searches >= MAX_SEARCHES:
            raise QueueFull("too many searches of operations wait already", retry_after_s=1.0)
        self._searches += 1
        try:
            async with self._searching:
                found, cursor = await asyncio.to_thread(self._store.find, query)
                oldest_at = await asyncio.to_thread(self._store.oldest_at)
        except (OSError, sqlite3.Error) as failed:
            raise PoolNotReady(f"the kept operations cannot be read: {type(failed).__name__}") from failed
        finally:
            self._searches -= 1
        return FoundOperations(found, cursor, self._store.kept, oldest_at, self.left_out)

    async def close(self) -> None:
        await self.written()
        await asyncio.to_thread(self._store.close)

    async def _write(self) -> None:
        while self._waiting:
            batches = list(self._waiting)
            self._waiting.clear()
            lost = await asyncio.to_thread(self._write_now, batches)
            self.left_out += lost

    def _write_now(self, batches: list[OperationBatch]) -> int:
        """How many could not be kept."""
        lost = 0
        for batch in batches:
            try:
                self._store.write(decode_records(batch.records), self._wall())
            except msgspec.MsgspecError:
                # From another version of dspool.
                lost += _number_of(batch.records)
            except (OSError, sqlite3.Error) as failed:
                lost += _number_of(batch.records)
                if not self._is_failing:
                    log.warning("operations are not kept now: %s: %s", type(failed).__name__, failed)
                self._is_failing = True
            else:
                self._is_failing = False
        return lost


def operations_file(config: PoolConfig) -> Path:
    return config.state_dir / f"operations-{config.name}.db"


_items = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def _number_of(records: bytes) -> int:
    try:
        return len(_items(records))
    except msgspec.MsgspecError:
        return 0
