"""A dispatcher on a clock of its own, and all that it has decided so far."""

from __future__ import annotations

import itertools

from dspool.core.dispatch.dispatcher import DispatchConfig, Dispatcher
from dspool.messages import Failure, Member, Operation, Ping, Result

RATE_LIMITED = {"code": "model_rate_limited", "message": "", "details": {}}


def members(**slots):
    return [Member(worker_id=name, ordinal=0, host="", port=0, slots=count) for name, count in slots.items()]


class World:
    """A dispatcher, a clock, and what it has decided so far."""

    def __init__(self, config=None, **slots):
        self.d = Dispatcher(config or DispatchConfig())
        self.now = 0.0
        self.sent: list[tuple[str, str]] = []
        self.ends: dict[str, object] = {}
        self.cancelled: list[tuple[str, str]] = []
        self.asked: list[tuple[str, str]] = []
        self._ids = itertools.count(1)
        self.members(**slots)

    def act(self):
        send, cancel, ends, handover = self.d.take()
        new = [(worker, ticket.operation.id) for worker, tickets in send.items() for ticket in tickets]
        self.sent += new
        self.cancelled += [(worker, each) for worker, ids in cancel.items() for each in ids]
        self.asked += [(worker, session) for worker, sessions in handover.items() for session in sessions]
        for end in ends:
            assert end.ticket.operation.id not in self.ends
            self.ends[end.ticket.operation.id] = end.error or end.report
        return new

    def members(self, **slots):
        self.d.members(members(**slots), now=self.now)
        return self.act()

    def submit(self, session=None, *, timeout=30.0, idempotent=True, name=None):
        name = name or f"o{next(self._ids)}"
        self.d.submit(
            Operation(name, Ping(), timeout, session), idempotent=idempotent, sink=None, now=self.now
        )
        return self.act()

    def finish(self, worker, name, error=None):
        self.d.finished(worker, Failure(name, error) if error else Result(name), now=self.now, random=0.0)
        return self.act()

    def do(self, event, *args, **kwargs):
        getattr(self.d, event)(*args, now=self.now, **kwargs)
        return self.act()

    def tick(self, seconds):
        self.now += seconds
        self.d.tick(self.now)
        return self.act()
