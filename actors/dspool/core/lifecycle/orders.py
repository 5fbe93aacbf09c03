"""The orders a pool gives to its workers. Each changes the worker's record and adds its actions, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.ended import EndedWorkers
from dspool.core.lifecycle.roster import Roster, WorkerRecord
from dspool.messages import JSON, Member, Membership, Share

if TYPE_CHECKING:
    from dspool.config import PoolConfig

STOP_GRACE_S = 5.0
"""How long a worker may take to exit, or a kill to take effect, before the next kill."""
WARM_GRACE_S = 5.0
"""The supervisor ends a warm-up at its deadline; the machine steps in this much later if it did not."""
VERSIONS_RESERVED = 1000
"""Membership versions persisted in advance: publishing never waits for the store."""


class Orders:
    """Collects the actions of one event in `out`; `begin` starts the next."""

    def __init__(self, config: PoolConfig, roster: Roster, new_id: Callable[[int], str]) -> None:
        self._config = config
        self._roster = roster
        self._new_id = new_id
        self._last_roster: object = None
        self.ceiling = 0
        """The highest membership version that is persisted as taken."""
        self.membership = Membership(version=0)
        self.ended = EndedWorkers()
        self.now = 0.0
        self.out: list[ev.Action] = []

    def begin(self, now: float) -> list[ev.Action]:
        self.now, self.out = now, []
        return self.out

    def emit(
        self, name: str, measurements: dict[str, float] | None = None, **metadata: str | int | bool
    ) -> None:
        self.out.append(ev.Emit(name, measurements or {}, dict(metadata)))

    def persist(self, key: str, value: JSON) -> None:
        self.out.append(ev.Persist(key, value))

    # --- a worker's life, in order ---------------------------------------------------------------------

    def start(self, *, canary: bool = False) -> None:
        ordinal = self._roster.free_ordinal()
        w = WorkerRecord(id=self._new_id(ordinal), ordinal=ordinal, phase="starting", started_at=self.now)
        w.deadline, w.canary = self.now + self._config.init_timeout_s, canary
        self._roster.add(w)
        self.out.append(ev.StartWorker(w.id, ordinal))

    def warm(self, w: WorkerRecord) -> None:
        w.phase = "warming"
        w.deadline = self.now + self._config.warmup.worker_deadline_s + WARM_GRACE_S
        self.out.append(ev.WarmWorker(w.id))

    def keep(self, w: WorkerRecord) -> None:
        """The worker is warm: a spare, until it is promoted (perhaps in this same event)."""
        w.phase, w.deadline, w.reason, w.warm_at = "spare", None, "", self.now
        self.emit("worker.init", {"duration_s": self.now - w.started_at}, worker=w.id, slot=w.ordinal)

    def promote(self, w: WorkerRecord) -> None:
        w.phase, w.served = "ready", True
        if not w.canary:
            self.ended.promoted(w, self.now)
        self.out.append(ev.Promote(w.id, w.ordinal))

    def drain(self, w: WorkerRecord, why: str) -> None:
        # No operation outlives its deadline, so after the longest one there is nothing left to wait for.
        limit = self._config.operation_timeout_s
        w.phase, w.reason, w.deadline = "draining", why, self.now + limit + STOP_GRACE_S
        self.out.append(ev.DrainWorker(w.id, limit))

    def stop(self, w: WorkerRecord, why: str) -> None:
        w.phase, w.reason, w.deadline = "stopped", why, self.now + STOP_GRACE_S
        self.out.append(ev.StopWorker(w.id))

    def kill(self, w: WorkerRecord, why: str) -> None:
        w.phase, w.reason, w.deadline = "failed", why, self.now + STOP_GRACE_S
        # Leases go before its death is certain: a worker out of reach must not keep sessions from moving. Epochs in
        # the store stop it from changing them afterwards.
        self.out += [ev.KillWorker(w.id, why), ev.FreeLeases(w.id)]

    def bury(self, w: WorkerRecord, cause: str) -> None:
        self._roster.remove(w.id)
        self.ended.ended(w, cause, self.now)
        self.out.append(ev.FreeLeases(w.id))
        numbers = {
            "age_s": self.now - w.started_at,
            "operations": float(w.status.operations if w.status else 0),
        }
        self.emit("worker.terminate", numbers, worker=w.id, slot=w.ordinal, reason=w.reason or cause)

    # --- publication -----------------------------------------------------------------------------------

    def publish(
        self,
        *,
        paused: bool,
        closed: bool,
        programs: dict[str, int],
        share: Share | None = None,
        at_least: int = 0,
    ) -> None:
        """Publishes the membership if it changed or its version is not above `at_least`."""
        workers = tuple(sorted(self._serving(), key=lambda member: member.ordinal))
        finishing = tuple(w.id for w in self._roster.finishing)
        old = self.membership
        content = (old.workers, old.paused, old.closed, old.programs, old.finishing, old.share)
        if at_least < old.version and content == (workers, paused, closed, programs, finishing, share):
            return
        version = max(old.version, at_least) + 1
        if version + VERSIONS_RESERVED // 2 > self.ceiling:
            self.ceiling = version + VERSIONS_RESERVED
            self.persist("version_ceiling", self.ceiling)
        self.membership = Membership(version, workers, paused, closed, dict(programs), finishing, share)
        # First of all actions: nothing that follows may keep it from the clients.
        self.out.insert(0, ev.PublishMembership(self.membership))

    def write_roster(self) -> None:
        """Persists who is warm, if that changed, so that a later supervisor adopts the workers as they are."""
        snapshot = self._roster.snapshot()
        if snapshot != self._last_roster:
            self._last_roster = snapshot
            self.persist("roster", snapshot)

    def _serving(self) -> list[Member]:
        return [w.member for w in self._roster.ready if w.member is not None]
