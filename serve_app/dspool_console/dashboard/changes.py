"""What changed in one pool since the last beat, as far as somebody looks at it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from dspool.core.metrics.measures import LiveUpdate
from dspool.errors import PoolError
from dspool.messages import PoolStatus
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool_console.alerts.watch import AlertWatch, without_names
from dspool_console.dashboard import view
from dspool_serve.api.common import or_none
from dspool_serve.api.events import event_row
from dspool_serve.api.pool import without_names as without_principals
from dspool_serve.api.tables import points
from dspool_serve.api.workers import WorkerRow, worker_rows
from dspool_serve.pools import ClusterPool

EVERYBODY: Final = "*"
"""The topic of what all viewers must know."""
STATUS_S: Final = 2.0
EVENTS_AT_ONCE: Final = 200
DECISIONS_AT_ONCE: Final = 20

Item = tuple[str, str, Any]
"""Topic, name of the event, data."""
_WHOLE: Final = ("diagnosis", "health", "alerts", "errors", "telemetry")
_POOL_EVERY: Final = 5
"""So many beats pass until all of a pool's row is told: what a viewer has from an answer may be newer than what was
told, and then no difference to the last beat would ever put it right."""


class Changes:
    """Keeps what was told last, to tell only what is other. One event loop owns it."""

    def __init__(
        self,
        pool: ClusterPool,
        alerts: AlertWatch,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.pool, self.alerts = pool, alerts
        self._wall = wall
        self.forget()

    def forget(self) -> None:
        """Nobody knows anything: the next beat tells everything but what is only told as it happens."""
        self._life: str | None = None
        self._after: float | None = None
        self._overview: view.Row | None = None
        self._beats = 0
        self._workers: dict[str, WorkerRow] | None = None
        self._since: int | None = None
        self._alert_changes = self.alerts.told
        self._warm_since: int | None = None
        self._rollout: Rollout | None = None
        self._decisions: dict[float, DecisionRecord] | None = None
        self._alerts_version = -1

    async def beat(self, topics: frozenset[str]) -> list[Item]:
        """Raises: PoolError: the pool cannot be asked."""
        items: list[Item] = []
        if topics & {"overview", "workers"}:
            update = await self._update(workers="workers" in topics)
            status = update.status if update is not None else None
            if status is None:
                status = await or_none(self.pool.status(), STATUS_S)
            if update is not None and update.life != self._life:
                if self._life is not None:
                    items.append((EVERYBODY, "reset", {}))
                self._life, self._overview, self._workers = update.life, None, None
            if "overview" in topics:
                items += self._tick(update, status)
            if "workers" in topics and status is not None:
                items += self._worker_rows(update, status)
        for topic, ask in (
            ("events", self._events), ("warmup", self._warmup), ("sizing", self._sizing), ("alerts", self._alerts),
        ):  # fmt: skip
            if topic in topics:
                items += await ask()
        return items

    # --- figures ---

    async def _update(self, *, workers: bool) -> LiveUpdate | None:
        """None while the metrics are away or switched off: the rest is told all the same."""
        if not self.pool.config.enable_metrics:
            return None
        try:
            update = await self.pool.live_update(self._after, workers=workers)
        except PoolError:
            return None
        self._after = update.table.last
        return update

    def _tick(self, update: LiveUpdate | None, status: PoolStatus | None) -> list[Item]:
        alerts = self.alerts
        now = view.overview(update, status, self.pool.config, alerts.summary(), self._wall(), alerts.alerts)
        before, self._overview = self._overview, now
        tick: dict[str, Any] = {"at": now["at"]}
        self._beats += 1
        if self._beats % _POOL_EVERY == 0:
            tick["pool"] = now["pool"]
        if update is not None and update.table.ends:
            tick["points"] = msgspec.Raw(points(update.table).encode())
        for name in ("now", "pool", "totals"):
            if name not in tick:
                tick |= _part(name, before, now)
        for name in _WHOLE:
            if before is None or before[name] != now[name]:
                tick[name] = now[name]
        rows = {} if before is None else {row["name"]: row for row in before["programs"]}
        if programs := view.changed_rows(rows, now["programs"], "name"):
            tick["programs"] = programs
        return [("overview", "tick", tick)]

    def _worker_rows(self, update: LiveUpdate | None, status: PoolStatus) -> list[Item]:
        rows = worker_rows(status, update.snapshot.workers if update is not None else {})
        before, self._workers = self._workers or {}, {row.id: row for row in rows}
        changed = [row for row in rows if before.get(row.id) != row]
        gone = [id for id in before if id not in self._workers]
        return [("workers", "workers", {"changed": changed, "gone": gone})] if changed or gone else []

    # --- what happens ---

    async def _events(self) -> list[Item]:
        items: list[Item] = []
        try:
            page = await self.pool.events(self._since or 0, EVENTS_AT_ONCE if self._since else 1)
        except PoolError:
            page = None
        if page is not None:
            if self._since is not None:
                items = [("events", "event", event_row(seen)) for seen in page.events]
            self._since = page.next
        number, self._alert_changes = self.alerts.told - self._alert_changes, self.alerts.told
        changes = list(self.alerts.changes)[-number:] if number else []
        return items + [("events", "event", event_row(seen)) for seen in changes]

    async def _warmup(self) -> list[Item]:
        progress = await or_none(self.pool.warm_progress(self._warm_since or 0), STATUS_S)
        rollouts = await or_none(self.pool.rollouts(), STATUS_S)
        if progress is None or rollouts is None:
            return []  # the supervisor is away: nobody else misses anything for that
        # Readers hear it too.
        rollout = next(iter(without_principals(rollouts[:1])), None)
        moments = [] if self._warm_since is None else progress
        same = rollout == self._rollout and self._warm_since is not None
        self._warm_since = progress[-1].sequence if progress else self._warm_since or 0
        self._rollout = rollout
        return (
            []
            if same and not moments
            else [("warmup", "warmup", {"progress": moments, "deployment": rollout})]
        )

    async def _sizing(self) -> list[Item]:
        records = await or_none(self.pool.decisions(DECISIONS_AT_ONCE), STATUS_S)
        if records is None:
            return []
        rows = {record.since or record.at: record for record in reversed(records)}
        before, self._decisions = self._decisions or {}, rows
        new = [record for since, record in rows.items() if before.get(since) != record]
        return [("sizing", "sizing", {"decisions": new})] if new else []

    async def _alerts(self) -> list[Item]:
        if self.alerts.version == self._alerts_version:
            return []
        self._alerts_version = self.alerts.version
        return [("alerts", "alerts", {"alerts": without_names(self.alerts.alerts)})]


def _part(name: str, before: view.Row | None, now: view.Row) -> view.Row:
    new, old = now[name], None if before is None else before[name]
    if new is None:
        return {name: None} if before is None or old is not None else {}
    fields = view.changed(old, new)
    return {name: fields} if fields else {}


__all__ = ["EVERYBODY", "Changes"]
