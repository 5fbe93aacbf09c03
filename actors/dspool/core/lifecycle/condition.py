"""The condition of a pool: has it been ready, is it at full strength, is it degraded, and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.breaker import Breaker
from dspool.core.lifecycle.orders import Orders
from dspool.core.lifecycle.roster import Roster
from dspool.core.wording import counted

if TYPE_CHECKING:
    from dspool.config import PoolConfig


class Condition:
    """Takes failures as they come; `judge` after each event emits what has changed."""

    def __init__(self, config: PoolConfig, roster: Roster, orders: Orders, breaker: Breaker) -> None:
        self.degraded = ""
        """Why the pool serves with the workers that are left; empty when it does not."""
        self.was_ready = False
        self.last_failure = ""
        self.broken = ""
        """Why no new worker becomes ready: the code or the configuration must change first, or so many died in a row
        that it must be taken for that. Empty while one may."""
        self.failures = 0
        """Workers that died, were given up or could not be started."""
        self.lost = 0
        """Workers that failed and are missing since."""
        self.lost_since: float | None = None
        self.began = 0.0
        self._strategy = config.warmup.strategy
        self._roster, self._orders, self._breaker = roster, orders, breaker
        self._was_full = False
        self._failed_starts = 0
        self._died_in_row = 0
        """Before they were warm, since one became warm or somebody asked for one: what fails may pass, what ends its
        process ends the next one's."""
        self._short_since: float | None = None

    def adopted(self) -> None:
        """A serving worker is older than this supervisor: the pool was ready under the one before."""
        self.was_ready = self._was_full = True

    def failed(self, why: str, *, at_start: bool, served: bool, died: bool, now: float) -> None:
        """A worker failed, before it was warm (`at_start`) or later; `served`: it took traffic; `died`: its process
        ended by itself."""
        self.failures += 1
        self._failed_starts += at_start
        self._died_in_row += at_start and died
        self.last_failure = why
        self.lost += 1
        if self.lost_since is None:
            self.lost_since = now
        if served and self._short_since is None:
            self._short_since = now

    def may_start(self) -> None:
        """A worker became warm, or what kept new ones from it may be mended."""
        self.broken, self._died_in_row = "", 0

    def judge(self, *, target: int, awake: bool, ready: bool, closed: bool, now: float) -> None:
        """Emit when the pool becomes ready, reaches full strength, becomes degraded, or recovers."""
        full = len(self._roster.ready) >= target
        self.lost = min(self.lost, max(0, target - len(self._roster.ready)))
        if not self.lost:
            self.lost_since = None
        if awake:
            self._judge_start(ready=ready, full=full, now=now)
        why = self._why_degraded(full=full, closed=closed, now=now)
        if self._died_in_row > self._breaker.intensity and self._breaker.is_open(now):
            self.broken = self.broken or why
        if bool(why) != bool(self.degraded):
            self._orders.out.append(ev.DeclareDegraded(why))
            if why:
                self._orders.emit("pool.error", {"count": 1}, code="degraded", reason=why)
        self.degraded = why
        if full and self._short_since is not None:
            if not closed:
                # How long the pool had too few warm workers after it lost one.
                self._orders.emit(
                    "pool.recovery", {"duration_s": now - self._short_since}, reason=self.last_failure
                )
                self.last_failure = ""
            self._short_since = None

    def _judge_start(self, *, ready: bool, full: bool, now: float) -> None:
        duration_s, size = now - self.began, len(self._roster.ready)
        if ready and not self.was_ready:
            self.was_ready = True
            self._orders.emit("pool.init", {"duration_s": duration_s, "size": size})
        if full and not self._was_full:
            self._was_full = True
            numbers = {"duration_s": duration_s, "workers": size, "failed": self._failed_starts}
            outcome = "error" if self._failed_starts else "ok"
            self._orders.emit("pool.warmup", numbers, strategy=self._strategy, outcome=outcome)

    def _why_degraded(self, *, full: bool, closed: bool, now: float) -> str:
        breaker = self._breaker
        if breaker.is_open(now) and not closed:
            return (
                f"{counted(breaker.recent(now), 'worker')} failed within {breaker.period_s:g} s "
                f"(more than {breaker.intensity}); last: {self.last_failure}"
            )
        return self.last_failure if not full and breaker.not_before > now else ""
