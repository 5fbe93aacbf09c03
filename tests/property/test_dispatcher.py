"""The dispatcher against a small model of workers, other clients, a network, leases and time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from dspool.errors import Conflict, PoisonRequest, PoolClosed, PoolPaused, QueueFull
from dspool.messages import ExecuteProgram, Failure, Operation, Ping, Result
from tests.property.dispatcher_model import MAX_QUEUE, RATE_LIMITED, SUBMISSIONS, TURNS, Op, Turn
from tests.property.dispatcher_world import DispatcherWorld


class DispatcherMachine(DispatcherWorld):
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

    @rule(data=st.data(), willing=st.booleans())
    def worker_answers_a_handover(self, data, willing):
        ready = [worker_id for worker_id, worker in self.workers.items() if worker.asked]
        if ready:
            self._answer(data.draw(st.sampled_from(ready)), willing)

    # --- how it ends ---

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
