"""Runs seeds in processes of their own, with or without a planted bug, and adds up what they found."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.simulation.mutants import MUTANTS
from tests.simulation.mutants import install as plant
from tests.simulation.world import is_long

INSIDE = "--inside"
MUTANT_SEEDS = list(itertools.islice((seed for seed in itertools.count(1) if not is_long(seed)), 100))
"""The budget of each mutant: the first short ones."""
_COMMAND = [sys.executable, "-m", "tests.simulation", INSIDE]
_MUTANT_CPU_S = 500.0
_MOST_BYTES = 2 * 2**30
_CHUNK = 25
_REPLAYED = 3
_SHRUNK = 3
"""Of the seeds that fail: each takes many runs."""
RUN, SHRINK, PLAN = "run", "shrink", "plan"
NONE = "-"


def main() -> int:
    options = _options()
    started = time.time()
    seeds = range(options.first, options.first + options.seeds)
    with ThreadPoolExecutor(options.processes) as threads:
        chunks = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
        results = []
        for result in itertools.chain.from_iterable(threads.map(lambda chunk: list(run(chunk)), chunks)):
            results.append(result)
            for violation in result["violations"]:
                print(f"seed {result['seed']}: {violation}", flush=True)
        mutants = range(len(MUTANTS)) if options.mutants is None else options.mutants
        caught = []
        for number, seed in zip(mutants, threads.map(_catch, mutants), strict=True):
            caught.append(seed)
            how = f"seed {seed}" if seed is not None else "not found"
            print(f"mutant {number}: {MUTANTS[number].bug}: {how}", flush=True)
    replayed = replays_identical(seeds[:_REPLAYED])
    hours = sum(result["simulated_s"] for result in results) / 3600.0
    cpu_hours = sum(result["cpu_s"] for result in results) / 3600.0
    failing = {result["seed"] for result in results if result["violations"]}
    for seed in sorted(failing)[:_SHRUNK]:
        print(shrink(seed))
    summary = {
        "seeds": len(results),
        "simulated_hours": round(hours, 2),
        "simulated_hours_per_cpu_hour": round(hours / cpu_hours, 1) if cpu_hours else None,
        "faults": sum(result["faults"] for result in results),
        "operations": sum(result["operations"] for result in results),
        "violations": sum(len(result["violations"]) for result in results),
        "replay_identical": replayed,
        "mutants": len(caught),
        "mutants_caught": sum(seed is not None for seed in caught),
    }
    if not options.json:
        print(f"{time.time() - started:.0f} s")
    print(json.dumps(summary))
    return 0 if not summary["violations"] and replayed else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=None, help="how many (100; quick: 6)")
    parser.add_argument("--first", type=int, default=1, help="the first one")
    parser.add_argument("--mutants", type=int, nargs="*", default=None, help="numbers; without any: none")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="few seeds and mutants, to see that it runs")
    parser.add_argument("--json", action="store_true", help="nothing but violations, mutants and the summary")
    options = parser.parse_args()
    if options.quick and options.mutants is None:
        options.mutants = [0, 36, 50]
    options.seeds = (6 if options.quick else 100) if options.seeds is None else options.seeds
    return options


def run(seeds: Sequence[int], mutant: int | None = None, **environ: str) -> Iterator[dict[str, Any]]:
    """What each seed found, as it is found; a seed that ends its process is a violation."""
    command = [*_COMMAND, RUN, NONE if mutant is None else str(mutant), *map(str, seeds)]
    left = list(seeds)
    with (
        _directory() as place,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ, "TMPDIR": place},
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    left.pop(0)
                    yield json.loads(line)
        finally:
            process.kill()
        if left:
            why = process.stderr.read()[-2000:]
            yield _nothing(left[0]) | {"violations": [f"its process ended: {why}"]}


def violations_with(seed: int, faults: list[tuple[float, str, int]]) -> list[str]:
    """What the seed breaks with these faults (seconds after the start, kind, seed of its dice) and no others."""
    command = [*_COMMAND, PLAN, NONE, str(seed), json.dumps(faults)]
    found = _printed(command)
    violations: list[str] = json.loads(found.splitlines()[-1])
    return violations


def shrink(seed: int, mutant: int | None = None) -> str:
    """The test that `shrunk` makes, from a process of its own."""
    command = [*_COMMAND, SHRINK, NONE if mutant is None else str(mutant), str(seed)]
    return _printed(command)


def _printed(command: list[str]) -> str:
    with _directory() as place:
        environ = {**os.environ, "TMPDIR": place}
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ).stdout


def _directory() -> tempfile.TemporaryDirectory[str]:
    """For what a simulation writes, in memory where there is room: its process may be killed, and leaves it."""
    shared = "/dev/shm"
    return tempfile.TemporaryDirectory(prefix="dsim-", dir=shared if os.path.isdir(shared) else None)


def _nothing(seed: int) -> dict[str, Any]:
    return {"seed": seed, "simulated_s": 0.0, "cpu_s": 0.0, "faults": 0, "operations": 0, "digest": ""}


def _catch(number: int) -> int | None:
    """The first seed that finds the mutant; None: none of the budget does."""
    found, taken_s = None, 0.0
    results = run(MUTANT_SEEDS, number)
    for result in results:
        if result["violations"]:
            found = result["seed"]
            break
        taken_s += result["cpu_s"]
        if taken_s > _MUTANT_CPU_S:
            break
    results.close()  # type: ignore[attr-defined]
    return found


def replays_identical(seeds: Sequence[int]) -> bool:
    """Whether a seed has the same history, to the last digit, each time, also where sets have another order."""
    digests = {
        hash_seed: [result["digest"] for result in run(seeds, PYTHONHASHSEED=hash_seed)]
        for hash_seed in "012"
    }
    return digests["0"] == digests["1"] == digests["2"] and all(digests["0"])


def inside(arguments: list[str]) -> int:
    """Simulate these seeds in this process, whose clocks are replaced; one line of JSON for each."""
    # A bug may make it take all that there is, and whatever else runs on the machine would pay for that.
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    what, mutant, *seeds = arguments
    if mutant != NONE:
        plant(int(mutant))
    # Not before: the engine must not be imported without the bug.
    from tests.simulation.checker import violations
    from tests.simulation.simulation import simulate

    if what == PLAN:
        from tests.simulation.faults import PlannedFault

        planned = [PlannedFault(*fault) for fault in json.loads(seeds[1])]
        history = simulate(int(seeds[0]), planned)
        print(json.dumps(violations(history, slots=history.slots)))
        return 0
    for seed in map(int, seeds):
        if what == SHRINK:
            print(shrunk(seed), flush=True)
            continue
        before = time.process_time()
        history = simulate(seed)
        found = violations(history, slots=history.slots)
        summary = {
            "seed": seed,
            "simulated_s": history.simulated_s,
            "cpu_s": time.process_time() - before,
            "faults": len(history.faults),
            "operations": len(history.calls),
            "violations": found,
            "digest": history.digest(),
        }
        print(json.dumps(summary), flush=True)
    return 0


def shrunk(seed: int) -> str:
    """A test to paste: the seed with as few faults as break the same promise."""
    from tests.simulation.checker import violations
    from tests.simulation.simulation import simulate

    history = simulate(seed)
    found = violations(history, slots=history.slots)
    if not found:
        return f"seed {seed} keeps every promise"
    promise = found[0].partition(":")[0]
    faults = history.plan

    def breaks(some: list[Any]) -> bool:
        other = simulate(seed, some)
        return any(one.startswith(promise) for one in violations(other, slots=other.slots))

    size = len(faults) // 2
    while size:
        start = 0
        while start < len(faults):
            fewer = faults[:start] + faults[start + size :]
            if breaks(fewer):
                faults = fewer
            else:
                start += size
        size //= 2
    listed = "".join(f"\n        {tuple(fault)!r}," for fault in faults)
    return (
        f"def test_{promise.replace(' ', '_').replace(chr(39), '')}_in_seed_{seed}():\n"
        f"    # {found[0]}\n"
        f"    faults = [{listed}\n    ]\n"
        f"    assert cli.violations_with({seed}, faults) == []"
    )
