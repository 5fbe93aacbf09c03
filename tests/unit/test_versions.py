"""What a worker measured of each version of a program."""

from __future__ import annotations

from dspool.core.metrics.tally import VERSIONS_KEPT, VersionBook
from dspool.messages import VersionNumbers


def test_operations_are_added_up_by_version():
    book = VersionBook()
    for outcome, run_s in (("ok", 0.1), ("error", 0.3), ("timeout", 0.5), ("client_error", 0.1)):
        book.ended("qa", 2, outcome, run_s, 10.0)
    book.ended("qa", 1, "ok", 0.2, 10.0)
    book.ended("other", 1, "error", 9.0, 10.0)
    numbers = book.numbers("qa", [])
    assert numbers[1] == VersionNumbers(1, 0, 0.2)
    assert (numbers[2].operations, numbers[2].errors, numbers[2].run_s) == (4, 3, 0.25)
    assert book.numbers("none", []) == {}


def test_what_was_refused_or_cancelled_early_says_nothing_but_a_caller_that_waited_in_vain_does():
    book = VersionBook()
    book.ended("qa", 1, "rejected", 0.0, 10.0)
    book.ended("qa", 1, "cancelled", 2.0, 10.0)
    assert book.numbers("qa", []) == {}
    book.ended("qa", 1, "cancelled", 9.9, 10.0)
    assert book.numbers("qa", [])[1].errors == 1


def test_what_runs_now_is_shown_with_how_long_it_has_run():
    book = VersionBook()
    book.ended("qa", 1, "ok", 1.0, 10.0)
    numbers = book.numbers("qa", [(1, 2.0), (1, 4.0), (2, 1.0)])
    assert numbers == {1: VersionNumbers(1, 0, 1.0, 2, 3.0), 2: VersionNumbers(0, 0, 0.0, 1, 1.0)}
    assert numbers[1].least_s == (1.0 + 6.0) / 3
    assert VersionNumbers(10, 0, 5.0, 1, 0.1).least_s == 5.0


def test_of_many_versions_those_that_came_last_are_kept():
    book = VersionBook()
    for version in (*range(1, VERSIONS_KEPT + 3), 1):  # back to the first
        book.ended("qa", version, "ok", 0.1, 10.0)
    kept = set(book.numbers("qa", []))
    assert len(kept) == VERSIONS_KEPT
    assert {1, VERSIONS_KEPT + 2} <= kept
