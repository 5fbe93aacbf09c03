"""A long run at 70 % load while workers are killed, the pool is resized and programs are deployed, again and again.

    python -m benchmarks.soak [--minutes N] [--json] [--quick]

What is looked for is what only time shows: the memory of every process, as a slope over the run; the error budget
(99.9 %: operations that may be repeated must not fail, whatever happens to workers); whether latency in the last
quarter is that of the first; and what is left queued, running or alive at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import psutil

from benchmarks.common import arguments, finish, header, percentile, ray_cluster
from benchmarks.load import schedule
from benchmarks.pools import INPUTS, PROGRAM, SPEC, pool_of
from benchmarks.services import model_server

MODEL_S = 0.1
WORKERS, SLOTS = 2, 8
LOAD = 0.7
BUDGET = 0.001
SESSIONS = 50
SEED = 7
END_LIMIT_S = 240.0
"""For the start and the end beside the load itself."""


class Books:
    """What became of the operations, and when."""

    def __init__(self) -> None:
        # Eight bytes an operation: this process is weighed, too.
        self.at, self.taken = array("f"), array("f")
        """Seconds since the start, and seconds taken, of each operation that succeeded."""
        self.failed: Counter[str] = Counter()
        self.disturbed: Counter[str] = Counter()
        self.memory: dict[str, list[tuple[float, float]]] = {}


async def ask(pool: Any, number: int, due: float, began: float, books: Books) -> None:
    from dspool import PoolError

    try:
        if number % 10 == 0:
            await pool.session(f"s{number // 10 % SESSIONS}").set_variable("n", number)
        else:
            await pool.execute(PROGRAM, **INPUTS)
    except PoolError as failed:
        what = "change" if number % 10 == 0 else "repeatable"
        books.failed[f"{what}: {failed.code}"] += 1
    else:
        books.at.append(due - began)
        books.taken.append(time.perf_counter() - due)


async def load(pool: Any, seconds: float, began: float, books: Books) -> None:
    rate = LOAD * WORKERS * SLOTS / MODEL_S
    tasks: set[asyncio.Task[None]] = set()
    for number, at in enumerate(schedule(rate, seconds, SEED)):
        due = began + at
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        task = asyncio.create_task(ask(pool, number, due, began, books))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)


async def disturb(pool: Any, every_s: float, books: Books) -> None:
    """One disturbance each `every_s`: a kill, a resize up and back, a deployment."""
    from dspool import PoolError
    from dspool.messages import Deployment

    chance = random.Random(SEED)
    number = 0
    while True:
        for what in ("kill", "resize", "deploy"):
            number += 1
            await asyncio.sleep(every_s * chance.uniform(0.7, 1.3))
            try:
                if what == "kill" and pool.client.membership.workers:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(pool.client.membership.workers).pid, signal.SIGKILL)
                elif what == "resize":
                    await pool.resize(WORKERS + 1)
                    await asyncio.sleep(every_s / 2)
                    await pool.resize(WORKERS)
                elif what == "deploy":
                    # What runs already is not deployed again.
                    settings = {"max_tokens": 1000 + number}
                    await pool.deploy(Deployment(PROGRAM, 0, spec={**SPEC, "settings": settings}))
                books.disturbed[what] += 1
            except PoolError as failed:
                books.disturbed[f"{what} refused: {failed.code}"] += 1


async def weigh(pool: Any, pids: dict[str, int], began: float, every_s: float, books: Books) -> None:
    """USS of every process that lasts. Workers come and go: those of one start are one series."""
    while True:
        now = time.perf_counter() - began
        everyone = pids | {f"worker {m.worker_id}": m.pid for m in pool.client.membership.workers}
        for name, pid in everyone.items():
            with contextlib.suppress(psutil.Error):
                used = psutil.Process(pid).memory_full_info().uss / 2**20
                books.memory.setdefault(name, []).append((now, used))
        await asyncio.sleep(every_s)


def slope_mb_per_hour(points: list[tuple[float, float]], skip_s: float = 0.0) -> float | None:
    """Least squares over what comes after `skip_s`; None for fewer than five points."""
    late = [(at, used) for at, used in points if at >= skip_s]
    if len(late) < 5 or late[-1][0] == late[0][0]:
        return None
    slope, _ = statistics.linear_regression([at for at, _ in late], [used for _, used in late])
    return 3600 * slope


async def processes(pool: Any) -> dict[str, int]:
    """Everything that works for the pool and outlives workers: this client, the actors, Ray's own."""
    found = {"client": os.getpid()}
    for name, actor in (("supervisor", pool.supervisor), ("store", pool.store), ("metrics", pool.metrics)):
        found[name] = await actor.__ray_call__.remote(lambda _: os.getpid())
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if one.name() in ("raylet", "gcs_server"):
                found[one.name()] = one.pid
    return found


