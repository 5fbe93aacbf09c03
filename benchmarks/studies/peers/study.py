"""What dspool costs and gives beside what else one would serve a DSPy program with; one run, the systems in turn.

    python -m benchmarks.peers [--json] [--quick | --full] [--rounds N] [--seconds S] [--only SYSTEM,...]

Every system runs the same programs (`workloads.py`) on the same engines, in two processes that work,
driven by one process that sends. The peers use DSPy as it comes; `benchmarks.throughput` also has an ActorPool with
dspool's own faster adapter. A closed loop has so many callers that each wait for their answer; in an open loop
operations come at a fixed rate and latency counts from when each was due. What a system cannot do is a row without
figures that says why, and so is a system that fails or hangs. All systems stand idle beside the one that is measured:
what that costs is measured first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks.common import ROOT, arguments, finish, header
from benchmarks.studies.peers.drivers import HANDLES, SERVERS, Standing, standing
from benchmarks.studies.peers.tables import Cell, cannot, fast_beside_slow, row, show
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
BUDGET_S = {"quick": 60.0, "usual": 600.0, "full": 5400.0}
"""No further round begins after this: a round that was not taken is missing from `rounds`, and nothing else is."""


def idle_cores(seconds: float) -> float:
    """Cores that all systems use together while nobody asks anything."""
    mine = psutil.Process().children(recursive=True)

    def used() -> float:
        total = 0.0
        for one in mine:
            with contextlib.suppress(psutil.Error):
                total += sum(one.cpu_times()[:2])
        return total

    before = used()
    time.sleep(seconds)
    return round((used() - before) / seconds, 3)


def compare(
    stand: Standing, cells: list[Cell], seconds: float, rounds: int, budget_s: float
) -> tuple[list[dict[str, Any]], int]:
    """The rows, and how many rounds there were. Each goes through all cells, and in each cell through all systems,
    each time from another first one."""
    seen: dict[tuple[Cell, str, str], list[dict[str, Any]]] = {}
    names = stand.all()
    began, taken = time.monotonic(), 0
    for turn in range(rounds):
        used = time.monotonic() - began
        if turn and used * (turn + 1) / turn > budget_s:
            print(f"  round {turn + 1} is left out: {turn} took {used:.0f} s of {budget_s:.0f}", flush=True)
            break
        for cell in cells:
            for one in names[turn % len(names) :] + names[: turn % len(names)]:
                seen.setdefault((cell, *one), []).append(stand.measure(one, cell, seconds))
        taken += 1
        print(f"  round {taken} of {rounds}, {time.monotonic() - began:.0f} s", flush=True)
    return [row(cell, *system, seen[cell, *system]) for cell in cells for system in names], taken


def main() -> int:
    names = (*(name for group in HANDLES.values() for name in group), *SERVERS, "dspool_http")
    parser = arguments(__doc__ or "", names)
    parser.add_argument(
        "--full", action="store_true", help="all workloads at all concurrencies; about an hour"
    )
    parser.add_argument("--rounds", type=int, help="instead of 3 (1 if quick)")
    parser.add_argument(
        "--seconds", type=float, help="of each cell, instead of 1 (0.3 if quick, 1.5 if full)"
    )
    options = parser.parse_args()
    wanted = set(options.only)
    missing = []
    if shutil.which("redis-server") is None and "taskiq_redis" in wanted:
        missing = ["taskiq_redis: redis-server is not installed (`make debian`)"]
        wanted.discard("taskiq_redis")
    kind, cells, seconds, rounds = ("quick", QUICK, 0.3, 1) if options.quick else ("usual", USUAL, 1.0, 3)
    if options.full:
        kind, cells, seconds, rounds = "full", FULL, 1.5, 3
    seconds, rounds = options.seconds or seconds, options.rounds or rounds
    header("peers: one run, the same programs, two working processes each, in turn")
    for sentence in missing:
        print(f"  left out: {sentence}")
    # As Ctrl-C: what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="dpb-", dir="/tmp"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    began = time.monotonic()
    try:
        with standing(directory, wanted) as stand:
            started = time.monotonic() - began
            idle = idle_cores(0.3 if options.quick else 3.0)
            print(
                f"  {len(stand.systems)} systems stand after {started:.0f} s; idle they use {idle} cores together",
                flush=True,
            )
            for (name, interface), why in stand.broken.items():
                print(f"  {name} ({interface}) {why}", flush=True)
            rows, rounds = compare(stand, cells, seconds, rounds, BUDGET_S[kind])
            rows += cannot(stand.all())
            broken = [f"{name} ({interface}): {why}" for (name, interface), why in stand.broken.items()]
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    wins = show(cells, rows)
    for one in rows:
        if one["workload"] in ("recovery", "resize"):
            print(f"    {one['workload']:9s}{one['system']} ({one['interface']}): {one['note']}")
    slowed = fast_beside_slow(rows)
    for name, ratio in slowed.items():
        print(f"    p99 of fast ones with one slow in a hundred, over without: {name} {ratio}")
    finish(
        {
            "rows": rows,
            "fast_p99_beside_slow": slowed,
            "peer_wins": wins,
            "left_out": missing,
            "failed_systems": broken,
            "idle_cores": idle,
            "start_s": round(started, 1),
            "seconds_a_cell": seconds,
            "rounds": rounds,
        },
        as_json=options.json,
    )
    return 0
