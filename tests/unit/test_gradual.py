"""A change of settings step by step: how many workers of each kind, and what clients send to which."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspool.core.dispatch.dispatcher import Dispatcher
from dspool.core.dispatch.ticket import DispatchConfig
from dspool.core.lifecycle import events as ev
from dspool.core.lifecycle.gradual import split
from dspool.messages import Member, Operation, Ping, Result, Share, WorkerStatus
from tests.unit.pool_bench import Bench

OLD, NEW = "the old settings", "the new settings"
percents = st.integers(1, 100)


# --- how many ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "percent", "new", "old"),
    [
        (0, 50, 0, 0),
        (1, 10, 1, 1),
        (1, 50, 1, 1),
        (1, 100, 1, 0),
        (2, 10, 1, 2),
        (2, 50, 1, 1),
        (2, 100, 2, 0),
        (3, 50, 2, 2),
        (10, 10, 1, 9),
        (10, 25, 3, 8),
        (10, 0, 1, 10),
    ],
)
def test_each_step_has_its_number_of_workers_with_both_settings(size, percent, new, old):
    assert split(size, percent) == (new, old)


@given(st.integers(1, 200), percents)
def test_a_step_never_has_fewer_workers_than_the_pool_and_at_most_one_more(size, percent):
    new, old = split(size, percent)
    assert new >= 1
    assert size <= new + old <= size + 1


# --- who -----------------------------------------------------------------------------------------------


class Changing(Bench):
    """A pool whose workers all have the old settings, under a supervisor with new ones."""

    def __init__(self, percent, *, settings=NEW, **config):
        super().__init__(**config)
        self.state.gradual.settings = OLD
        self.boot().obey()
        self.tell()
        self.state.gradual.settings = settings
        self.step(percent)

    def step(self, percent, settings=NEW):
        self.feed(ev.GradualStep(settings, percent))
        return self.done()

    def done(self):
        """Until all is done that follows, each worker having said what it has."""
        for _ in range(50):
            before = len(self.actions)
            self.obey()
            self.tell()
            if len(self.actions) == before and not self.todo:
                return self
        raise AssertionError("it does not come to rest")

    def tell(self):
        for w in self.state.roster.in_phase("ready", "spare"):
            had = w.status.settings if w.status is not None else self.state.gradual.settings
            self.feed(ev.HealthOk(w.id, WorkerStatus(w.id, w.ordinal, "ready", settings=had)))

    @property
    def recorded(self):
        return [a.value for a in self.of(ev.Persist) if a.key == "gradual"][-2:]

    @property
    def kinds(self):
        kinds = Counter(w.status.settings for w in self.state.roster.ready)
        return kinds[NEW], kinds[OLD]


def test_the_steps_of_two_workers_are_one_beside_them_then_half_then_all():
    b = Changing(10, pool_size=2)
    assert b.kinds == (1, 2)
    assert b.step(50).kinds == (1, 1)
    assert b.step(None).kinds == (2, 0)


def test_a_single_worker_is_only_replaced_at_the_end():
    b = Changing(10, pool_size=1)
    assert b.kinds == (1, 1)
    assert b.step(50).kinds == (1, 1)
    assert b.step(None).kinds == (1, 0)


def test_never_fewer_workers_than_the_pool_has_take_traffic_on_the_way():
    b = Changing(1, pool_size=4, max_pool_size=8)
    for percent in (10, 25, 50, 75, None):
        b.feed(ev.GradualStep(NEW, percent))
        while b.todo:
            b.carry_out(b.todo.pop(0))
            assert len(b.members) >= 4
        b.done()
    assert b.kinds == (4, 0)


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 99)), max_size=8))
def test_whatever_the_size_becomes_meanwhile_the_pool_comes_to_rest_with_it(moves):
    b = Changing(10, pool_size=4, max_pool_size=8)
    percent = 10
    for size, step in moves:
        percent = max(percent, step)
        b.feed(ev.ResizeRequested(size))
        b.step(percent)
        new, old = b.kinds
        assert new >= split(size, percent).new
        assert old <= split(size, percent).old
        assert size <= new + old <= size + 1
        assert b.status().gradual.reached
    assert b.step(None).kinds == (b.state.desired, 0)


def test_a_dead_old_worker_has_a_successor_with_the_new_settings():
    b = Changing(10, pool_size=2)
    dead = next(w.id for w in b.state.roster.ready if w.status.settings == OLD)
    b.feed(ev.WorkerDied(dead, "SIGKILL"))
    assert b.done().kinds == (1, 1)


def test_spares_have_the_new_settings_so_that_none_takes_the_place_of_the_worker_to_try():
    b = Changing(10, pool_size=2, spares=1)
    assert b.kinds == (1, 2)
    assert [w.status.settings for w in b.state.roster.spares] == [NEW]
    assert [a.worker_id for a in b.of(ev.Promote)][2:] == [w.id for w in b.state.roster.ready][2:]


def test_of_too_many_with_the_new_settings_one_of_those_goes_whatever_sessions_it_has():
    b = Changing(50, pool_size=4)
    for w in b.state.roster.ready:
        if w.status.settings == NEW:
            b.feed(ev.HealthOk(w.id, WorkerStatus(w.id, w.ordinal, "ready", settings=NEW, sessions=9)))
    b.feed(ev.ResizeRequested(2))
    assert b.done().kinds == (1, 1)


def test_a_step_that_lacks_a_worker_is_not_reached():
    b = Changing(10, pool_size=2)
    b.feed(ev.GradualStep(NEW, 50))
    b.feed(ev.ResizeRequested(4))
    assert not b.status().gradual.reached
    assert b.done().status().gradual.reached


def test_a_change_goes_back_when_the_workers_that_were_tried_have_the_other_settings():
    b = Changing(50, pool_size=2)
    b.state.gradual.settings = OLD
    b.feed(ev.GradualStep(OLD, 100))
    share = b.state.membership.share
    assert share.percent == 100
    assert all(b.state.roster.get(id).status.settings == OLD for id in share.workers)
    assert b.done().kinds == (0, 2)
    assert b.state.membership.share is None
    assert b.status().gradual is None
    assert b.recorded == [{OLD: 100}, None]


def test_a_record_about_other_settings_means_nothing_to_this_pool():
    b = Changing(10, pool_size=2, settings=OLD)
    assert b.recorded == [{NEW: 10}]
    assert b.status().gradual is None
    assert b.kinds == (0, 2)


def test_the_way_back_may_be_on_record_while_a_change_still_stands():
    b = Changing(50, pool_size=2)
    b.step(0).step(100, OLD)
    assert b.kinds == (1, 1)
    assert b.recorded[-1] == {NEW: 0, OLD: 100}
    b.step(10, "third")
    assert b.recorded[-1] == {NEW: 0, "third": 10}


@pytest.mark.parametrize("record", [None, 3, [], {}, {OLD: 10}, {NEW: "10"}])
def test_a_record_that_is_none_is_no_change(record):
    b = Bench(pool_size=2)
    b.state.gradual.settings = NEW
    b.feed(ev.Restored(gradual=record))
    assert b.state.gradual.percent is None


# --- what goes where -----------------------------------------------------------------------------------


class Sending:
    """A client of three workers, of which `c` has new settings."""

    def __init__(self, percent, slots=1000, new=("c",), **config):
        self.d = Dispatcher(DispatchConfig(**config))
        self.slots = slots
        self.share(percent, new)
        self.count = 0

    def share(self, percent, new=("c",)):
        members = [Member(id, number, "h", 1, self.slots) for number, id in enumerate("abc")]
        share = None if percent is None else Share(percent, tuple(new))
        self.d.members(members, share=share, now=0.0)

    def send(self, session=None, ends=True):
        """Where it goes; None: it waits."""
        self.count += 1
        id = f"o{self.count}"
        self.d.submit(Operation(id, Ping(), 30.0, session), idempotent=True, sink=None, now=0.0)
        sent = [(worker, t.operation.id) for worker, tickets in self.d.take().send.items() for t in tickets]
        if ends:
            for worker, operation in sent:
                self.d.finished(worker, Result(operation), now=0.0)
        self.d.take()
        return next((worker for worker, operation in sent if operation == id), None)


@given(percents, st.sampled_from(["lifo", "fifo", "least_loaded"]), st.integers(1, 400), st.integers(0, 200))
def test_of_any_row_of_operations_the_new_workers_get_at_most_their_share_and_one(
    percent, strategy, length, skip
):
    s = Sending(percent, strategy=strategy)
    went = [s.send() for _ in range(skip + length)][skip:]
    assert length * percent / 100 - 1 <= went.count("c") <= length * percent / 100 + 1


def test_what_one_side_has_no_room_for_goes_to_the_other():
    s = Sending(10, slots=2)
    assert Counter(s.send(ends=False) for _ in range(6)) == {"a": 2, "b": 2, "c": 2}
    assert s.send(ends=False) is None


def test_a_share_of_nothing_sends_nothing_and_one_without_workers_sends_all_to_the_others():
    assert "c" not in {Sending(0).send() for _ in range(50)}
    s = Sending(50, new=())
    assert None not in {s.send() for _ in range(20)}
    s = Sending(100, new=("c", "gone"))
    assert {s.send() for _ in range(20)} == {"c"}


def test_a_share_that_is_over_leaves_all_workers_alike():
    s = Sending(10, strategy="fifo")
    s.share(None)
    assert Counter(s.send() for _ in range(30)) == {"a": 10, "b": 10, "c": 10}


def test_sessions_find_the_same_side_from_every_client_and_stay_with_the_new_one_at_the_next_step():
    names = [f"s{number}" for number in range(2000)]
    at_10 = {name for name in names if Sending(10).send(name) == "c"}
    one, two = Sending(30), Sending(30)
    at_30 = {name for name in names if one.send(name) == "c"}
    assert {name for name in names if two.send(name) == "c"} == at_30
    assert at_10 < at_30
    assert 0.07 < len(at_10) / len(names) < 0.13
    assert 0.25 < len(at_30) / len(names) < 0.35


def test_a_session_stays_on_its_worker_whatever_the_share():
    s = Sending(None)
    homes = {f"s{number}": s.send(f"s{number}") for number in range(50)}
    s.share(50)
    assert {name: s.send(name) for name in homes} == homes
