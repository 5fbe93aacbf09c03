"""The engine in simulated time keeps its promises, the simulation replays, and it finds bugs that are planted."""

from __future__ import annotations

import pytest

from tests.simulation import cli
from tests.simulation.mutants import ENGINE, MUTANTS

SEEDS = range(1, 9)


def test_every_promise_is_kept_and_a_seed_has_one_history_whatever_the_order_of_sets():
    results = list(cli.run(SEEDS, PYTHONHASHSEED="0"))
    assert [result["violations"] for result in results] == [[] for _ in SEEDS]
    again = list(cli.run(SEEDS[:3], PYTHONHASHSEED="1"))
    assert [result["digest"] for result in again] == [result["digest"] for result in results[:3]]


@pytest.mark.parametrize("bug", ["the answer is sent before the commit", "one slot too many"])
def test_a_planted_bug_is_found(bug):
    number = next(number for number, mutant in enumerate(MUTANTS) if mutant.bug == bug)
    assert any(result["violations"] for result in cli.run(cli.MUTANT_SEEDS, number))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.bug)
def test_a_mutant_changes_one_place_and_is_still_python(mutant):
    source = (ENGINE / mutant.file).read_text()
    assert source.count(mutant.old) == 1
    compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")


def test_a_seed_that_fails_is_shrunk_to_a_test_with_few_faults():
    number = next(
        number for number, mutant in enumerate(MUTANTS) if mutant.bug == "a dead worker stays a member"
    )
    failing = next(result for result in cli.run(cli.MUTANT_SEEDS, number) if result["violations"])
    test = cli.shrink(failing["seed"], number)
    assert test.startswith("def test_")
    compile(test, "found", "exec")
    assert 0 < test.count("'kill") + test.count("'power_off") <= 2
