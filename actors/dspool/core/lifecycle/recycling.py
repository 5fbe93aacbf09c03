"""Workers that did enough, grew too large or too old: marked here, replaced by the reconciler one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspool.core.lifecycle.orders import Orders
from dspool.core.lifecycle.roster import Roster, WorkerRecord
from dspool.messages import WorkerStatus

if TYPE_CHECKING:
    from dspool.config import RecycleConfig


class Recycling:
    def __init__(self, limits: RecycleConfig, roster: Roster, orders: Orders) -> None:
        self._limits = limits
        self._roster = roster
        self._orders = orders
        self._memory_warning_sent = False

    def mark_worn(self, w: WorkerRecord, status: WorkerStatus, fresh_mb: float, settings: str) -> None:
        """`settings` is the mark that workers are to have; empty: any."""
        limits = self._limits
        if status.state == "failed":
            w.leaving = status.reason or "it says that it cannot go on"
        elif settings and status.settings and status.settings != settings:
            w.leaving = "the pool has other settings now"
        elif limits.max_operations is not None and status.operations >= limits.max_operations:
            w.leaving = f"recycled after {status.operations} operations"
        elif limits.max_memory_mb is not None and status.own_mb >= limits.max_memory_mb:
            if fresh_mb < limits.max_memory_mb:
                w.leaving = f"recycled at {status.own_mb:.0f} MB"
            else:
                self._memory_limit_too_low(fresh_mb)

    def _memory_limit_too_low(self, fresh_mb: float) -> None:
        # Its replacement would be over the limit, too: the pool would recycle for ever.
        if not self._memory_warning_sent:
            self._memory_warning_sent = True
            limit = self._limits.max_memory_mb
            self._orders.emit(
                "pool.error",
                {"count": 1},
                code="memory_limit_too_low",
                reason=f"recycle.max_memory_mb is {limit:g}, and a worker that is just warm has {fresh_mb:.0f} MB; "
                "such workers are not recycled for their memory",
            )

    def mark_old(self, now: float) -> None:
        max_age = self._limits.max_age_s
        if max_age is None:
            return
        for w in self._roster.in_phase("ready", "spare"):
            if not w.leaving and now - w.started_at >= max_age:
                w.leaving = f"recycled after {max_age:g} s"
