"""The pool state machine against a world that starts, fails, hangs and kills workers as it likes."""

from __future__ import annotations

import contextlib
import itertools

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dspool.config import PoolConfig
from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.state import PoolState
from dspool.errors import InvalidRequest, UnknownWorker
from dspool.messages import Member, WorkerStatus

MIN, MAX, OVERFLOW = 1, 5, 2


class Process:
    """What really runs: known to the world, not to the pool."""

    def __init__(self, worker_id: str, ordinal: int) -> None:
        self.worker_id = worker_id
        self.ordinal = ordinal
        self.listening = False
        self.warming = False
        self.warm = False
        self.draining = False
        self.told_to_go = False
        self.killed = False
        # The first ones are from before a change of the pool's settings.
        self.settings = "before" if int(worker_id.rpartition("-")[2]) < 4 else "now"


class PoolAndWorld(RuleBasedStateMachine):
    @initialize(
        strategy=st.sampled_from(["parallel", "sequential", "staged"]),
        spares=st.integers(0, 2),
        size=st.integers(MIN, MAX),
        lazy=st.booleans(),
        max_age=st.sampled_from([None, 200.0]),
    )
    def boot(self, strategy, spares, size, lazy, max_age):
        self.config = PoolConfig(
            pool_size=size,
            min_pool_size=MIN,
            max_pool_size=MAX,
            max_overflow=OVERFLOW,
            spares=spares,
            lazy=lazy,
            warmup={"strategy": strategy, "worker_deadline_s": 20.0},
            init_timeout_s=20.0,
            recycle={"max_age_s": max_age, "max_operations": 100},
            restart={"intensity": 3, "period_s": 30.0},
        )
        self.ids = itertools.count()
        self.now = 0.0
        self.state = PoolState(
            self.config, new_id=lambda ordinal: f"w{ordinal}-{next(self.ids)}", jitter=lambda: 0.5
        )
        self.state.gradual.settings = "now"
        self.world: dict[str, Process] = {}
        self.versions: list[int] = []
        self.published = None
        self.served: set[str] = set()
        """Every worker that clients ever heard of."""
        self.ceiling = 0
        self.feed(ev.Booted())

    def feed(self, event):
        for action in self.state.handle(event, self.now):
            match action:
                case ev.StartWorker(worker_id, ordinal):
                    assert all(p.ordinal != ordinal for p in self.world.values()), (
                        "two living workers with one ordinal"
                    )
                    self.world[worker_id] = Process(worker_id, ordinal)
                case ev.WarmWorker(worker_id):
                    self.world[worker_id].warming = True
                case ev.Promote(worker_id):
                    assert self.world[worker_id].warm
                case ev.DrainWorker(worker_id):
                    self.world[worker_id].draining = True
                case ev.StopWorker(worker_id) | ev.KillWorker(worker_id):
                    assert worker_id in self.world, "an order to a worker that is gone"
                    self.world[worker_id].told_to_go = True
                    self.world[worker_id].killed |= isinstance(action, ev.KillWorker)
                case ev.PublishMembership(membership):
                    self.versions.append(membership.version)
                    self.published = membership
                    self.served |= {member.worker_id for member in membership.workers}
                case ev.Persist("version_ceiling", ceiling):
                    self.ceiling = ceiling

    def some(self, data, **flags):
        found = [
            p for p in self.world.values() if all(getattr(p, name) == value for name, value in flags.items())
        ]
        return data.draw(st.sampled_from(found)) if found else None

    # --- what the world does -----------------------------------------------------------------------

    @rule(data=st.data(), ok=st.booleans())
    def a_start_ends(self, data, ok):
        if p := self.some(data, listening=False):
            if ok:
                p.listening = True
                self.feed(ev.WorkerStarted(p.worker_id, Member(p.worker_id, p.ordinal, "h", 1, 8)))
            else:
                self.feed(ev.WorkerFailed(p.worker_id, "no"))

    @rule(data=st.data(), ok=st.sampled_from([True, True, False]))
    def a_warm_up_ends(self, data, ok):
        if p := self.some(data, warming=True):
            p.warming = False
            p.warm = ok
            self.feed(ev.WarmFinished(p.worker_id) if ok else ev.WorkerFailed(p.worker_id, "step failed"))

    @rule(data=st.data())
    def any_worker_dies(self, data):
        if p := self.some(data):
            del self.world[p.worker_id]
            self.feed(ev.WorkerDied(p.worker_id, "SIGKILL"))

    @rule(data=st.data())
    def a_worker_does_as_told_and_goes(self, data):
        if p := self.some(data, told_to_go=True):
            del self.world[p.worker_id]
            self.feed(ev.WorkerDied(p.worker_id, "stopped"))

    @rule(data=st.data())
    def a_drain_ends(self, data):
        if p := self.some(data, draining=True):
            self.feed(ev.Drained(p.worker_id))

    @rule(
        data=st.data(),
        ok=st.booleans(),
        operations=st.integers(0, 150),
        says=st.sampled_from(["ready", "ready", "failed"]),
    )
    def a_health_check_ends(self, data, ok, operations, says):
        if p := self.some(data, listening=True):
            status = WorkerStatus(p.worker_id, p.ordinal, says, operations=operations, settings=p.settings)
            self.feed(ev.HealthOk(p.worker_id, status) if ok else ev.HealthMissed(p.worker_id, "late"))

    @rule(data=st.data())
    def a_client_reports_a_worker(self, data):
        if p := self.some(data):
            self.feed(ev.Suspected(p.worker_id, "connection refused"))

    @rule(seconds=st.sampled_from([0.01, 0.2, 3.0, 12.0, 60.0]))
    def time_passes(self, seconds):
        self.now += seconds
        self.feed(ev.Tick())

    # --- what people do ----------------------------------------------------------------------------

    @rule(size=st.integers(MIN - 1, MAX + 1))
    def somebody_resizes(self, size):
        before = self.state.desired
        try:
            self.feed(ev.ResizeRequested(size))
            assert MIN <= size <= MAX
            assert self.state.desired == size
        except InvalidRequest:
            assert not MIN <= size <= MAX
            assert self.state.desired == before

    @rule(size=st.integers(-1, MAX + 3), overflow=st.integers(-1, OVERFLOW + 2))
    def sizing_decides(self, size, overflow):
        self.feed(ev.SizingDecided(size, overflow))
        assert MIN <= self.state.desired <= MAX
        assert 0 <= self.state.overflow <= OVERFLOW

    @rule(data=st.data(), drain=st.booleans())
    def somebody_drains_or_restarts_a_worker(self, data, drain):
        if p := self.some(data):
            with contextlib.suppress(UnknownWorker):
                self.feed(ev.DrainRequested(p.worker_id) if drain else ev.RestartRequested(p.worker_id))

    @rule(paused=st.booleans())
    def somebody_pauses_or_resumes(self, paused):
        self.feed(ev.PauseRequested(paused))

    @rule(settings=st.sampled_from(["now", "now", "others"]), percent=st.none() | st.integers(0, 100))
    def a_change_moves(self, settings, percent):
        self.feed(ev.GradualStep(settings, percent))

    @rule()
    def somebody_wakes_it(self):
        self.feed(ev.Woken())

    @rule(ahead=st.integers(-5, 20))
    def a_client_knows_a_version(self, ahead):
        self.feed(ev.VersionSeen(self.state.membership.version + ahead))

    # --- what must hold ----------------------------------------------------------------------------

    @precondition(lambda self: hasattr(self, "state"))
    @invariant()
    def no_two_living_workers_have_one_ordinal(self):
        ordinals = [w.ordinal for w in self.state.roster]
        assert len(ordinals) == len(set(ordinals))

    @precondition(lambda self: hasattr(self, "state"))
    @invariant()
    def every_living_worker_is_known(self):
        assert self.world.keys() == {w.id for w in self.state.roster}

    @precondition(lambda self: hasattr(self, "state"))
    @invariant()
    def every_worker_is_owned_or_told_to_go(self):
        for w in self.state.roster:
            assert (w.phase in ("stopped", "failed")) == self.world[w.id].told_to_go

    @precondition(lambda self: hasattr(self, "state"))
    @invariant()
    def only_warm_living_workers_are_in_the_membership(self):
        assert self.published == self.state.membership
        for member in self.published.workers:
            assert self.world[member.worker_id].warm
            assert not self.world[member.worker_id].told_to_go
            assert not self.world[member.worker_id].draining

    @precondition(lambda self: hasattr(self, "state"))
    @invariant()
    def clients_are_told_of_each_worker_that_served_whether_to_wait_for_it(self):
        for worker_id in self.served:
            waits = worker_id in self.world and not self.world[worker_id].killed
            assert self.published.lives(worker_id) == waits
        assert set(self.published.finishing) <= self.served

    @precondition(lambda self: hasattr(self, "state"))
    @invariant()
    def the_membership_version_only_grows_and_is_written_down_before(self):
        assert all(a < b for a, b in itertools.pairwise(self.versions))
        assert self.versions[-1] <= self.ceiling

    @precondition(lambda self: hasattr(self, "state"))
    @invariant()
    def never_many_more_workers_than_wanted(self):
        useful = [w for w in self.state.roster if w.phase not in ("draining", "stopped", "failed")]
        # One more than wanted while one is replaced, and one that is tried beside the others.
        assert len(useful) <= MAX + OVERFLOW + self.config.spares + 2

    @precondition(lambda self: hasattr(self, "state"))
    @invariant()
    def clients_are_told_of_a_share_just_while_a_change_stands(self):
        share, percent = self.published.share, self.state.gradual.percent
        assert (None if share is None else share.percent) == percent
        if share is not None:
            assert set(share.workers) <= {member.worker_id for member in self.published.workers}

    def teardown(self):
        """Once nothing fails any more, the pool reaches the size it wants, and then rests."""
        if not hasattr(self, "state"):
            return
        self.feed(ev.Woken())
        self.feed(ev.GradualStep("now", None))
        for _ in range(400):
            self.cooperate()
            if self.unfinished():
                continue
            if self.is_full() and not self.state.condition.degraded:
                break
            due = self.state.next_due(self.now)
            self.now = max(self.now + 0.01, due if due is not None else self.now)
            self.feed(ev.Tick())
        wanted = self.state.desired + self.state.overflow
        assert len(self.state.roster.ready) == wanted == len(self.state.membership.workers)
        assert len(self.state.roster.spares) == self.config.spares
        assert len(self.world) == wanted + self.config.spares
        assert self.state.condition.degraded == ""

    def unfinished(self):
        return [p for p in self.world.values() if not p.listening or p.warming or p.draining or p.told_to_go]

    def is_full(self):
        full = len(self.state.roster.ready) == self.state.target
        return full and len(self.state.roster.spares) == self.config.spares

    def cooperate(self):
        for p in list(self.world.values()):
            if p.told_to_go:
                del self.world[p.worker_id]
                self.feed(ev.WorkerDied(p.worker_id, "stopped"))
            elif p.draining:
                self.feed(ev.Drained(p.worker_id))
            elif not p.listening:
                p.listening = True
                self.feed(ev.WorkerStarted(p.worker_id, Member(p.worker_id, p.ordinal, "h", 1, 8)))
            elif p.warming:
                p.warming, p.warm = False, True
                self.feed(ev.WarmFinished(p.worker_id))


TestPoolAndWorld = PoolAndWorld.TestCase
TestPoolAndWorld.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
