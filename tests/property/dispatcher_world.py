"""A dispatcher among workers, other clients, a network and leases: what it decides is done, and checked."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from dspool.core.dispatch.dispatcher import DispatchConfig, Dispatcher
from dspool.errors import DeadlineExceeded, WorkerLost
from dspool.messages import Failure, Member, Result
from tests.property.dispatcher_model import MAX_QUEUE, RATE_LIMITED, SESSIONS, Op, SimWorker

LONGEST_REST_S = 1.0
HANDOVER_PAUSE_S = 1.0
PATIENCE_S = 5.0


class DispatcherWorld(RuleBasedStateMachine):
    @initialize(
        strategy=st.sampled_from(["lifo", "fifo", "least_loaded"]),
        affinity=st.sampled_from(["strict", "prefer"]),
        checkout=st.sampled_from([0.5, 5.0]),
        burst=st.sampled_from([0, 2, 100]),
        slots=st.lists(st.integers(1, 3), min_size=2, max_size=3),
    )
    def start(self, strategy, affinity, checkout, burst, slots):
        self.config = DispatchConfig(
            strategy=strategy,
            max_queue=MAX_QUEUE,
            checkout_timeout_s=checkout,
            budget_burst=burst,
            affinity=affinity,
        )
        self.d = Dispatcher(self.config)
        self.now = 100.0
        self.ops: dict[str, Op] = {}
        self.lines: dict[str, list[str]] = {session: [] for session in SESSIONS}
        self.last_started: dict[str, int] = {}
        self.leases: dict[str, str] = {}
        self.asked_at: dict[str, float] = {}
        self.paused = False
        self.closed = False
        self.last_fresh = 0
        self.workers: dict[str, SimWorker] = {}
        self.dead: dict[str, list[str]] = {}
        """By worker that died or was declared dead: what it held then."""
        self.deaths: Counter[tuple[str, str | None]] = Counter()
        """By request: how many workers died with it since one survived it."""
        self.workers_made = 0
        for each in slots:
            self._new_worker(each)
        self._publish()

    # --- the world around the dispatcher ---

    def _new_worker(self, slots):
        self.workers_made += 1
        self.workers[f"w{self.workers_made}"] = SimWorker(slots, capacity=slots)

    def _publish(self):
        members = [
            Member(worker_id=worker_id, ordinal=0, host="", port=0, slots=worker.slots)
            for worker_id, worker in self.workers.items()
            if worker.member
        ]
        finishing = [worker_id for worker_id, worker in self.workers.items() if not worker.member]
        self.d.members(members, finishing=finishing, paused=self.paused, now=self.now, random=0.5)
        self.perform()

    def _line(self, op_id):
        op = self.ops[op_id]
        return self.lines[op.session] if op.session else [op_id]

    def _bury(self, op_id):
        """It has ended and no worker has it."""
        op = self.ops[op_id]
        if op.session and op.ends and op.at is None and op_id in self.lines[op.session]:
            self.lines[op.session].remove(op_id)

    def _comes_back(self, op_id, *, bounced):
        op = self.ops[op_id]
        op.at = None
        op.pristine = False
        if bounced:
            op.bounces += 1
            if op.bounces > 4:
                op.rests_until = self.now + LONGEST_REST_S
        self._bury(op_id)

    def perform(self):
        """Carry out what the dispatcher decided, and check each decision."""
        actions = self.d.take()
        for end in actions.ends:
            op = self.ops[end.ticket.operation.id]
            assert op.ticket is end.ticket
            assert op.alive, "ended twice"
            assert (type(end.report) is Result) == (end.error is None)
            op.ends.append(end)
            if isinstance(end.error, DeadlineExceeded):
                assert self.now >= min(op.deadline, op.checkout_by)
            self._bury(end.ticket.operation.id)
        fresh = []
        for worker_id, tickets in actions.send.items():
            worker = self.workers[worker_id]
            assert worker.member, "sent to a worker that takes no traffic"
            assert self.d.running_on(worker_id) <= worker.slots
            for ticket in tickets:
                op_id = ticket.operation.id
                op = self.ops[op_id]
                assert op.alive
                assert op.at is None, "held by two workers"
                assert self.now < op.deadline
                assert self._line(op_id)[0] == op_id, "not its turn in its session"
                assert op.idempotent or not op.started, "not idempotent, and started before"
                assert ticket.worker == worker_id
                op.at = worker_id
                worker.inbox.append(op_id)
                if op.session is None and op.pristine:
                    fresh.append(ticket.number)
        if fresh:
            assert min(fresh) > self.last_fresh, "a younger operation went before an older one"
            self.last_fresh = max(fresh)
        for worker_id, op_ids in actions.cancel.items():
            for op_id in op_ids:
                assert self.ops[op_id].at == worker_id
                assert not self.ops[op_id].alive
        for worker in self.workers.values():
            worker.asked = [each for each in worker.asked if self.now - self.asked_at[each] < PATIENCE_S]
        for worker_id, sessions in actions.handover.items():
            assert self.config.affinity == "prefer"
            owner = self.workers[worker_id]
            assert owner.member
            assert self._room(worker_id) <= 0, "the owner has room itself"
            for session in sessions:
                assert self.d.owner_of(session) == worker_id
                assert self.ops[self.lines[session][0]].at is None
                assert all(session not in worker.asked for worker in self.workers.values()), (
                    "asked twice at once"
                )
                assert self.now - self.asked_at.get(session, 0.0) >= HANDOVER_PAUSE_S
                self.asked_at[session] = self.now
                owner.asked.append(session)

    def _room(self, worker_id):
        return self.workers[worker_id].capacity - self.d.running_on(worker_id)

    def _report_load(self, worker_id, exact):
        worker = self.workers[worker_id]
        running = len(worker.running) + worker.others
        own = len(worker.running)
        guess = self.d.running_on(worker_id) - len(self.d._matcher.send.get(worker_id, ()))
        if worker.member:
            others = max(0, running - (own if exact else guess))
            worker.capacity = worker.slots - others
            worker.refused = worker.refused and running >= worker.slots
            worker.silent_until = self.now + 0.1 if others and not worker.refused else None
        self.d.load(worker_id, running, worker.slots, own=own if exact else None, now=self.now)

    # --- what becomes of workers and of what they hold ---

    def _name(self, worker):
        return next(worker_id for worker_id, each in self.workers.items() if each is worker)

    def _read(self, worker_id, exact):
        worker = self.workers[worker_id]
        op_id = worker.inbox.pop(0)
        op = self.ops[op_id]
        owner = self.leases.get(op.session) if op.session else None
        if owner is not None and owner != worker_id:
            self._moved(worker_id, op_id, owner)
        elif len(worker.running) + worker.others >= worker.slots or not worker.member:
            self._comes_back(op_id, bounced=True)
            if worker.member:
                worker.capacity = self.d.running_on(worker_id) - 1
                worker.refused = True
                worker.silent_until = None
            self.d.busy(worker_id, op_id, now=self.now)
            self._report_load(worker_id, exact)
            self.perform()
        else:
            if op.session:
                assert not [
                    other
                    for each in self.workers.values()
                    for other in each.running
                    if self.ops[other].session == op.session
                ], "two operations of a session at once"
                assert op.ticket.number >= self.last_started.get(op.session, 0), "out of order in its session"
                self.last_started[op.session] = op.ticket.number
                self.leases[op.session] = worker_id
            op.started = True
            worker.running.append(op_id)

    def _moved(self, worker_id, op_id, owner):
        op = self.ops[op_id]
        self._comes_back(op_id, bounced=True)
        known = owner != worker_id and owner in self.workers and self.workers[owner].member
        if not known:
            op.rests_until = self.now + LONGEST_REST_S
        self.d.moved(worker_id, op_id, owner, now=self.now)
        self.perform()

    def _finish(self, worker_id, turn):
        worker = self.workers[worker_id]
        error, report = turn.error, turn.reports
        op_id = worker.running.pop(turn.pick % len(worker.running))
        op = self.ops[op_id]
        was_alive = op.alive
        self.deaths[op.request] = 0
        self._comes_back(op_id, bounced=False)
        if op.session and not worker.member and self.leases.get(op.session) == worker_id:
            del self.leases[op.session]
        # What becomes of it is known only after the call; a retry rests.
        op.rests_until = self.now + LONGEST_REST_S
        self.d.finished(
            worker_id, Failure(op_id, error) if error else Result(op_id), now=self.now, random=0.5
        )
        if report or worker.refused:
            self._report_load(worker_id, turn.exact)
        self.perform()
        if was_alive and op.alive:
            assert error is RATE_LIMITED
            assert op.idempotent
            op.retried = True
        if was_alive and not op.alive:
            assert op.ends[0].report is not None
            assert op.ends[0].worker == worker_id

    def _die(self, worker_id):
        alive_before = self._gone(worker_id)
        self.d.lost(worker_id, "killed", now=self.now, random=0.5)
        self.perform()
        self._ended_or_repeated(alive_before)

    def _gone(self, worker_id):
        """What it held and was not over."""
        worker = self.workers.pop(worker_id)
        held = [*worker.running, *worker.inbox]
        alive_before = [op_id for op_id in held if self.ops[op_id].alive]
        self.deaths.update({self.ops[op_id].request for op_id in held})
        for op_id in held:
            self._comes_back(op_id, bounced=False)
            self.ops[op_id].rests_until = self.now + LONGEST_REST_S
        self.leases = {session: owner for session, owner in self.leases.items() if owner != worker_id}
        self.dead[worker_id] = held
        return alive_before

    def _ended_or_repeated(self, alive_before):
        for op_id in alive_before:
            op = self.ops[op_id]
            if op.alive:
                assert op.idempotent
                op.retried = True
            else:
                assert isinstance(op.ends[0].error, WorkerLost)

    def _nothing_can_be_sent(self, worker_id):
        worker = self.workers[worker_id]
        unsent, worker.inbox = worker.inbox, []
        for op_id in unsent:
            self._comes_back(op_id, bounced=True)
        if worker.member and unsent:
            worker.capacity = self.d.running_on(worker_id) - len(unsent)
            worker.silent_until = self.now + 0.1
        self.d.not_sent(worker_id, unsent, now=self.now)
        self.perform()

    def _answer(self, worker_id, willing):
        worker = self.workers[worker_id]
        session = worker.asked.pop(0)
        granted = willing and not any(self.ops[op_id].session == session for op_id in worker.running)
        if granted and self.leases.get(session) == worker_id:
            del self.leases[session]
        first = self.lines[session][0] if self.lines[session] else None
        at = self.ops[first].at if first else None
        in_time = self.now < self.asked_at[session] + PATIENCE_S
        was = self.d.owner_of(session)
        self.d.handed_over(worker_id, session, granted, now=self.now)
        if granted and at != worker_id and was == worker_id and in_time:
            assert self.d.owner_of(session) != worker_id or self.ops[first].ticket.worker == worker_id
        if not granted:
            assert self.d.owner_of(session) == was
        self.perform()

    # --- what holds at all times ---

    def check(self):
        self.counts_are_right()
        self.no_worker_has_room_for_what_waits()

    @invariant()
    def counts_are_right(self):
        if hasattr(self, "d"):
            assert self.d.queued == sum(op.queued for op in self.ops.values())
            assert self.d.running == sum(op.alive and op.at is not None for op in self.ops.values())
            for worker_id, worker in self.workers.items():
                assert self.d.running_on(worker_id) == len(worker.inbox) + len(worker.running)

    @invariant()
    def no_worker_has_room_for_what_waits(self):
        if not hasattr(self, "d") or self.closed:
            return
        for op_id, op in self.ops.items():
            if not op.may_start(self.now) or self._line(op_id)[0] != op_id:
                continue
            owner = self.d.owner_of(op.session) if op.session else None
            for worker_id, worker in self.workers.items():
                if worker.member and owner in (None, worker_id):
                    assert self._room(worker_id) <= 0, f"{worker_id} has a free slot, {op_id} waits"

    @invariant()
    def every_operation_has_an_end_in_sight(self):
        if hasattr(self, "d"):
            alive = [op.deadline for op in self.ops.values() if op.alive]
            if alive:
                wake = self.d.next_wake()
                assert wake is not None
                assert wake <= min(alive)
