"""The engine in simulated time keeps its promises, the simulation replays, and it finds bugs that are planted."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import pytest

from tests.simulation import checker, cli, simulation
from tests.simulation.mutants import ENGINE, MUTANTS

SEEDS = range(1, 6)


def test_every_promise_is_kept_and_a_seed_has_one_history_whatever_the_order_of_sets():
    results = list(cli.run(SEEDS, PYTHONHASHSEED="0"))
    assert [result["violations"] for result in results] == [[] for _ in SEEDS]
    again = list(cli.run(SEEDS[:2], PYTHONHASHSEED="1"))
    assert [result["digest"] for result in again] == [result["digest"] for result in results[:2]]


@pytest.mark.parametrize("is_long", [False, True])
def test_the_pool_of_a_seed_is_one_that_the_engine_takes(tmp_path, is_long):
    for seed in range(50):
        config = simulation.pool_config(random.Random(seed), tmp_path, is_long=is_long)
        assert config.slots_per_worker in (1, 2, 4)


@pytest.mark.parametrize("bug", ["queued is not counted", "nobody watches the deadline"])
def test_a_planted_bug_is_found(bug):
    number = next(number for number, mutant in enumerate(MUTANTS) if mutant.bug == bug)
    assert any(result["violations"] for result in cli.run(cli.MUTANT_SEEDS, number))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.bug)
def test_a_mutant_changes_one_place_and_is_still_python(mutant):
    source = (ENGINE / mutant.file).read_text()
    assert source.count(mutant.old) == 1
    compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")


def test_a_seed_that_fails_is_shrunk_to_a_test_with_few_faults(monkeypatch):
    """With a simulation that breaks a promise when two certain faults meet."""
    plan = [(float(number), "kill" if number % 2 else "freeze", number) for number in range(20)]
    guilty = {(3.0, "kill", 3), (14.0, "freeze", 14)}
    simulated = []

    def simulate(seed, faults=None):
        simulated.append(seed)
        return SimpleNamespace(plan=plan if faults is None else faults, slots=1)

    def violations(history, *, slots):
        return ["slots: k7 was one too many"] if guilty <= set(history.plan) else []

    monkeypatch.setitem(sys.modules, "tests.simulation.simulation", SimpleNamespace(simulate=simulate))
    monkeypatch.setattr(checker, "violations", violations)
    test = cli.shrunk(7)
    assert test.startswith("def test_slots_in_seed_7():\n    # slots: k7 was one too many\n")
    compile(test, "found", "exec")
    assert "(3.0, 'kill', 3),\n        (14.0, 'freeze', 14),\n    ]" in test
    assert test.count("'kill'") + test.count("'freeze'") == 2
    assert set(simulated) == {7}
