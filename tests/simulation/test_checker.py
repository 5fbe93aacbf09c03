"""The checker finds what is wrong in histories made by hand, and nothing in right ones."""

from __future__ import annotations

import pytest

from tests.simulation import linearizability
from tests.simulation.checker import violations
from tests.simulation.history import Call, History, Run


def of(*calls: Call, runs: tuple[Run, ...] = (), **facts) -> History:
    history = History(lambda: 0.0, ready_again_at=100.0)
    for call in calls:
        call.ends = 0 if call.ended_at is None else call.ends or 1
        history.call(call)
    history.runs += runs
    for name, value in facts.items():
        setattr(history, name, value)
    return history


def call(name: str, what: str, at: float, until: float | None, outcome: str | None = "ok", **facts) -> Call:
    session = facts.pop("session", "s" if what in ("set", "get", "end", "session execute") else None)
    facts.setdefault("key", "a" if what in ("set", "get") else None)
    return Call(
        name,
        "c",
        what,
        at,
        facts.pop("timeout_s", 10.0),
        session=session,
        ended_at=until,
        outcome=outcome,
        **facts,
    )


def executed(name: str, at: float, until: float, **facts) -> Call:
    return call(name, "execute", at, until, answer={"outputs": {"call": name}}, **facts)


def test_a_history_in_which_all_is_well_breaks_nothing():
    history = of(
        executed("k1", 1, 2),
        call("k2", "set", 1, 2, value="k2"),
        call("k3", "get", 3, 4, answer="k2"),
        call("k4", "set", 4, 5, "worker_lost", value="k4"),
        call("k5", "get", 6, 7, answer="k4"),
        call("k6", "end", 8, 9, answer={"ended": True}),
        call("k7", "get", 9, 10, "unknown_session"),
        runs=(Run("k1", "w", None, 1.1, ended_at=1.9),),
        deaths={"w": 4.5},
    )
    assert violations(history, slots=1) == []


@pytest.mark.parametrize(
    ("promise", "history"),
    [
        ("ends exactly once", lambda: of(executed("k1", 1, 2), **{"calls": {"k1": _twice()}})),
        ("nothing hangs", lambda: of(call("k1", "execute", 1, None, None))),
        ("deadline", lambda: of(call("k1", "execute", 1, 13, "deadline_exceeded"))),
        ("declared errors", lambda: of(call("k1", "execute", 1, 2, "internal_error"))),
        (
            "answers are one's own",
            lambda: of(call("k1", "execute", 1, 2, answer={"outputs": {"call": "k2"}})),
        ),
        (
            "slots",
            lambda: of(runs=(Run("k1", "w", None, 1, ended_at=3), Run("k2", "w", None, 2, ended_at=4))),
        ),
        (
            "runs",
            lambda: of(
                executed("k1", 1, 5),
                runs=(Run("k1", "w", None, 1, ended_at=2), Run("k1", "v", None, 3, ended_at=4)),
            ),
        ),
        (
            "one operation of a session at a time",
            lambda: of(runs=(Run("k1", "w", "s", 1, ended_at=3), Run("k2", "v", "s", 2, ended_at=4))),
        ),
        (
            "a session's operations keep their order",
            lambda: of(
                call("k1", "set", 1, 5, value="k1"),
                call("k2", "set", 1, 5, value="k2"),
                runs=(Run("k2", "w", "s", 2, ended_at=3), Run("k1", "w", "s", 3, ended_at=4)),
            ),
        ),
        ("lost for a reason", lambda: of(call("k1", "execute", 100, 101, "worker_lost"), deaths={"w": 10.0})),
        (
            "lost for a reason",
            lambda: of(call("k1", "execute", 100, 101, "worker_lost", idempotent=True), deaths={"w": 100.5}),
        ),
        (
            "nobody keeps a slot in vain",
            lambda: of(call("k1", "execute", 1, 2, "left"), runs=(Run("k1", "w", None, 1, ended_at=5),)),
        ),
        (
            "nobody keeps a slot in vain",
            lambda: of(
                call("k1", "execute", 1, 20, "deadline_exceeded", timeout_s=10.0),
                runs=(Run("k1", "w", None, 1, ended_at=19),),
                frozen=[("c", 2.0, 20.0)],
            ),
        ),
        (
            "a worker that leaves ends what it runs",
            lambda: of(
                executed("k1", 1, 5, idempotent=True),
                runs=(Run("k1", "w", None, 1, ended_at=3.05), Run("k1", "v", None, 4, ended_at=5)),
                stopped={"w": 3.0},
                deaths={"w": 3.1},
            ),
        ),
        (
            "lost for a reason",
            lambda: of(call("k1", "execute", 1, 2, "worker_lost"), stopped={"w": 1.4}, deaths={"w": 1.5}),
        ),
        (
            "who was given up changes nothing",
            lambda: of(
                call("k1", "set", 1, 4, "worker_lost", value="k1"),
                call("k2", "set", 5, 6, value="k2"),
                call("k3", "get", 7, 8, answer="k2"),
                call("k4", "get", 9, 10, answer="k1"),
                runs=(Run("k1", "w", "s", 1.1, ended_at=2), Run("k2", "v", "s", 5.1, ended_at=5.2)),
                deaths={"w": 4.0},
            ),
        ),
        (
            "only who missed all its checks is given up",
            lambda: of(
                executed("k1", 1, 2),
                runs=(Run("k1", "w", None, 1.1, ended_at=1.9),),
                health_s=(0.5, 2.5),
                ordered={"w": 10.5},
                deaths={"w": 10.6},
                frozen=[("w", 5.0, 7.9), ("w", 9.9, 10.6)],
            ),
        ),
        (
            "who was told to end gets no traffic",
            lambda: of(
                executed("k1", 30, 31),
                runs=(Run("k1", "w", None, 30.1, ended_at=30.9),),
                ordered={"w": 10.0},
            ),
        ),
        (
            "a full worker keeps no session",
            lambda: of(call("k0", "set", 1, 2, value="k0"), call("k1", "get", 3, 9, answer="k0", moves=True)),
        ),
        (
            "one version, one code",
            lambda: of(
                runs=(
                    Run("k1", "w", None, 1, 1, "x", ended_at=2),
                    Run("k2", "w", None, 3, 1, "y", ended_at=4),
                )
            ),
        ),
        (
            "sessions are linearizable",
            lambda: of(call("k1", "set", 1, 2, value="k1"), call("k2", "get", 3, 4, answer=None)),
        ),
        (
            "sessions are linearizable",
            lambda: of(
                call("k1", "set", 1, 2, value="k1"),
                call("k2", "set", 3, 4, value="k2"),
                call("k3", "get", 5, 6, answer="k1"),
            ),
        ),
        (
            "sessions are linearizable",
            lambda: of(call("k1", "set", 1, 2, value="k1"), call("k2", "get", 3, 4, "unknown_session")),
        ),
        ("whole again", lambda: of(ready_again_at=None)),
        ("whole again", lambda: of(executed("k1", 1, 9, calm=True))),
        ("true books", lambda: of(executed("k1", 1, 2), counted=0)),
        ("true books", lambda: of(executed("k1", 1, 2), counted=2)),
        ("nothing is kept", lambda: of(leftovers=["c has 1 queued"])),
        ("no defects", lambda: of(errors=["a connection was dropped"])),
    ],
)
def test_a_history_that_breaks_a_promise_breaks_that_one_alone(promise, history):
    found = violations(history(), slots=1)
    assert [one.partition(":")[0] for one in found] == [promise]


