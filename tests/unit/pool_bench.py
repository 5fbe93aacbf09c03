"""A pool state without its supervisor: what it orders is carried out when a test says so."""

from __future__ import annotations

import itertools

from dspool.config import PoolConfig
from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.state import PoolState
from dspool.core.lifecycle.status import status_of
from dspool.messages import Member

ORDERS = (ev.StartWorker, ev.WarmWorker, ev.DrainWorker, ev.StopWorker)


class Bench:
    """A pool state whose workers do as they are told, when `obey` is called."""

    def __init__(self, **config):
        self.config = PoolConfig(**config)
        ids = itertools.count()
        self.state = PoolState(
            self.config, new_id=lambda ordinal: f"w{ordinal}.{next(ids)}", jitter=lambda: 1.0
        )
        self.now = 100.0
        self.actions = []
        self.todo = []

    def status(self):
        return status_of(self.state)

    def feed(self, event):
        out = self.state.handle(event, self.now)
        self.actions += out
        self.todo += out
        return out

    def boot(self):
        self.feed(ev.Booted())
        return self

    def tick(self, seconds):
        self.now += seconds
        return self.feed(ev.Tick())

    def obey(self, *kinds):
        """Carry out the orders given so far (only those of `kinds`, if any are named), and what follows from them."""
        while todo := [a for a in self.todo if not kinds or isinstance(a, kinds)]:
            for action in todo:
                self.todo.remove(action)
                self.carry_out(action)
        return self

    def carry_out(self, action):
        match action:
            case ev.StartWorker(worker_id, ordinal):
                self.started(worker_id, ordinal)
            case ev.WarmWorker(worker_id):
                self.feed(ev.WarmFinished(worker_id))
            case ev.DrainWorker(worker_id):
                self.feed(ev.Drained(worker_id))
            case ev.StopWorker(worker_id) | ev.KillWorker(worker_id):
                self.feed(ev.WorkerDied(worker_id, "told to"))

    def started(self, worker_id, ordinal):
        return self.feed(ev.WorkerStarted(worker_id, Member(worker_id, ordinal, "host", 1, 8)))

    def of(self, kind, within=None):
        return [a for a in (self.actions if within is None else within) if isinstance(a, kind)]

    def phases(self):
        return {w.ordinal: w.phase for w in sorted(self.state.roster, key=lambda w: w.ordinal)}

    def id(self, ordinal):
        return next(w.id for w in self.state.roster if w.ordinal == ordinal)

    @property
    def members(self):
        return [m.worker_id for m in self.state.membership.workers]


def adopted(ordinal, state):
    return ev.WorkerAdopted(f"old{ordinal}", ordinal, Member(f"old{ordinal}", ordinal, "host", 1, 8), state)
