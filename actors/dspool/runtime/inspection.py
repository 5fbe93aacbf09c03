"""Views of a pool: the figures of its metrics, and what single workers do now."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Protocol, Unpack

import msgspec

from dspool.client.client import Client
from dspool.core.metrics.measures import ErrorList, HistoryView, LiveUpdate, MetricsSnapshot, Table
from dspool.core.metrics.operation_records import (
    FoundOperations,
    OperationFilters,
    OperationPage,
    OperationQuery,
)
from dspool.errors import InvalidRequest, NotAllowed, UnknownName, WorkerLost
from dspool.telemetry.event_log import EventPage
from dspool.telemetry.log_files import MAX_LINES, LogPage, LogQuery, LogTail, merged
from dspool.telemetry.operation_names import operation_page, query_of
from dspool.telemetry.snapshot import Snapshot

WORKER_S = 2.0
"""How long to wait for one worker: one that hangs must not keep a page from showing the others."""

_live_update = msgspec.msgpack.Decoder(LiveUpdate).decode
_found = msgspec.msgpack.Decoder(FoundOperations).decode
_table = msgspec.msgpack.Decoder(Table).decode


class MetricsSource(Protocol):
    """What asks the pool's metrics."""

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any: ...


class Inspection:
    """The part of `Pool` that asks its metrics actor and single workers."""

    name: str
    client: Client

    def __init__(self, metrics: MetricsSource) -> None:
        self._metrics = metrics

    # --- metrics and events ---

    async def metrics_snapshot(self) -> MetricsSnapshot:
        """The pool now: sizes, load, latencies of the last minute, counters, by program and by worker.

        Raises:
            NotAllowed: `enable_metrics` is off.
            WorkerLost: the metrics actor is restarting; try again.
        """
        return await self._ask_metrics("metrics_snapshot")

    async def metrics_history(
        self, duration_s: float = 60.0, *, program: str | None = None, ordinal: int | None = None
    ) -> HistoryView:
        """Points of the last `duration_s` seconds of the pool, of one program, or of one worker.

        Raises:
            NotAllowed, WorkerLost: as `metrics_snapshot`.
            InvalidRequest: `duration_s` is not a positive number.
        """
        if not duration_s > 0:
            raise InvalidRequest(f"a history has a positive duration_s, got {duration_s}", field="duration_s")
        return await self._ask_metrics("history", duration_s, program=program, ordinal=ordinal)

    async def errors(self) -> ErrorList:
        """What operations ended with, by kind: by exception and line, or by what the model's back end answered.

        Raises:
            NotAllowed, WorkerLost: as `metrics_snapshot`.
        """
        return await self._ask_metrics("errors")

    async def operations(self, **filters: Unpack[OperationFilters]) -> OperationPage:
        """Operations that ended, newest first: those that the pool keeps (`operations` of the configuration) and that
        fit all `filters`. They are there a second after their end.

        Raises:
            NotAllowed, WorkerLost: as `metrics_snapshot`.
            InvalidRequest: a filter is out of range.
            QueueFull, PoolNotReady: too many search, or it took too long.
        """
        query = query_of(filters, self.name).checked()
        return operation_page(await self.find_operations(query), self.name)

    async def find_operations(self, query: OperationQuery) -> FoundOperations:
        """As `operations`; names of sessions and principals are hashes in the question and sealed in the answer."""
        return _found(await self._ask_metrics("find_operations", query))

    async def events(self, since: int = 0, limit: int = 100, *, timeout_s: float = 0.0) -> EventPage:
        """The events of the whole pool: resizes, deaths, moved sessions, ... (not each operation), oldest first.

        `since` is the `next` of the page before; 0 gives the newest. With `timeout_s` (at most 30) it waits for one.

        Raises:
            NotAllowed, WorkerLost: as `metrics_snapshot`.
            InvalidRequest: `limit` is outside 1..1000, or `timeout_s` outside 0..30.
        """
        return await self._ask_metrics("events", since, limit, timeout_s)

    async def snapshot(self) -> Snapshot:
        """The snapshot for exporters: metrics, histograms and limits at one moment."""
        return await self._ask_metrics("snapshot")

    async def live_update(self, after: float | None = None, *, workers: bool = False) -> LiveUpdate:
        """The pool now, and the rows of history after `after` (the `table.last` of the update before)."""
        return _live_update(await self._ask_metrics("live_update", after, workers=workers))

    async def table(
        self,
        duration_s: float,
        *,
        program: str | None = None,
        ordinal: int | None = None,
        worker: str | None = None,
        resolution_s: float = 0.0,
    ) -> Table:
        """As `metrics_history`, by column: for charts. `worker` is an id, also of one that ended lately."""
        asked = {"program": program, "ordinal": ordinal, "worker": worker, "resolution_s": resolution_s}
        return _table(await self._ask_metrics("table", duration_s, **asked))

    async def _ask_metrics(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if not self.client.config.enable_metrics:
            raise NotAllowed(f"pool {self.name!r} keeps no metrics: enable_metrics is off", pool=self.name)
        return await self._metrics.ask(method, *args, **kwargs)

    # --- single workers ---

    async def _worker_id(self, named: str | int) -> str:
        raise NotImplementedError

    async def worker_operations(self, worker_id: str | int) -> list[dict[str, Any]]:
        """The operations in the slots of a worker, by its id or its ordinal.

        Raises:
            UnknownWorker: there is no such worker.
            WorkerLost: it does not answer within two seconds.
        """
        return await self._ask_worker(worker_id, "running")

    async def cancel(self, operation_id: str) -> str:
        """End an operation that a worker runs, or has taken: its caller gets `Cancelled`. Returns that worker's id.

        Raises:
            UnknownName: no worker has it: it has ended, waits at its client, or never was.
        """
        membership = self.client.membership
        ids = [member.worker_id for member in membership.workers] + list(membership.finishing)
        answers = await asyncio.gather(
            *(self._ask_worker(worker_id, "cancel", operation_id) for worker_id in ids),
            return_exceptions=True,
        )
        for worker_id, was_here in zip(ids, answers, strict=True):
            if was_here is True:
                return worker_id
        raise UnknownName(
            f"no worker of pool {self.name} runs operation {operation_id[:100]!r}: it has ended, or still waits"
        )

    async def worker_memory(self, worker_id: str | int) -> dict[str, float]:
        """Its resident, proportional and private memory in MB. Raises: as `worker_operations`."""
        return await self._ask_worker(worker_id, "memory")

    async def logs(
        self,
        *,
        operation: str | None = None,
        worker: str | int | None = None,
        after: float = 0.0,
        limit: int = 200,
    ) -> LogPage:
        """Lines that the pool's processes logged, with tracebacks; what user code logs and prints is among them.

        Of one operation, of one worker (by its id also a dead one, as long as Ray keeps its files), of all. `after` is
        the `next` of the page before: the oldest lines since then; 0 gives the newest. On nodes without a living worker
        or the supervisor nobody looks.

        Raises:
            InvalidRequest: `limit` is outside 1..1000, or `after` is no time.
            WorkerLost: the supervisor is restarting; try again.
        """
        if not 0 < limit <= MAX_LINES:
            raise InvalidRequest(f"limit must be between 1 and {MAX_LINES}, got {limit}", field="limit")
        if not 0 <= after < math.inf:
            raise InvalidRequest(f"after is a time in seconds, got {after}", field="after")
        worker = None if worker is None else await self._worker_id(worker)
        query = LogQuery(operation, worker, after, limit)
        return merged(await self._log_pages(query), query)

    async def _log_pages(self, query: LogQuery) -> list[LogPage]:
        """What each node has. None, where the pool has no processes of its own."""
        return []

    async def worker_log(self, worker_id: str | int, lines: int = 200) -> LogTail:
        """The last lines of a worker's log. Raises: as `worker_operations`."""
        return await self._ask_worker(worker_id, "log_tail", lines)

    async def _ask_worker(self, named: str | int, method: str, *args: Any) -> Any:
        worker_id = await self._worker_id(named)
        try:
            async with asyncio.timeout(WORKER_S):
                return await self._call_worker(worker_id, method, *args)
        except TimeoutError:
            raise WorkerLost(f"worker {worker_id} did not answer within {WORKER_S:g} s") from None

    async def _call_worker(self, worker_id: str, method: str, *args: Any) -> Any:
        """The worker's answer. Raises: UnknownWorker. WorkerLost: it is gone."""
        raise NotImplementedError