def test_what_is_lost_when_no_time_is_left_for_another_try_is_lost_for_a_reason():
    history = of(
        call("k1", "execute", 100, 100.9, "worker_lost", timeout_s=1.0, idempotent=True, attempts=3),
        deaths={"w": 100.2, "v": 100.8},
    )
    assert violations(history, slots=1) == []


@pytest.mark.parametrize(("until", "kept"), [(3.5, True), (6.0, False)])
def test_what_a_dead_client_had_asked_for_ends_soon(until, kept):
    history = of(
        call("k1", "execute", 1, None, None),
        runs=(Run("k1", "w", None, 1.1, ended_at=until),),
        faults=[{"kind": "kill", "process": "c", "at": 2.0}],
    )
    assert (violations(history, slots=1) == []) is kept


def test_a_worker_that_stood_still_at_all_of_its_checks_may_be_given_up():
    history = of(
        executed("k1", 1, 2),
        runs=(Run("k1", "w", None, 1.1, ended_at=1.9),),
        health_s=(0.5, 2.5),
        ordered={"w": 10.5},
        frozen=[("w", 7.0, 9.0), ("w", 9.9, 10.6)],
    )
    assert violations(history, slots=1) == []


@pytest.mark.parametrize(("moved_at", "kept"), [(8.5, True), (5.1, False)])
def test_what_a_dead_worker_had_begun_may_be_read_as_long_as_its_session_has_not_moved(moved_at, kept):
    history = of(
        call("k0", "set", 0.1, 0.5, value="k0"),
        call("k1", "set", 1, 4, "worker_lost", value="k1"),
        call("k2", "get", 7, 8, answer="k0"),
        call("k3", "get", 9, 10, answer="k1"),
        runs=(Run("k1", "w", "s", 1.1), Run("", "v", "s", moved_at, ended_at=moved_at)),
        deaths={"w": 4.0},
    )
    assert (violations(history, slots=1) == []) is kept


