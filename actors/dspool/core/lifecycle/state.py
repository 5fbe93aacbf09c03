"""The pool state machine: events go in, actions come out.

Pure and synchronous: `handle(event, now)` changes the state and returns the actions. Desired and actual size are
separate; after each event the `Reconciler` orders what brings the actual size nearer to the desired one. Invariants:

- an ordinal belongs to at most one living worker, dying ones included;
- only warm workers are in the membership, whatever started them;
- the membership version only grows;
- every process that was ordered is a worker here until it is certainly gone;
- a worker that took traffic is in the membership, or named there as finishing, until it is gone or given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.breaker import Breaker
from dspool.core.lifecycle.condition import Condition
from dspool.core.lifecycle.ended import EndedWorkers
from dspool.core.lifecycle.gradual import GradualChange
from dspool.core.lifecycle.orders import Orders
from dspool.core.lifecycle.reconciler import Reconciler
from dspool.core.lifecycle.recycling import Recycling
from dspool.core.lifecycle.roster import GOING, PENDING, Roster, WorkerRecord
from dspool.errors import InvalidRequest, UnknownWorker, suggestion
from dspool.messages import Membership, WorkerStatus

if TYPE_CHECKING:
    from dspool.config import PoolConfig


class PoolState:
    """One pool. `new_id(ordinal)` gives the id of a new worker, `jitter()` a number in [0, 1)."""

    def __init__(
        self, config: PoolConfig, *, new_id: Callable[[int], str], jitter: Callable[[], float]
    ) -> None:
        self.config = config
        self.desired = config.pool_size
        """Base size; overflow workers come on top."""
        self.overflow = 0
        self.paused = False
        self.closed = False
        self.awake = not config.lazy
        self.programs: dict[str, int] = {}
        self.canary_failure = ""
        """Why the last canary that failed did."""
        self.starts_s: deque[float] = deque(maxlen=20)
        """How long the last starts took, from the order until the worker was warm."""
        self.roster = Roster()
        self._orders = Orders(config, self.roster, new_id)
        self.gradual = GradualChange(self.roster, self._orders)
        self._jitter = jitter
        self._breaker = Breaker(
            intensity=config.restart.intensity,
            period_s=config.restart.period_s,
            backoff_s=config.restart.backoff_s,
            backoff_max_s=config.restart.backoff_max_s,
        )
        self.condition = Condition(config, self.roster, self._orders, self._breaker)
        self._recycling = Recycling(config.recycle, self.roster, self._orders)
        self._reconciler = Reconciler(config, self.roster, self._orders, self._breaker)
        self._booted, self._closed_by = False, 0.0

    # --- queries ---------------------------------------------------------------------------------------

    @property
    def membership(self) -> Membership:
        return self._orders.membership

    @property
    def ended(self) -> EndedWorkers:
        return self._orders.ended

    @property
    def target(self) -> int:
        """Workers that should take traffic: the desired size and the overflow."""
        return self.desired + self.overflow if self.awake and not self.closed else 0

    @property
    def is_ready(self) -> bool:
        """At least `min_ready` workers are warm; a lazy pool that nobody woke is ready to be woken."""
        return not self.closed and (not self.awake or len(self.roster.ready) >= self.config.min_ready)

    def check_size(self, size: int) -> None:
        """Raises `InvalidRequest` if the pool may not have `size` workers."""
        low, high = self.config.min_pool_size, self.config.max_pool_size
        if not low <= size <= high:
            raise InvalidRequest(
                f"size must be between min_pool_size {low} and max_pool_size {high}, got {size}",
                size=size,
                min_pool_size=low,
                max_pool_size=high,
            )

    def worker(self, worker_id: str) -> WorkerRecord:
        """Raises `UnknownWorker` if there is none of that id."""
        w = self.roster.get(worker_id)
        if w is None:
            known = [worker.id for worker in self.roster]
            raise UnknownWorker(
                f"pool {self.config.name} has no worker {worker_id[:100]!r}{suggestion(worker_id, known)}",
                worker=worker_id[:100],
            )
        return w

    def next_due(self, now: float) -> float | None:
        """When a `Tick` has something to do; None if only an event can change anything."""
        times = [w.deadline for w in self.roster if w.deadline is not None]
        if self._breaker.not_before > now:
            times.append(self._breaker.not_before)
        if (closes := self._breaker.closes_at(now)) is not None:
            times.append(closes)
        if self.closed and len(self.roster):
            times.append(self._closed_by)
        if (max_age := self.config.recycle.max_age_s) is not None:
            times += [w.started_at + max_age for w in self.roster.in_phase("ready", "spare") if not w.leaving]
        return min(times, default=None)

    # --- events ----------------------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """The actions that follow from `event`. An event about a worker that is gone changes nothing.

        Raises:
            InvalidRequest: a requested size is outside the bounds; nothing changed.
            UnknownWorker: a request names a worker that does not exist; nothing changed.
        """
        actions = self._orders.begin(now)
        latest_version = self._apply(event, now)
        if self._booted:
            self._overdue(now)
            if self.closed:
                self._reconciler.wind_down(self._closed_by, now)
            else:
                self._recycling.mark_old(now)
                size = self.gradual.step(self.target)
                self._reconciler.reconcile(size, self.config.spares if self.awake else 0, now)
            if len(self.roster.ready) >= self.target:
                self._orders.ended.full()
            self.condition.judge(
                target=self.target, awake=self.awake, ready=self.is_ready, closed=self.closed, now=now
            )
            self._orders.publish(
                paused=self.paused,
                closed=self.closed,
                programs=self.programs,
                share=self.gradual.share(),
                at_least=latest_version,
            )
            self._orders.write_roster()
        return actions

    def _apply(self, event: ev.Event, now: float) -> int:
        """Changes the state; returns a membership version that is already taken, or 0."""
        orders = self._orders
        match event:
            case ev.Restored():
                self._restored(event)
            case ev.WorkerAdopted():
                self._adopted(event, now)
            case ev.Booted():
                self._booted = True
                self.condition.began = now
            case ev.WorkerStarted(worker_id, member):
                if (w := self._in_phase(worker_id, "starting")) is not None:
                    w.member = member
                    orders.warm(w)
            case ev.StepDone(worker_id, step):
                if (w := self._in_phase(worker_id, "warming")) is not None:
                    w.reason = f"{step} done"
            case ev.WarmFinished(worker_id):
                if (w := self._in_phase(worker_id, "warming")) is not None:
                    orders.keep(w)
                    self.condition.may_start()
                    self.starts_s.append(now - w.started_at)
            case ev.WorkerFailed(worker_id, why, lasts):
                if (w := self._in_phase(worker_id, *PENDING)) is not None:
                    self.condition.broken = self.condition.broken or (why if lasts and not w.canary else "")
                    self._give_up(w, why, now)
            case ev.WorkerDied(worker_id, cause):
                self._died(worker_id, cause, now)
            case ev.HealthOk(worker_id, status):
                self._healthy(worker_id, status, now)
            case ev.HealthMissed(worker_id, why, certain):
                self._missed(worker_id, why, now, certain=certain)
            case ev.Suspected(worker_id, why):
                self._suspected(worker_id, why, now)
            case ev.ResizeRequested(size):
                self.check_size(size)
                self.awake = True
                self._resize(size, self.overflow, "by hand")
            case ev.SizingDecided(target, overflow, reason):
                low, high = self.config.min_pool_size, self.config.max_pool_size
                overflow = min(max(overflow, 0), self.config.max_overflow)
                self._resize(min(max(target, low), high), overflow, reason)
            case ev.DrainRequested(worker_id, why):
                self._drain_requested(self.worker(worker_id), why)
            case ev.RestartRequested(worker_id, why):
                self.condition.may_start()
                if (w := self.worker(worker_id)).phase in ("ready", "spare"):
                    w.leaving = why
            case ev.CanaryRequested():
                orders.start(canary=True)
            case ev.CanaryPromoted(worker_id):
                if (w := self._in_phase(worker_id, "spare")) is not None:
                    orders.promote(w)
            case ev.CanaryAccepted(worker_id, why):
                if (w := self._in_phase(worker_id, "ready", "spare")) is not None:
                    w.canary = False
                    for older in self.roster.in_phase("ready", "spare"):
                        older.leaving = older.leaving or ("" if older is w else why)
            case ev.CanaryRefused(worker_id, why):
                if (w := self.roster.get(worker_id)) is not None:
                    self._drain_requested(w, why)
            case ev.Drained(worker_id):
                if (w := self._in_phase(worker_id, "draining")) is not None:
                    orders.stop(w, w.reason)
            case ev.PauseRequested(paused):
                if paused != self.paused:
                    self.paused = paused
                    orders.persist("paused", paused)
            case ev.GradualStep(settings, percent):
                self.gradual.move(settings, percent)
            case ev.ProgramsChanged(programs):
                self.programs = dict(programs)
            case ev.Woken():
                if not self.awake:
                    self.awake = True
                    orders.persist("awake", True)
            case ev.VersionSeen(version):
                # A client that knows a later version than ours would wait for ever: what we wrote is lost.
                return version if version > self.membership.version else 0
            case ev.CloseRequested(timeout_s):
                self.closed = True
                self._closed_by = now + timeout_s
            case ev.Tick():
                pass
        return 0

    def _in_phase(self, worker_id: str, *phases: str) -> WorkerRecord | None:
        w = self.roster.get(worker_id)
        return w if w is not None and w.phase in phases else None

    def _restored(self, event: ev.Restored) -> None:
        if event.desired is not None:
            low, high = self.config.min_pool_size, self.config.max_pool_size
            self.desired = min(max(event.desired, low), high)  # the bounds may be new
        if self.config.enable_optimizer:  # nothing else would ever release them
            self.overflow = min(event.overflow, self.config.max_overflow)
        self.paused = event.paused
        self.awake = self.awake or event.awake
        self.gradual.restore(event.gradual)
        self._orders.ceiling = event.version
        self._orders.membership = Membership(version=event.version)

    def _adopted(self, event: ev.WorkerAdopted, now: float) -> None:
        if self.roster.ordinal_taken(event.ordinal):
            self._orders.out += [
                ev.KillWorker(event.worker_id, f"another living worker has ordinal {event.ordinal}"),
                ev.FreeLeases(event.worker_id),
            ]
            return
        w = WorkerRecord(
            id=event.worker_id,
            ordinal=event.ordinal,
            phase=event.state,
            started_at=now - event.age_s,
            member=event.member,
            status=event.status,
            warm_at=now,
            fresh_mb=0.0,
            served=True,  # perhaps: the last promotions may be missing from what was written
        )
        self.roster.add(w)
        self.awake = True
        if event.state == "ready":
            self.condition.adopted()
        if event.state == "draining":
            self._orders.drain(w, "was draining when the supervisor came back")
        elif event.state not in ("ready", "spare"):
            w.warm_at = w.fresh_mb = None
            self._orders.warm(w)

    def _died(self, worker_id: str, cause: str, now: float) -> None:
        w = self.roster.get(worker_id)
        if w is None:
            return
        phase = w.phase
        if phase not in GOING:
            self._orders.ended.lost(w, cause, now)
        self._orders.bury(w, cause)
        if phase not in GOING:
            self._failed(w, f"worker {w.id} died: {cause}", now, served=phase == "ready", died=True)

    def _healthy(self, worker_id: str, status: WorkerStatus, now: float) -> None:
        w = self.roster.get(worker_id)
        if w is None:
            return
        w.misses, w.doubted, w.status, w.checked_at = 0, False, status, now
        self._orders.ended.checked(w)
        if not w.settled and w.warm_at is not None and now - w.warm_at >= self._breaker.settled_s:
            # Once for each worker: one that lives on beside a crash loop does not end it.
            w.settled = True
            self._breaker.settled()
        if w.phase not in ("ready", "spare"):
            return
        if w.fresh_mb is None:
            w.fresh_mb = status.own_mb
        if not w.leaving:
            self._recycling.mark_worn(w, status, w.fresh_mb, self.gradual.required)

    def _missed(self, worker_id: str, why: str, now: float, *, certain: bool) -> None:
        w = self._in_phase(worker_id, "ready", "spare", "draining")
        if w is None:
            return
        w.misses += 1
        if certain:
            self._give_up(w, f"out of reach: {why}", now)
        elif w.misses >= self.config.max_health_failures:
            self.roster.doubt_neighbours(w)
            self._give_up(w, f"missed {w.misses} health checks in a row: {why}", now)

    def _suspected(self, worker_id: str, why: str, now: float) -> None:
        w = self._in_phase(worker_id, "ready")
        interval_s = self.config.health_check_interval_s
        # One report an interval counts: a single client that tries again and again must not kill a healthy worker.
        if w is None or (w.suspicions and now - w.suspected_at < interval_s):
            return
        in_a_row = now - w.suspected_at < 3 * interval_s
        w.suspicions, w.suspected_at = w.suspicions + 1 if in_a_row else 1, now
        if w.suspicions >= self.config.max_health_failures:
            self._give_up(w, f"clients cannot talk to it: {why}", now)

    def _resize(self, desired: int, overflow: int, reason: str) -> None:
        if (desired, overflow) == (self.desired, self.overflow):
            return
        if desired != self.desired:
            self._orders.persist("desired", desired)
        if overflow != self.overflow:
            self._orders.persist("overflow", overflow)
        old, new = self.desired + self.overflow, desired + overflow
        self._orders.emit(
            "pool.resize",
            {"from": old, "to": new, "overflow": overflow},
            reason=reason,
            action="grow" if new > old else "shrink" if new < old else "exchange",
        )
        self.desired, self.overflow = desired, overflow

    def _drain_requested(self, w: WorkerRecord, why: str) -> None:
        if w.phase == "ready":
            self._orders.drain(w, why)
        elif w.phase == "spare" or w.phase in PENDING:
            self._orders.stop(w, why)  # it holds nothing that must finish first

    def _give_up(self, w: WorkerRecord, why: str, now: float) -> None:
        """The worker lives, as far as we know, but is of no use: kill it."""
        phase = w.phase
        self._orders.kill(w, why)
        if phase not in GOING:
            self._orders.ended.lost(w, why, now)
            self._failed(w, f"worker {w.id}: {why}", now, served=phase == "ready")

    def _failed(self, w: WorkerRecord, why: str, now: float, *, served: bool, died: bool = False) -> None:
        if w.canary:
            # What it tried is to blame, and ends with it: the pool itself is as it was.
            self.canary_failure = why
            return
        lived_s = None if w.warm_at is None else now - w.warm_at
        self._breaker.failed(now, lived_s=lived_s, jitter=self._jitter())
        self.condition.failed(why, at_start=lived_s is None, served=served, died=died, now=now)
        code = "worker_lost" if lived_s is not None else "worker_start_failed"
        self._orders.emit("pool.error", {"count": 1}, worker=w.id, slot=w.ordinal, code=code, reason=why)
        remainder = self._reconciler.stop_roll_out()
        if lived_s is None and remainder:
            self._orders.emit(
                "pool.error",
                {"count": 1},
                code="warmup_stopped",
                reason=f"the roll-out to {remainder} more workers stopped: {why}",
            )

    # --- after each event ------------------------------------------------------------------------------

    def _overdue(self, now: float) -> None:
        for w in self.roster:
            if w.deadline is None or now < w.deadline:
                continue
            if w.phase == "draining":
                self._orders.stop(w, f"{w.reason}; did not finish in time")
            elif w.phase in PENDING:
                self._give_up(w, f"not warm in time; last: {w.reason or w.phase}", now)
            else:
                self._orders.kill(w, w.reason)