def drift(latencies: list[tuple[float, float]], seconds: float) -> dict[str, float]:
    """p50 and p99 of the first and the last quarter, and their ratios."""
    first = [taken for at, taken in latencies if at < seconds / 4]
    last = [taken for at, taken in latencies if at >= 3 * seconds / 4]
    if not first or not last:
        return {}
    said = {}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        before, after = percentile(first, share), percentile(last, share)
        said |= {f"{name}_first_ms": round(1e3 * before, 2), f"{name}_last_ms": round(1e3 * after, 2)}
        said[f"{name}_drift"] = round(after / before, 3)
    return said


def _budget_used(books: Books, operations: int) -> tuple[int, float]:
    failed = sum(count for kind, count in books.failed.items() if kind.startswith("repeatable"))
    return failed, failed / max(1, operations) / BUDGET


async def run(directory: Path, seconds: float, every_s: float) -> dict[str, Any]:
    books = Books()
    with model_server(MODEL_S) as port:
        settings = {
            "pool_size": WORKERS,
            "max_pool_size": WORKERS + 2,
            "spares": 1,
            "slots_per_worker": SLOTS,
            "model_port": port,
            # The crash-loop breaker would be right to slow this down.
            "restart": {"intensity": 100_000, "backoff_s": 0.01, "backoff_max_s": 0.1},
        }
        async with pool_of(directory, "soak", **settings) as pool:
            pids = await processes(pool)
            began = time.perf_counter()
            chores = [
                asyncio.create_task(disturb(pool, every_s, books)),
                asyncio.create_task(weigh(pool, pids, began, max(0.5, seconds / 200), books)),
            ]
            await load(pool, seconds, began, books)
            for chore in chores:
                chore.cancel()
            for ended in await asyncio.gather(*chores, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    raise ended
            left = {"queued": pool.client.queued, "running": pool.client.running}
    operations = len(books.taken) + sum(books.failed.values())
    failed, used = _budget_used(books, operations)
    # A pool and its caches fill at first: the second half shows what grows for ever.
    slopes = {
        name: slope_mb_per_hour(points, seconds / 2)
        for name, points in books.memory.items()
        if not name.startswith("worker ")
    }
    grown = [slope_mb_per_hour(points) for name, points in books.memory.items() if name.startswith("worker ")]
    known = [slope for slope in grown if slope is not None]
    last = {name: round(points[-1][1], 1) for name, points in books.memory.items() if name in slopes}
    return {
        "minutes": round(seconds / 60, 2),
        "operations": operations,
        "disturbed": dict(books.disturbed),
        "failed": dict(books.failed),
        "failed_repeatable": failed,
        "error_budget_used": round(used, 3),
        "memory_mb_per_hour": {
            name: None if slope is None else round(slope, 2) for name, slope in slopes.items()
        },
        "worker_mb_per_hour_median": round(statistics.median(known), 2) if known else None,
        "workers_seen": len(grown),
        "memory_last_mb": last,
        "memory_series": {
            name: [(round(at, 1), round(mb, 2)) for at, mb in points[:: max(1, len(points) // 60)]]
            for name, points in books.memory.items()
            if name in slopes
        },
        "left": left,
        **drift(list(zip(books.at, books.taken, strict=True)), seconds),
    }


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=15.0, help="of load; 15 by default")
    options = parser.parse_args()
    seconds = 12.0 if options.quick else 60 * options.minutes
    header(f"soak: {seconds / 60:.1f} minutes at {LOAD:.0%} load, with kills, resizes and deployments")

    with ray_cluster("dsp-k-") as directory:
        mine = psutil.Process().children(recursive=True)
        every_s = 2.0 if options.quick else 10.0
        result = asyncio.run(asyncio.wait_for(run(directory / "s", seconds, every_s), seconds + END_LIMIT_S))
        mine += psutil.Process().children(recursive=True)
    _, left = psutil.wait_procs(set(mine), timeout=30)
    result["processes_left"] = len(left)
    print(
        f"  {result['operations']:,} operations, disturbed by {result['disturbed']}\n"
        f"  failed: {result['failed'] or 'none'}; error budget ({BUDGET:.1%} of operations) used: "
        f"{result['error_budget_used']:.0%} by those that may be repeated\n"
        f"  memory, MB an hour over the second half: {result['memory_mb_per_hour']}; a worker in its life (median of "
        f"{result['workers_seen']}): {result['worker_mb_per_hour_median']}\n"
        f"  latency, last quarter over first: p50 {result.get('p50_drift')}, p99 {result.get('p99_drift')}\n"
        f"  left at the end: {result['left']}, {result['processes_left']} processes"
    )
    finish(result, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
