"""A change of settings that goes step by step: how many workers have which settings at a step, and who has to go. Pure.

A step is a record of the supervisor's, and no part of the exchange that gives the pool its new configuration: it
changes while the configuration stays, and Ray starts a supervisor again with the arguments it once had. The record
names the settings that it is about. So it may be written before their supervisor is there, which then never replaces a
worker too many, and it means nothing to a supervisor with others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dspool.core.lifecycle.orders import Orders
from dspool.core.lifecycle.roster import Roster, WorkerRecord
from dspool.errors import Conflict
from dspool.messages import GradualStatus, Share

WHY = "the pool has other settings now"


class Split(NamedTuple):
    """Workers with the pool's settings, and with others."""

    new: int
    old: int


def split(size: int, percent: int) -> Split:
    """Of a pool of `size` workers, rounded up on both sides: at 10 % of two there are three.

    A step always has a new worker to try, and loses no old one before it has to.
    """
    if size <= 0:
        return Split(0, 0)
    return Split(max(1, -(-size * percent // 100)), -(-size * (100 - percent) // 100))


class GradualChange:
    """Where a change stands; not anywhere (`percent` None) most of the time.

    At 100 % it stands for as long as workers with other settings are left: they get nothing while others have room.
    That is how a pool goes back.
    """

    def __init__(self, roster: Roster, orders: Orders) -> None:
        self._roster, self._orders = roster, orders
        self.settings = ""
        """The mark of the settings that workers are to have from their start; empty: any."""
        self.percent: int | None = None
        self._records: dict[str, int] = {}
        """Percent by settings: those of this pool, and those that it is to have next."""

    @property
    def required(self) -> str:
        """The mark that every worker is to have; empty: it may have another one."""
        return self.settings if self.percent is None else ""

    def differs(self, w: WorkerRecord) -> bool:
        """Whether it has other settings. One that has not yet said what it has was started with these."""
        return bool(self.settings and w.status is not None and w.status.settings not in ("", self.settings))

    def move(self, settings: str, percent: int | None) -> None:
        """On record the change to these settings stands there; in this pool only if they are its own."""
        records = {**self._records, settings: percent}
        # At most two, however often somebody turns back: others are of changes that are over.
        kept = {
            mark: at for mark, at in records.items() if at is not None and mark in (settings, self.settings)
        }
        self.restore(kept)
        self._orders.persist("gradual", {**kept} or None)

    def restore(self, records: Any) -> None:
        """Stand where the record says that is about the settings of this pool."""
        found = records.items() if isinstance(records, dict) else ()
        self._records = {mark: percent for mark, percent in found if isinstance(percent, int)}
        self.percent = self._records.get(self.settings)

    def step(self, target: int) -> int:
        """Order what this step needs; returns how many workers are to take traffic for a pool of `target`."""
        if self.percent is None:
            return target
        for spare in self._roster.spares:
            if self.differs(spare):
                # It would take the place of a worker that is to try the new settings.
                self._orders.stop(spare, WHY)
        wanted, old = split(target, self.percent), self._staying(new=False)
        for w in sorted(old, key=lambda w: (w.sessions, w.warm_at or 0.0))[: max(0, len(old) - wanted.old)]:
            w.leaving = WHY
        left_old = min(wanted.old, len(old))
        size = max(target, wanted.new + left_old)
        new = sorted(self._staying(new=True), key=lambda w: (w.sessions, -(w.warm_at or 0.0)))
        for w in new[: max(0, len(new) + left_old - size)]:
            w.leaving = "the pool shrinks"
        serving = self._roster.in_phase("ready", "spare")
        if self.percent == 100 and not any(self.differs(w) for w in serving):
            # Nobody is left who would have to be kept from work.
            self.move(self.settings, None)
        return size

    def share(self) -> Share | None:
        """What clients are to do."""
        if self.percent is None:
            return None
        return Share(self.percent, tuple(w.id for w in self._roster.ready if not self.differs(w)))

    def kept_as_they_are(self) -> set[str]:
        """The ids of those with other settings. Program versions that came with these settings are not for them: what
        does not load would end them all, and they are to serve until somebody can take their place."""
        return {w.id for w in self._roster if self.differs(w)}

    def check_steady(self, pool: str) -> None:
        """Raises: Conflict: a change stands: what is loaded now would come to workers with both settings, and nobody
        could tell any more which of it does harm."""
        if self.percent is not None:
            raise Conflict(f"a change of pool {pool} stands at {self.percent} %: `dspool apply` finishes it")

    def status(self, target: int, spares: int) -> GradualStatus | None:
        if self.percent is None:
            return None
        wanted, ready = split(target, self.percent), self._roster.ready
        old = sum(self.differs(w) for w in ready)
        new = len(ready) - old
        full = new >= wanted.new and new + old >= target and len(self._roster.spares) >= spares
        return GradualStatus(self.percent, new, old, reached=full and old <= wanted.old)

    def _staying(self, *, new: bool) -> list[WorkerRecord]:
        """Of those with these settings, or with others, the ones that are to stay for now."""
        regular = self._roster.regular
        return [w for w in regular if not w.leaving and self.differs(w) is not new]


__all__ = ["GradualChange", "Split", "split"]
