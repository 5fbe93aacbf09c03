"""The dispatcher against a small model of workers, other clients, a network, leases and time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dspool.core.dispatch.dispatcher import DispatchConfig, Dispatcher, Ticket, TicketEnd
from dspool.errors import (
    Conflict,
    DeadlineExceeded,
    PoisonRequest,
    PoolClosed,
    PoolPaused,
    QueueFull,
    WorkerLost,
)
from dspool.messages import ExecuteProgram, Failure, Member, Operation, Ping, Result

SESSIONS = ("s1", "s2", "s3")
LONGEST_REST_S = 1.0
HANDOVER_PAUSE_S = 1.0
PATIENCE_S = 5.0
MAX_QUEUE = 12

RATE_LIMITED = {"code": "model_rate_limited", "message": "", "details": {"retry_after_s": 0.3}}
PROGRAM_FAILED = {"code": "program_error", "message": "", "details": {}}
CANCELLED = {"code": "cancelled", "message": "", "details": {}}


@dataclass
class Op:
    """What the model knows of one operation."""

    ticket: Ticket
    session: str | None
    idempotent: bool
    deadline: float
    checkout_by: float
    started: bool = False
    retried: bool = False
    pristine: bool = True
    """Never came back from a worker."""
    bounces: int = 0
    at: str | None = None
    """The worker that has it, on its way there included; stays set after an early end until the worker is done."""
    rests_until: float = 0.0
    """The longest it may rest before its next attempt."""
    ends: list[TicketEnd] = field(default_factory=list)

    @property
    def request(self) -> tuple[str, str | None]:
        """What is the same for two callers that ask for the same."""
        return self.ticket.operation.command.program, self.session

    @property
    def alive(self) -> bool:
        return not self.ends

    @property
    def queued(self) -> bool:
        return self.alive and self.at is None

    def may_start(self, now: float) -> bool:
        in_time = now < (self.deadline if self.retried else self.checkout_by)
        return self.queued and in_time and self.rests_until < now


@dataclass
class SimWorker:
    slots: int
    member: bool = True
    others: int = 0
    """Slots that other clients fill, in truth."""
    capacity: int = 0
    """Slots that the dispatcher may fill, from what it was told."""
    silent_until: float | None = None
    """Until then the dispatcher believes that it is (partly) full or unreachable."""
    refused: bool = False
    """It said busy to this client, and has to tell when it has room."""
    inbox: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


class Turn(NamedTuple):
    """One step of one worker."""

    ends: bool = False
    pick: int = 0
    error: dict | None = None
    exact: bool = True
    reports: bool = True
    """Whether its load comes with the end; always if it had refused something and has room now."""


TURNS = st.builds(
    Turn,
    ends=st.booleans(),
    pick=st.integers(0, 5),
    error=st.sampled_from([None, RATE_LIMITED, RATE_LIMITED, PROGRAM_FAILED, CANCELLED]),
    exact=st.booleans(),
    reports=st.booleans(),
)


SUBMISSIONS = st.tuples(
    st.sampled_from([None, None, *SESSIONS]),
    st.sampled_from([True, True, False]),
    st.sampled_from([30.0, 30.0, 3.0, 1.0, 0.05, 0.0]),
    st.sampled_from([None, None, "the same"]),
)


class DispatcherMachine(RuleBasedStateMachine):
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

    # --- rules: this client ---

    @rule(wanted=st.lists(SUBMISSIONS, min_size=1, max_size=8))
    def submit(self, wanted):
        for session, idempotent, timeout, program in wanted:
            op_id = f"o{len(self.ops) + 1}"
            operation = Operation(op_id, ExecuteProgram(program or op_id, {}), timeout, session)
            arguments = {"idempotent": idempotent, "sink": None, "now": self.now}
            if self.closed:
                with pytest.raises(PoolClosed):
                    self.d.submit(operation, **arguments)
                return
            if self.paused:
                with pytest.raises(PoolPaused):
                    self.d.submit(operation, **arguments)
                return
            if self.d.queued >= MAX_QUEUE:
                with pytest.raises(QueueFull) as refused:
                    self.d.submit(operation, **arguments)
                assert 0.1 <= refused.value.retry_after_s <= 30.0
                return
            try:
                ticket = self.d.submit(operation, **arguments)
            except PoisonRequest:
                assert program, "nobody has sent this before"
                assert self.deaths[program, session] >= self.config.attempts
                continue
            deadline = self.now + timeout
            checkout_by = min(deadline, self.now + self.config.checkout_timeout_s)
            self.ops[operation.id] = Op(ticket, session, idempotent, deadline, checkout_by)
            if session:
                self.lines[session].append(operation.id)
            self.perform()

    @rule(data=st.data())
    def submit_an_id_in_use(self, data):
        used = [op_id for op_id, op in self.ops.items() if op.alive or op.at]
        if used and not self.closed and not self.paused and self.d.queued < MAX_QUEUE:
            with pytest.raises(Conflict):
                self.d.submit(
                    Operation(data.draw(st.sampled_from(used)), Ping(), 5.0),
                    idempotent=True,
                    sink=None,
                    now=self.now,
                )

    @rule(data=st.data())
    def cancel(self, data):
        alive = [op_id for op_id, op in self.ops.items() if op.alive]
        if alive:
            op_id = data.draw(st.sampled_from(alive))
            self.d.cancel(op_id, now=self.now)
            self.perform()
            assert not self.ops[op_id].alive

    @rule(step=st.sampled_from([0.01, 0.05, 0.11, 0.11, 0.4, 1.0, 4.0]))
    def time_passes(self, step):
        self.now += step
        self._tick()
        if step > 0.1 and not self.closed:
            self._nothing_waits_for_a_slot_that_is_really_free()

    def _nothing_waits_for_a_slot_that_is_really_free(self):
        for op_id, op in self.ops.items():
            if op.may_start(self.now) and self._line(op_id)[0] == op_id:
                owner = self.d.owner_of(op.session) if op.session else None
                for worker_id, worker in self.workers.items():
                    if worker.member and owner in (None, worker_id):
                        taken = worker.others + len(worker.running) + len(worker.inbox)
                        assert taken >= worker.slots, f"{op_id} waits, {worker_id} really has a free slot"

    @rule()
    def time_passes_until_there_is_something_to_do(self):
        wake = self.d.next_wake()
        if wake is not None:
            overdue = any(op.checkout_by <= self.now and op.alive for op in self.ops.values())
            assert wake > self.now or overdue
            self.now = max(self.now, wake)
            self._tick()

    def _tick(self):
        for worker in self.workers.values():
            if worker.silent_until is not None and worker.silent_until <= self.now:
                worker.silent_until = None
                worker.capacity = worker.slots
        self.d.tick(self.now)
        self.perform()
        for op in self.ops.values():
            if op.alive:
                assert op.deadline > self.now, "alive past its deadline"
                assert not op.queued or op.retried or op.checkout_by > self.now, (
                    "waits past its checkout timeout"
                )

    @precondition(lambda self: len(self.ops) > 40)
    @rule()
    def close(self):
        self.closed = True
        self.d.close(now=self.now)
        self.perform()
        assert not any(op.alive for op in self.ops.values())
        assert self.d.queued == self.d.running == 0

    # --- rules: the workers ---

    @rule(turns=st.lists(TURNS, min_size=4, max_size=16))
    def workers_work(self, turns):
        """Workers read what was sent, one operation at a time, and end what they run, in any order."""
        for turn in turns:
            ready = [
                worker for worker in self.workers.values() if (worker.running if turn.ends else worker.inbox)
            ]
            if ready:
                worker_id = self._name(ready[turn.pick % len(ready)])
                if turn.ends:
                    self._finish(worker_id, turn)
                else:
                    self._read(worker_id, turn.exact)
                self.check()

    @rule(
        wanted=st.lists(SUBMISSIONS, min_size=2, max_size=8), turns=st.lists(TURNS, min_size=4, max_size=16)
    )
    def busy_times(self, wanted, turns):
        self.submit(wanted)
        self.check()
        self.workers_work(turns)

    @rule(
        wanted=st.lists(SUBMISSIONS, min_size=2, max_size=8), turns=st.lists(TURNS, min_size=4, max_size=16)
    )
    def more_busy_times(self, wanted, turns):
        self.busy_times(wanted, turns)

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

    @rule(data=st.data())
    def worker_names_some_other_owner(self, data):
        ready = [
            worker_id
            for worker_id, worker in self.workers.items()
            if worker.inbox and self.ops[worker.inbox[0]].session is not None
        ]
        if ready:
            worker_id = data.draw(st.sampled_from(ready))
            op_id = self.workers[worker_id].inbox.pop(0)
            self._moved(worker_id, op_id, data.draw(st.sampled_from([*self.workers, "unheard-of"])))

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

    @rule(data=st.data(), others=st.integers(0, 3), report=st.sampled_from([None, True, False]))
    def other_clients_come_and_go(self, data, others, report):
        if self.workers:
            worker_id = data.draw(st.sampled_from(list(self.workers)))
            worker = self.workers[worker_id]
            worker.others = max(0, min(others, worker.slots - len(worker.running)))
            freed = len(worker.running) + worker.others < worker.slots
            if report is not None or (worker.refused and freed):
                self._report_load(worker_id, bool(report))
                self.perform()

    @precondition(lambda self: self.workers)
    @rule(
        data=st.data(), what=st.sampled_from(["dies", "joins", "dies unreachable"]), slots=st.integers(1, 3)
    )
    def a_worker_dies_or_joins(self, data, what, slots):
        if what == "joins":
            if len(self.workers) < 4:
                self._new_worker(slots)
                self._publish()
            return
        worker_id = data.draw(st.sampled_from(list(self.workers)))
        if what == "dies unreachable":
            self._nothing_can_be_sent(worker_id)
        self._die(worker_id)
        if not self.workers:
            self._new_worker(slots)
            self._publish()

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

    @precondition(lambda self: self.dead)
    @rule(data=st.data(), error=st.sampled_from([None, RATE_LIMITED]), reports=st.booleans())
    def a_dead_worker_thaws_and_says_what_became_of_what_it_held(self, data, error, reports):
        """Its connection was cut; should a word of it get through all the same, it changes nothing."""
        worker_id = data.draw(st.sampled_from(list(self.dead)))
        queued, running = self.d.queued, self.d.running
        for op_id in self.dead[worker_id]:
            self.d.finished(
                worker_id, Failure(op_id, error) if error else Result(op_id), now=self.now, random=0.5
            )
        if reports:
            self.d.load(worker_id, 0, 3, own=0, now=self.now)
        assert (self.d.queued, self.d.running) == (queued, running)
        self.perform()

    @rule(
        data=st.data(),
        paused=st.sampled_from([False, False, False, False, False, True]),
        slots=st.integers(1, 3),
        deadly=st.sampled_from([False, False, True]),
    )
    def membership_changes(self, data, paused, slots, deadly):
        """Any number of workers leave, come back or are declared dead in one change, one may join in it."""
        dying = [
            worker_id for worker_id in self.workers if deadly and data.draw(st.sampled_from([True, False]))
        ]
        alive_before = [op_id for worker_id in dying for op_id in self._gone(worker_id)]
        if dying and len(self.workers) < 4 and (not self.workers or data.draw(st.booleans())):
            self._new_worker(slots)
        for worker_id, worker in self.workers.items():
            stays = data.draw(st.sampled_from([True, True, False]))
            if stays and not worker.member:
                worker.capacity = worker.slots
                worker.silent_until, worker.refused = None, False
            if not stays:
                worker.asked.clear()
                busy_with = {self.ops[op_id].session for op_id in worker.running}
                self.leases = {
                    session: owner
                    for session, owner in self.leases.items()
                    if owner != worker_id or session in busy_with
                }
            worker.member = stays
        self.paused = paused
        self._publish()
        self._ended_or_repeated(alive_before)
        assert all(self.d.running_on(worker_id) == 0 for worker_id in dying)

    @rule(data=st.data())
    def nothing_can_be_sent_to_a_worker(self, data):
        ready = [worker_id for worker_id, worker in self.workers.items() if worker.inbox]
        if ready:
            self._nothing_can_be_sent(data.draw(st.sampled_from(ready)))

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

    @rule(data=st.data(), willing=st.booleans())
    def worker_answers_a_handover(self, data, willing):
        ready = [worker_id for worker_id, worker in self.workers.items() if worker.asked]
        if ready:
            self._answer(data.draw(st.sampled_from(ready)), willing)

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

    def teardown(self):
        """Faults stop: with nothing but workers that work and the wake-ups it asks for, everything ends."""
        if not hasattr(self, "d"):
            return
        for _ in range(2000):
            if not any(op.alive or op.at for op in self.ops.values()):
                break
            for worker_id, worker in list(self.workers.items()):
                worker.others = 0
                while worker.asked:
                    self._answer(worker_id, True)
                while worker.inbox:
                    self._read(worker_id, True)
                while worker.running:
                    self._finish(worker_id, Turn(ends=True, reports=True))
            wake = self.d.next_wake()
            if wake is not None:
                self.now = max(self.now, wake)
                self._tick()
        assert all(len(op.ends) == 1 for op in self.ops.values())
        assert self.d.queued == self.d.running == 0
        assert all(self.d.running_on(worker_id) == 0 for worker_id in self.workers)
        assert len(self.d._matcher.sessions) == 0
        assert not self.d._abandoned


DispatcherMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestDispatcherAgainstTheModel = DispatcherMachine.TestCase