def test_a_change_that_is_refused_may_begin_its_session_and_changes_nothing():
    def found(answer):
        return violations(
            of(
                call("k1", "bad set", 1, 2, "invalid_request", session="s", key="a", value="k1"),
                call("k2", "get", 3, 4, answer=answer),
            ),
            slots=1,
        )

    assert found(None) == []
    assert found(b"k1") != []


def test_a_call_that_its_caller_left_is_no_failure_in_peace():
    assert violations(of(call("k1", "execute", 1, 1.2, "left", calm=True)), slots=1) == []


def test_a_session_may_stay_where_no_slot_is_free_while_a_worker_is_replaced():
    history = of(
        call("k0", "set", 1, 2, value="k0"),
        call("k1", "get", 3, 9, answer="k0", moves=True),
        deaths={"w": 10.0},
    )
    assert violations(history, slots=1) == []


@pytest.mark.parametrize(("heard_at", "kept"), [(3.0, True), (9.0, False)])
def test_who_waits_for_what_runs_once_hears_of_its_end(heard_at, kept):
    history = of(
        call("k1", "execute", 1, heard_at, "worker_lost"),
        runs=(Run("k1", "w", None, 1.1),),
        deaths={"w": 2.0},
    )
    assert (violations(history, slots=1) == []) is kept


@pytest.mark.parametrize(("died_at", "kept"), [(0.95, True), (0.5, False)])
def test_what_is_sent_to_a_worker_before_its_death_is_heard_of_is_interrupted_by_it(died_at, kept):
    history = of(call("k1", "set", 1.0, 1.1, "worker_lost", value="k1", calm=True), deaths={"w": died_at})
    assert (violations(history, slots=1) == []) is kept


@pytest.mark.parametrize(("sent_at", "kept"), [(1.2, True), (1.0, False)])
def test_the_order_of_a_session_is_that_in_which_it_was_sent_to_and_not_that_of_names(sent_at, kept):
    history = of(
        call("k1", "set", sent_at, 3, value="k1"),
        call("k2", "set", 1.1, 3, value="k2"),
        runs=(Run("k2", "w", "s", 2, ended_at=2), Run("k1", "w", "s", 2.1, ended_at=2.1)),
    )
    assert (violations(history, slots=1) == []) is kept


@pytest.mark.parametrize(("answer", "kept"), [("k19", True), ("k18", True), ("k1", False)])
def test_changes_that_are_under_way_at_once_may_have_any_order(monkeypatch, answer, kept):
    monkeypatch.setattr(linearizability, "MOST", 100)
    history = of(
        call("k1", "set", 1, 2, value="k1"),
        *(call(f"k{number}", "set", 3, 9, value=f"k{number}") for number in range(10, 20)),
        *(call(f"r{number}", "get", 4, 9, answer="k1") for number in range(10, 20)),
        call("k2", "get", 31, 32, answer=answer),
    )
    assert (violations(history, slots=1) == []) == kept


def test_what_has_too_many_orders_to_be_told_is_said(monkeypatch):
    monkeypatch.setattr(linearizability, "MOST", 1)
    history = of(
        *(call(f"k{number}", "set", 1, 9, value=f"k{number}", key=f"{number}") for number in range(9))
    )
    assert violations(history, slots=1) == [
        "sessions are linearizable: s: cannot be told, its operations have too many orders"
    ]


@pytest.mark.parametrize(("answer", "kept"), [("k1", True), (None, False)])
def test_changes_that_nobody_heard_of_again_are_tried_where_somebody_read_them(monkeypatch, answer, kept):
    monkeypatch.setattr(linearizability, "MOST", 100)
    # Each may have happened at any time, and somebody has read it.
    unclear = {f"k{number}": "bcde"[number % 4] for number in range(10, 18)}
    history = of(
        call("k1", "set", 1, 2, value="k1"),
        *(call(name, "set", 1, 3, "deadline_exceeded", value=name, key=key) for name, key in unclear.items()),
        call("k2", "get", 50, 51, answer=answer),
        *(
            call(f"r{name}", "get", 60 + at, 60.5 + at, answer=name, key=key)
            for at, (name, key) in enumerate(unclear.items())
        ),
        call("k3", "end", 90, 91, answer={"ended": True}),
    )
    assert (violations(history, slots=1) == []) == kept


@pytest.mark.parametrize(("until", "kept"), [(4.9, True), (5.5, False)])
def test_what_a_program_that_blocks_its_worker_keeps_from_being_cancelled_may_run_on_as_long(until, kept):
    history = of(call("k1", "execute", 1, 2, "left"), runs=(Run("k1", "w", None, 1, ended_at=until),))
    history.blocked = [("w", 0.0, 3.0), ("v", 2.0, 9.0)]
    assert (violations(history, slots=1) == []) == kept


def _twice() -> Call:
    twice = executed("k1", 1, 2)
    twice.ends = 2
    return twice
