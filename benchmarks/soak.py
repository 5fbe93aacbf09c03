"""A long run at 70 % load while workers are killed, the pool is resized and programs are deployed, again and again.

    python -m benchmarks.soak [--minutes N] [--json] [--quick] [--trace]

Sessions come and go meanwhile, and dashboards are open. What is looked for is what only time shows: memory,
descriptors, threads and tasks of every process and the disk, as slopes with their 95 % interval, judged after the
first half hour (of a run of less than an hour: its second half); the error budget (99.9 %: operations that may be
repeated must not fail, whatever happens to workers); whether latency in the last quarter is that of the first; and
what is left at the end. `growing` names processes of ours whose interval excludes 0 and which grow by more than 2 MB
an hour.

With `--trace` each process of ours says at the end which lines hold the memory that it has more of; the slopes of such
a run are those of the tracing, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import psutil

from benchmarks.common import arguments, finish, header, percentile
from benchmarks.load import schedule
from benchmarks.pools import INPUTS, PROGRAM, SPEC
from benchmarks.services import model_server, model_settings, process, running_service
from benchmarks.soak_watch import Watch, grown, trace

MODEL_S = 0.1
WORKERS, SLOTS = 2, 8
LOAD = 0.7
RATE = LOAD * WORKERS * SLOTS / MODEL_S
BUDGET = 0.001
SESSIONS = 50
"""Those that stay."""
SESSION_S = 20.0
"""How long others last."""
DASHBOARDS = 3
HALF_HOUR_S = 1800.0
SEED = 7
END_LIMIT_S = 240.0
"""For the start and the end beside the load itself."""


class Books:
    """What became of the operations, and when."""

    def __init__(self, most: int) -> None:
        """`most` operations: room for all from the start, for this process is weighed, too."""
        self._at, self._taken = (array("f", bytes(4 * most)) for _ in range(2))
        self.succeeded = 0
        self.failed: Counter[str] = Counter()
        self.disturbed: Counter[str] = Counter()
        self.sessions_ended = 0

    def succeed(self, at: float, taken: float) -> None:
        self._at[self.succeeded], self._taken[self.succeeded] = at, taken
        self.succeeded += 1

    def latencies(self) -> list[tuple[float, float]]:
        """Seconds since the start, and seconds taken, of each operation that succeeded."""
        return list(zip(self._at[: self.succeeded], self._taken, strict=False))


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
        books.succeed(due - began, time.perf_counter() - due)


async def visit(pool: Any, session_id: str, books: Books) -> None:
    """A session that comes, stays for a while, and goes."""
    from dspool import PoolError

    session = pool.session(session_id)
    try:
        await session.set_variable("n", 1)
        await asyncio.sleep(SESSION_S)
        await session.end()
    except PoolError as failed:
        books.failed[f"change: {failed.code}"] += 1
    else:
        books.sessions_ended += 1


async def load(pool: Any, seconds: float, began: float, books: Books) -> None:
    tasks: set[asyncio.Task[None]] = set()

    def begin(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    for number, at in enumerate(schedule(RATE, seconds, SEED)):
        due = began + at
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        begin(ask(pool, number, due, began, books))
        if number % 100 == 0:
            begin(visit(pool, f"visit{number}", books))
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


@contextlib.contextmanager
def dashboards(url: str, count: int) -> Iterator[None]:
    """As many viewers of the live page, and a few operations over HTTP."""
    command = [sys.executable, "-m", "benchmarks.dashboard_load", url, "--viewers", str(count), "--rate", "5"]
    with process(command, stdout=subprocess.DEVNULL):
        yield


async def run(said: dict[str, Any], directory: Path, seconds: float, options: Any) -> dict[str, Any]:
    # Ray reads them as it is imported.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": said["ray_token_path"]}
    import ray

    from dspool import Pool
    from dspool.runtime.cluster import join_cluster

    books = Books(most=sum(1 for _ in schedule(RATE, seconds, SEED)))
    join_cluster(said["ray_address"])
    pool = await Pool.connect(said["pool"])
    assert await pool.client.wait_ready(WORKERS, 60.0)
    began = time.perf_counter()
    judged_from_s = HALF_HOUR_S if seconds >= 2 * HALF_HOUR_S else seconds / 2
    places = {"state": directory, "ray": Path(said["ray_token_path"]).parent}
    watch = Watch(pool, said["pid"], places, lambda: time.perf_counter() - began)
    with dashboards(said["url"], DASHBOARDS):
        chores = [
            asyncio.create_task(disturb(pool, 2.0 if options.quick else 10.0, books)),
            asyncio.create_task(watch.run(max(0.5, seconds / 400))),
        ]
        if options.trace:
            chores.append(asyncio.create_task(_trace_later(pool, judged_from_s)))
        await load(pool, seconds, began, books)
        for chore in chores:
            chore.cancel()
        for ended in await asyncio.gather(*chores, return_exceptions=True):
            if ended is not None and not isinstance(ended, asyncio.CancelledError):
                raise ended
    left = {"queued": pool.client.queued, "running": pool.client.running}
    lines = await grown(pool) if options.trace else {}
    await pool.close()
    ray.shutdown()
    operations = books.succeeded + sum(books.failed.values())
    failed, used = _budget_used(books, operations)
    workers = watch.worker_slopes()
    return {
        "minutes": round(seconds / 60, 2),
        "operations": operations,
        "sessions_ended": books.sessions_ended,
        "dashboards": DASHBOARDS,
        "disturbed": dict(books.disturbed),
        "failed": dict(books.failed),
        "failed_repeatable": failed,
        "error_budget_used": round(used, 3),
        **watch.figures(judged_from_s),
        "worker_mb_per_hour_median": round(statistics.median(workers), 2) if workers else None,
        "workers_seen": len(watch.memory) - len(watch.lasting()),
        "grown": lines,
        "left": left,
        **drift(books.latencies(), seconds),
    }


async def _trace_later(pool: Any, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await trace(pool)


def settings(port: int) -> dict[str, Any]:
    return {
        "name": "soak",
        "pool_size": WORKERS,
        "max_pool_size": WORKERS + 2,
        "spares": 1,
        "slots_per_worker": SLOTS,
        "max_queue": 100_000,
        "programs": {PROGRAM: {"spec": SPEC, "idempotent": True}},
        # The crash-loop breaker would be right to slow this down.
        "restart": {"intensity": 100_000, "backoff_s": 0.01, "backoff_max_s": 0.1},
        **model_settings(port),
    }


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=15.0, help="of load; 15 by default")
    parser.add_argument("--trace", action="store_true", help="say which lines hold what grew")
    options = parser.parse_args()
    seconds = 12.0 if options.quick else 60 * options.minutes
    header(f"soak: {seconds / 60:.1f} minutes at {LOAD:.0%} load, with kills, resizes and deployments")

    with (
        tempfile.TemporaryDirectory(prefix="dsp-k-", dir="/tmp", ignore_cleanup_errors=True) as directory,
        model_server(MODEL_S) as port,
    ):
        with running_service(Path(directory) / "s", settings(port)) as said:
            everyone = set(psutil.Process(said["pid"]).children(recursive=True))
            work = run(said, Path(directory) / "s", seconds, options)
            result = asyncio.run(asyncio.wait_for(work, seconds + END_LIMIT_S))
            everyone |= set(psutil.Process(said["pid"]).children(recursive=True))
        _, left = psutil.wait_procs(everyone, timeout=30)
    result["processes_left"] = len(left)
    print(
        f"  {result['operations']:,} operations, disturbed by {result['disturbed']}\n"
        f"  failed: {result['failed'] or 'none'}; error budget ({BUDGET:.1%} of operations) used: "
        f"{result['error_budget_used']:.0%} by those that may be repeated\n"
        f"  memory, MB an hour from minute {result['judged_from_minute']} on: {result['memory_interval_mb_per_hour']}; "
        f"a worker in its life (median of {result['workers_seen']}): {result['worker_mb_per_hour_median']}\n"
        f"  growing: {result['growing'] or 'none of ours'}; of Ray's: {result['growing_of_ray'] or 'none'}\n"
        f"  latency, last quarter over first: p50 {result.get('p50_drift')}, p99 {result.get('p99_drift')}\n"
        f"  left at the end: {result['left']}, {result['processes_left']} processes"
    )
    for name, lines in result["grown"].items():
        print(f"  {name} holds more:", *lines, sep="\n    ")
    finish(result, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
