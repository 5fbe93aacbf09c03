"""The answers that workers share: bounded, forgotten in time, and each question asked by one at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dspool.answers import SharedAnswers
from dspool.config import CacheConfig
from dspool.core.answers import ENTRY_BYTES, SILENT_S, Answers

K, L = b"k" * 32, b"l" * 32


def answers(room: int = 10_000, ttl_s: float = 60.0) -> Answers:
    return Answers(max_bytes=room, ttl_s=ttl_s)


def test_the_first_asks_the_others_wait_and_all_find_what_came():
    shared = answers()
    assert shared.look_up(K, "a", 0.0).kind == "ask"
    assert shared.look_up(K, "b", 0.1).kind == "wait"
    assert shared.look_up(L, "b", 0.1).kind == "ask"
    shared.keep(K, "a", b"answer", 0.2)
    assert shared.look_up(K, "b", 0.3) == ("found", b"answer")


def test_if_the_first_fails_the_next_one_asks():
    shared = answers()
    shared.look_up(K, "a", 0.0)
    assert shared.give_up(K, "a") is True
    assert shared.look_up(K, "b", 0.1).kind == "ask"
    # Whatever the first says now is not about the second's question.
    assert shared.give_up(K, "a") is False
    assert shared.look_up(K, "c", 0.2).kind == "wait"


def test_an_asker_that_is_not_heard_of_any_more_is_replaced():
    shared = answers()
    shared.look_up(K, "a", 0.0)
    shared.heard(frozenset({"a"}), 2.0)
    assert shared.look_up(K, "b", SILENT_S + 1).kind == "wait"
    assert shared.look_up(K, "b", SILENT_S + 2).kind == "ask"
    shared.keep(K, "a", b"late", SILENT_S + 3)
    assert shared.look_up(K, "c", SILENT_S + 4) == ("found", b"late")


def test_who_waits_too_late_or_for_who_is_gone_is_woken_and_leaves_nothing_behind():
    now = [0.0]
    shared = SharedAnswers(CacheConfig(), clock=lambda: now[0])
    assert shared.waiter(K).done()
    shared.look_up(K, "a")
    waiter = shared.waiter(K)
    assert not waiter.done()
    now[0] = 2 * SILENT_S
    shared.keep(L, "b", b"answer")
    assert waiter.done()
    assert not shared._waiting


def test_an_answer_is_forgotten_after_its_time():
    shared = answers(ttl_s=5.0)
    shared.keep(K, "a", b"answer", 10.0)
    assert shared.look_up(K, "b", 14.9).kind == "found"
    assert shared.look_up(K, "b", 15.0).kind == "ask"
    shared.keep(L, "a", b"answer", 20.0)
    shared.tidy(25.0)
    assert (len(shared), shared.bytes) == (0, 0)


def test_what_was_used_longest_ago_goes_first_and_what_has_no_room_is_not_kept():
    shared = answers(room=2 * (ENTRY_BYTES + 10))
    shared.keep(K, "a", b"0123456789", 0.0)
    shared.keep(L, "a", b"0123456789", 0.0)
    shared.look_up(K, "b", 1.0)
    shared.keep(b"m" * 32, "a", b"0123456789", 2.0)
    assert [shared.look_up(key, "c", 3.0).kind for key in (K, L)] == ["found", "ask"]
    shared.keep(L, "c", b"x" * 10_000, 4.0)
    assert shared.look_up(L, "d", 5.0).kind == "ask"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 400), st.floats(0, 10)), max_size=60))
def test_it_never_takes_more_than_its_room(steps: list[tuple[int, int, float]]):
    shared, now = answers(room=1_500, ttl_s=5.0), 0.0
    for which, size, later in steps:
        now += later
        shared.keep(bytes([which]) * 32, "a", b"x" * size, now)
        assert 0 <= shared.bytes <= 1_500
        shared.tidy(now)
        assert shared.bytes == sum(len(entry.answer) + ENTRY_BYTES for entry in shared._entries.values())
