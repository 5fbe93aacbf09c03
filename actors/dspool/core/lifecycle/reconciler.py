"""Brings the workers there are nearer to the workers there should be, one event at a time."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dspool.core.lifecycle.breaker import Breaker
from dspool.core.lifecycle.orders import Orders
from dspool.core.lifecycle.roster import GOING, Roster, WorkerRecord
from dspool.core.lifecycle.warmup import stages

if TYPE_CHECKING:
    from dspool.config import PoolConfig


class Reconciler:
    def __init__(self, config: PoolConfig, roster: Roster, orders: Orders, breaker: Breaker) -> None:
        self._config = config
        self._roster = roster
        self._orders = orders
        self._breaker = breaker
        self._stages: deque[int] = deque()
        """The remaining stages of the present roll-out: how many workers each starts."""

    def stop_roll_out(self) -> int:
        """A worker failed: the next roll-out begins with a canary again. Returns how many were still to come."""
        remainder = sum(self._stages)
        self._stages.clear()
        return remainder

    def reconcile(self, target: int, spares: int, now: float) -> None:
        """Order what brings the pool nearer to `target` workers with traffic and `spares` without."""
        # One worker is replaced at a time: the pool pays for one extra, and never loses more than it gained.
        # That one does not count, so that another is promoted or started in its place, and then it goes.
        for spare in self._roster.spares:
            if len(self._staying()) >= target:
                break
            if not spare.doubted:
                self._orders.promote(spare)
        while len(self._roster.regular) > target and len(self._staying()) >= target:
            w = self._roster.first_to_drain()
            self._orders.drain(w, w.leaving or "the pool shrinks")
        shortage = target + spares - len(self._staying()) - len(self._sound_spares())
        self._replace_spares(spares)
        pending = self._roster.pending
        # Spares come once there are enough with traffic: they would hold those up, and take their places where the
        # workers of another node are slower to warm.
        missing = target - len(self._staying())
        due = missing if missing > 0 else shortage
        if due > len(pending):
            self._start_some(due - len(pending), len(pending), now)
        else:
            self._stages.clear()
            for w in sorted(pending, key=lambda w: (w.phase != "starting", -w.started_at, -w.ordinal)):
                if shortage >= len(self._roster.pending):
                    break
                self._orders.stop(w, "no longer needed")

    def _staying(self) -> list[WorkerRecord]:
        """Ready workers without the one to replace next."""
        ready = self._roster.regular
        outgoing = next((w for w in ready if w.leaving), None)
        return [w for w in ready if w is not outgoing]

    def _sound_spares(self) -> list[WorkerRecord]:
        return [w for w in self._roster.spares if not w.leaving]

    def _replace_spares(self, count: int) -> None:
        """Stops spares beyond `count`, and old ones: a spare holds nothing, so it may go before its replacement."""
        sound = self._sound_spares()
        for w in self._roster.spares:
            if w.leaving:
                self._orders.stop(w, w.leaving)
        for w in sound[count:]:
            self._orders.stop(w, "no longer needed")

    def _start_some(self, shortage: int, pending: int, now: float) -> None:
        if now < self._breaker.not_before:
            return
        count = shortage
        if self._breaker.is_open(now):
            count = min(count, 1 - pending)
        elif self._config.warmup.strategy != "parallel":
            if pending:
                return  # the next stage begins when all workers of this one are warm
            if not self._stages:
                self._stages.extend(stages(self._config.warmup.strategy, shortage))
            count = min(shortage, self._stages.popleft())
        for _ in range(count):
            self._orders.start()

    def wind_down(self, closed_by: float, now: float) -> None:
        """Let all workers finish and go; kill those left at `closed_by`."""
        for w in self._roster:
            if now >= closed_by and w.phase != "failed":
                self._orders.kill(w, "the pool was closed and its time is over")
            elif w.phase == "ready":
                self._orders.drain(w, "the pool is closed")
            elif w.phase not in GOING:
                self._orders.stop(w, "the pool is closed")
