"""The search for an order agrees with the trying of all orders."""

from __future__ import annotations

from itertools import combinations, permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.checker import violations
from tests.simulation.history import Call, History
from tests.simulation.linearizability import linearizable

PROMISE = "sessions are linearizable"


def test_what_never_returned_may_have_happened_at_any_later_time_or_never():
    def register(state, operation):
        kind, value = operation
        if kind == "write":
            return value
        return state if state == value else None

    lost_write = (1.0, None, ("write", "x"))
    assert linearizable([lost_write, (2.0, 3.0, ("read", ""))], "", register) is None
    assert linearizable([lost_write, (2.0, 3.0, ("read", "x"))], "", register) is None
    back_and_forth = [lost_write, (2.0, 3.0, ("read", "x")), (4.0, 5.0, ("read", ""))]
    assert linearizable(back_and_forth, "", register) == ("read", "")


@st.composite
def histories(draw) -> list[Call]:
    """A few calls to one session that overlap, some of which failed; each value is written once."""
    size = draw(st.integers(2, 6))
    moments = draw(st.permutations(range(2 * size)))
    calls = []
    for number in range(size):
        sent_at, ended_at = sorted(moments[2 * number : 2 * number + 2])
        what = draw(st.sampled_from(["set", "set", "get", "get", "end"]))
        outcome = draw(st.sampled_from(["ok", "ok", "ok", "worker_lost", "unknown_session"]))
        if what == "set" and outcome == "unknown_session":
            outcome = "ok"
        call = Call(f"k{number}", "c", what, sent_at, 99.0, session="s", ended_at=ended_at, outcome=outcome)
        call.key = None if what == "end" else draw(st.sampled_from("ab"))
        if what == "set":
            call.value = call.id
        elif what == "end":
            call.answer = {"ended": draw(st.booleans())}
        else:
            call.answer = draw(st.sampled_from([None, *(f"k{other}" for other in range(size))]))
        calls.append(call)
    return calls


def any_order_explains(calls: list[Call]) -> bool:
    read = {call.answer for call in calls if call.what == "get" and call.outcome == "ok"}
    certain = [call for call in calls if call.outcome in ("ok", "unknown_session")]
    unclear = [call for call in calls if call not in certain and call.what != "get"]
    return any(
        explains(order, read)
        for count in range(len(unclear) + 1)
        for some in combinations(unclear, count)
        for order in permutations([*certain, *some])
    )


def explains(order: tuple[Call, ...], read: set[str | None]) -> bool:
    session: dict[str | None, str] | None = None
    for place, call in enumerate(order):
        if any(later.outcome != "worker_lost" and later.ended_at < call.sent_at for later in order[place:]):
            return False
        if call.outcome == "unknown_session":
            if session is not None:
                return False
        elif call.what == "set" and call.outcome != "ok" and call.value not in read:
            # Its session may have come into being without it.
            session = session or {}
        elif call.what == "set":
            session = {**(session or {}), call.key: call.value}
        elif call.what == "end":
            if call.outcome == "ok" and call.answer["ended"] != (session is not None):
                return False
            session = None
        elif session is None or session.get(call.key) != call.answer:
            return False
    return True


@given(histories())
@settings(max_examples=400, deadline=None)
def test_an_order_is_found_where_there_is_one_and_only_there(calls):
    history = History(lambda: 0.0, ready_again_at=100.0)
    for call in calls:
        history.call(call)
    found = [one for one in violations(history, slots=1) if one.startswith(PROMISE)]
    assert (found == []) == any_order_explains(calls)
