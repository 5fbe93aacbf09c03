"""Real faults, thousands of them, on real parts: is every promise kept, and how soon does everything work again?

    python -m benchmarks.chaos [--faults N] [--json] [--quick]

`dspool up` with a pool is asked by clients in processes of their own, half of them in its Ray cluster and half over
HTTP. Meanwhile processes of every kind are killed (SIGKILL) and stopped (SIGSTOP, then SIGCONT), several at a time, a
second node is lost, the database is stopped and started, the disk is filled. Workers are forked or executed, sessions
are in SQLite or in PostgreSQL: one service for each of the four.

Callers and programs write down what they saw; the checker of the simulation (`tests/simulation/checker.py`), which
knows nothing of dspool, holds it against the promises. After each few faults is measured how long it takes until
operations by Python and HTTP, changes of a session and the pool's own size are again as they should be.

- lost_changes: sessions in which no order of changes and reads explains the answers.
- crossed: answers that belong to another operation.
- ended_twice: operations that ended twice, or ran more often than they may.
- hanging: operations that did not end by their deadline, with some tolerance.
- undeclared_errors: operations that ended with anything but a result or a declared error.
- other_violations: of the checker's other promises (slots; calm operations after the faults succeed).
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks.chaos_arena import CLIENTS, arena
from benchmarks.chaos_faults import POSTGRES_INSTALLED
from benchmarks.common import arguments, finish, header, percentile

SEED = 2121
FIGURES = {
    "lost_changes": {"sessions are linearizable"},
    "crossed": {"answers are one's own"},
    "ended_twice": {"ends exactly once", "runs"},
    "hanging": {"nothing hangs", "deadline"},
    "undeclared_errors": {"declared errors"},
}


def figures(results: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    found = [violation for result in results for violation in result["violations"]]
    promises = [violation.partition(":")[0] for violation in found]
    counted = {name: sum(promise in of for promise in promises) for name, of in FIGURES.items()}
    recovery = [time_s for result in results for time_s in result["recovery"]]
    by_kind: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for result in results:
        by_kind.update(result["by_kind"])
        outcomes.update(result["outcomes"])
    return {
        "faults": sum(by_kind.values()),
        "by_kind": dict(sorted(by_kind.items())),
        "operations": sum(result["operations"] for result in results),
        **counted,
        "other_violations": len(found) - sum(counted.values()),
        "p50_recovery_ms": round(1e3 * percentile(recovery, 0.5)) if recovery else None,
        "p99_recovery_ms": round(1e3 * percentile(recovery, 0.99)) if recovery else None,
        "not_recovered": sum(result["not_recovered"] for result in results),
        "outcomes": dict(outcomes.most_common()),
        "violations": found[:50],
        "left_out": sorted({one for result in results for one in result["left_out"]}),
        "minutes": round(seconds / 60, 1),
    }


def main() -> int:
    parser = arguments(__doc__ or "", ("fork-sqlite", "exec-sqlite", "fork-postgresql", "exec-postgresql"))
    parser.add_argument("--faults", type=int, default=1000, help="in all (1,000)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="services side by side (1); more take less time, and recover later",
    )
    options = parser.parse_args()
    count = 4 if options.quick else options.faults
    arenas = options.only[:1] if options.quick else options.only
    left_out = [] if POSTGRES_INSTALLED else [name for name in arenas if "postgresql" in name]
    arenas = [name for name in arenas if name not in left_out]
    header(f"chaos: {count} faults")
    began = time.monotonic()

    def one(number: int) -> dict[str, Any]:
        workers, store = arenas[number].split("-")
        share = count * (number + 1) // len(arenas) - count * number // len(arenas)
        print(f"  {arenas[number]}: {share} faults", flush=True)
        clients = 2 if options.quick else len(CLIENTS)
        # A process joins one Ray cluster in its life: Ray keeps that one's token.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
            run = processes.submit(in_arena, workers, store, share, options.seed + number, clients, number)
            result = run.result()
        for violation in result["violations"][:20]:
            print(f"    {arenas[number]}: {violation}", flush=True)
        return result

    with ThreadPoolExecutor(options.processes) as threads:
        results = list(threads.map(one, range(len(arenas))))
    result = figures(results, time.monotonic() - began)
    result["left_out"] += [f"{name}: no PostgreSQL here" for name in left_out]
    finish(result, as_json=options.json)
    return 0


def in_arena(workers: str, store: str, count: int, seed: int, clients: int, number: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="dsp-x-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        os.chmod(directory, 0o711)  # for the user that PostgreSQL runs as
        return asyncio.run(arena(workers, store, count, seed, Path(directory), clients, number))


if __name__ == "__main__":
    sys.exit(main())
