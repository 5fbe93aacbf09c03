"""The part of `RemotePool` that looks at a pool."""

from __future__ import annotations

from typing import Any, Unpack

from dspool.core.metrics.measures import ErrorList, HistoryView, MetricsSnapshot
from dspool.core.metrics.operation_records import OperationFilters, OperationPage
from dspool.remote.requests import part, with_query
from dspool.remote.service import HttpService
from dspool.telemetry.event_log import EventPage
from dspool.telemetry.log_files import LogPage

_IN_A_QUERY = {"since": "from", "until": "to"}


class RemoteObservation:
    timeout_s: float
    _service: HttpService
    _path: str

    async def look(self, what: str) -> Any:
        """The JSON that the service has below the pool's address under `what`: `alerts`, `overview`, `operations`,
        ... It knows more of its pools than these do of themselves.
        """
        return await self._service.get(f"{self._path}/{what}", object)

    async def metrics_snapshot(self) -> MetricsSnapshot:
        """As `Pool.metrics_snapshot`."""
        return await self._service.get(self._path + "/metrics", MetricsSnapshot)

    async def errors(self) -> ErrorList:
        """As `Pool.errors`."""
        return await self._service.get(self._path + "/errors", ErrorList)

    async def metrics_history(
        self, duration_s: float = 60.0, *, program: str | None = None, ordinal: int | None = None
    ) -> HistoryView:
        """As `Pool.metrics_history`."""
        return await self._service.get(
            self._path + "/metrics/history",
            HistoryView,
            duration_s=duration_s,
            program=program,
            slot=ordinal,
        )

    async def events(self, since: int = 0, limit: int = 100, *, timeout_s: float = 0.0) -> EventPage:
        """As `Pool.events`."""
        path = with_query(self._path + "/events", since=since, limit=limit, timeout_s=timeout_s)
        return await self._service.get(path, EventPage, wait_s=self.timeout_s + timeout_s)

    async def operations(self, **filters: Unpack[OperationFilters]) -> OperationPage:
        """As `Pool.operations`. Names of sessions and principals need an admin's token, but for one's own."""
        given: dict[str, Any] = {_IN_A_QUERY.get(name, name): value for name, value in filters.items()}
        if "ascending" in given:
            given["ascending"] = "true" if given["ascending"] else None
        return await self._service.get(
            with_query(self._path + "/operations", **({"limit": 100} | given)), OperationPage
        )

    async def cancel(self, operation_id: str) -> str:
        """As `Pool.cancel`; needs an admin's token."""
        path = f"{self._path}/operations/{part(operation_id)}/cancel"
        return (await self._service.post(path, {}, dict[str, str], repeatable=False))["worker"]

    async def logs(
        self,
        *,
        operation: str | None = None,
        worker: str | int | None = None,
        after: float = 0.0,
        limit: int = 200,
    ) -> LogPage:
        """As `Pool.logs`."""
        path = self._path + "/logs"
        return await self._service.get(
            path, LogPage, operation=operation, worker=worker, after=after, limit=limit
        )
