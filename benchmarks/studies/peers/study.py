"""What dspool costs and gives beside what else one would serve a DSPy program with; one run, the systems in turn.

    python -m benchmarks.peers [--json] [--quick | --full] [--rounds N] [--seconds S] [--only SYSTEM,...]

Every system runs the same programs (`workloads.py`) on the same engines, in two processes that work, in the best
configuration that its own guides name, driven by one process that sends, which is pinned to one processor and whose own
cost is printed. Each is started for its own cells and ended after them: nothing idles beside it. They take turns in
rounds, each round from another first one, and dspool is compared with each peer round by round: a ratio, its 95 %
interval, and a verdict. A closed loop has so many callers that each wait for their answer; in an open loop operations
come at a fixed rate and latency counts from when each was due, also of one that a busy sender sent late (coordinated
omission). What a system cannot do is a row without figures that says why, and so is a system that fails or hangs.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks.common import ROOT, arguments, finish, header
from benchmarks.studies.peers.drivers import HANDLES, SERVERS, Standing, interface_of, models
from benchmarks.studies.peers.tables import (
    Cell,
    cannot,
    fast_beside_slow,
    row,
    show,
    standings,
    verdicts,
)
from benchmarks.studies.peers.workloads import WORKLOADS

QUICK = [Cell("cheapest", 16), Cell("sessions", 16), Cell("cheapest", rate=50)]
USUAL = [
    Cell("noop", 32),
    Cell("cheapest", 1),
    Cell("cheapest", 8),
    Cell("cheapest", 32),
    Cell("cheapest", 128),
    Cell("cheapest", 256),
    Cell("lm_5ms", 32),
    Cell("lm_50ms", 64),
    Cell("cpu_5ms", 8),
    Cell("none_slow", 32),
    Cell("one_slow", 32),
    Cell("sessions", 32),
    Cell("cheapest", rate=200),
    Cell("lm_50ms", rate=100),
]
FULL = [
    *(Cell(workload, concurrency) for workload in WORKLOADS for concurrency in (1, 8, 32, 128, 256)),
    *(
        Cell(workload, rate=rate)
        for workload in ("cheapest", "lm_50ms", "one_slow")
        for rate in (100, 200, 500)
    ),
]
BUDGET_S = {"quick": 60.0, "usual": 3300.0, "full": 36_000.0}
"""No further round begins after this: a round that was not taken is missing from `rounds`, and nothing else is."""


def compare(
    systems: list[tuple[str, str]],
    cells: list[Cell],
    seconds: float,
    rounds: int,
    budget_s: float,
    directory: Path,
) -> tuple[dict[tuple[Cell, str, str], list[dict[str, Any]]], int, dict[tuple[str, str], str]]:
    """What each round took of each cell and system, how many rounds there were, and what is not asked any more."""
    seen: dict[tuple[Cell, str, str], list[dict[str, Any]]] = {}
    began, taken = time.monotonic(), 0
    stand = Standing()
    with models() as ports:
        for turn in range(rounds):
            used = time.monotonic() - began
            if turn and used * (turn + 1) / turn > budget_s:
                print(
                    f"  round {turn + 1} is left out: {turn} took {used:.0f} s of {budget_s:.0f}", flush=True
                )
                break
            first = turn % len(systems)
            for number, one in enumerate(systems[first:] + systems[:first]):
                place = directory / f"{turn}.{number}"
                for cell, found in zip(cells, stand.cells(one, cells, seconds, place, ports), strict=True):
                    seen.setdefault((cell, *one), []).append(found)
            taken += 1
            print(f"  round {taken} of {rounds}, {time.monotonic() - began:.0f} s", flush=True)
    return seen, taken, stand.broken


def main() -> int:
    names = (*HANDLES, *SERVERS, "dspool_http")
    parser = arguments(__doc__ or "", names)
    parser.add_argument(
        "--full", action="store_true", help="all workloads at all concurrencies; several hours"
    )
    parser.add_argument("--rounds", type=int, help="instead of 3 (1 if quick)")
    parser.add_argument("--seconds", type=float, help="of each cell, instead of 5 (0.3 if quick)")
    options = parser.parse_args()
    wanted = set(options.only)
    missing = []
    if shutil.which("redis-server") is None and "taskiq_redis" in wanted:
        missing = ["taskiq_redis: redis-server is not installed (`make debian`)"]
        wanted.discard("taskiq_redis")
    kind, cells, seconds, rounds = ("quick", QUICK, 0.3, 1) if options.quick else ("usual", USUAL, 5.0, 3)
    if options.full:
        kind, cells, seconds, rounds = "full", FULL, 5.0, 3
    seconds, rounds = options.seconds or seconds, options.rounds or rounds
    header("peers: one run, the same programs, two working processes each, in turn")
    for sentence in missing:
        print(f"  left out: {sentence}")
    # As Ctrl-C: what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="dpb-", dir="/tmp"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    systems = [interface_of(name) for name in names if name in wanted]
    try:
        seen, rounds, broken = compare(systems, cells, seconds, rounds, BUDGET_S[kind], directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    rows = [row(cell, *system, seen[cell, *system]) for cell in cells for system in systems]
    stand = [
        one for cell in cells for one in standings(cell, {system: seen[cell, *system] for system in systems})
    ]
    behind = show(cells, rows, stand)
    told = cannot(systems)
    for one in told:
        print(f"    {one['workload']:9s}{one['system']} ({one['interface']}): {one['note']}")
    slowed = fast_beside_slow(rows)
    for name, ratio in slowed.items():
        print(f"    p99 of fast ones with one slow in a hundred, over without: {name} {ratio}")
    counts = verdicts(stand)
    print("  loads: " + ", ".join(f"{verdict} {count}" for verdict, count in counts.items()))
    finish(
        {
            "rows": rows + told,
            "ratios": [one.figures() for one in stand],
            "verdicts": counts,
            "behind_on": behind,
            "fast_p99_beside_slow": slowed,
            "left_out": missing,
            "failed_systems": [f"{name} ({interface}): {why}" for (name, interface), why in broken.items()],
            "seconds_a_cell": seconds,
            "rounds": rounds,
        },
        as_json=options.json,
    )
    return 0
