"""What a team's own program costs beside a spec, and what its memory, a reload and a bad neighbour cost.

- own: a custom module with `aforward` against the same spec, in turn, 128 concurrent: `own_vs_spec`.
- typed: one with a nested pydantic input against the same with the input as it comes: `typed_vs_plain`.
- shared: eight workers whose program has 200 MB of embeddings, preloaded: what each shares with nobody
  (`shared_uss_mb`), and how long one more takes to start; beside it the same without `preload`.
- blocked: the p99 of others while a program keeps the loop of its worker for a second at a time, again and again.
- inprocess: start of the pool in a test's process, median.
- reload: from saving a file to the first answer of its new code, with `dspool dev`, median.

A part that fails leaves its figures null, and says why in `failed_parts`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks.common import arguments, attempt, finish, header, percentile, ray_cluster, spread
from benchmarks.load import batch, closed_loop, open_loop
from benchmarks.pools import INPUTS, PROGRAM, SPEC, ask, classes, grow, pool_of
from benchmarks.reloading import reload

PARTS = ("own", "typed", "shared", "blocked", "inprocess", "reload")
GOALS = {
    "reload_s": "<= 2",
    "typed_vs_plain": ">= 0.9",
    "shared_uss_mb": "< 40",
    "own_vs_spec": ">= 0.95",
    "inprocess_start_s": "< 0.2",
    "blocked_neighbour_p99_ms": "<= 200",
}
WORKERS = 2
SHARING = 8
CONCURRENCY = 128
SLOTS = 64
NEIGHBOURS_PER_S = 100.0
LIMIT_S = 240.0
ORDER = {
    "number": 4711,
    "customer": {"name": "Ada", "email": "ada@example.com"},
    "lines": [{"item": f"part {number}", "count": number, "price": 1.5} for number in range(1, 6)],
}

Figures = dict[str, Any]
Call = Callable[[int], Awaitable[Any]]


async def ratio(
    one: Call, other: Call, seconds: float, rounds: int
) -> tuple[float, list[float], list[float]]:
    """Throughput of `one` over that of `other`, in turn in one run; the median of the rounds, and both."""
    found: tuple[list[float], list[float]] = [], []
    for call in (one, other):
        await closed_loop(call, CONCURRENCY, 2 * seconds)
    for number in range(rounds):
        order = [(found[0], one), (found[1], other)]
        for rates, call in order if number % 2 else reversed(order):
            taken = await closed_loop(call, CONCURRENCY, seconds)
            if taken.failed:
                raise RuntimeError(f"{taken.failed} operations failed")
            rates.append(taken.ops_per_s)
    return statistics.median(a / b for a, b in zip(*found, strict=True)), *found


async def own(directory: Path, seconds: float, rounds: int) -> Figures:
    settings = classes(own="Answer") | {"pool_size": WORKERS, "slots_per_worker": SLOTS}
    async with pool_of(directory / "own", "bench-own", **settings) as pool:
        found, ours, spec = await ratio(lambda _: pool.execute("own", **INPUTS), ask(pool), seconds, rounds)
    print(f"  own: a module {spread(ours)}, its spec {spread(spec)} operations/s")
    return {"own_vs_spec": round(found, 3)}


async def typed(directory: Path, seconds: float, rounds: int) -> Figures:
    settings = classes(typed="TypedOrder", plain="PlainOrder") | {
        "pool_size": WORKERS,
        "slots_per_worker": SLOTS,
    }
    async with pool_of(directory / "typed", "bench-typed", **settings) as pool:
        found, models, plain = await ratio(
            lambda _: pool.execute("typed", order=ORDER),
            lambda _: pool.execute("plain", order=ORDER),
            seconds,
            rounds,
        )
    print(f"  typed: a model {spread(models)}, plain {spread(plain)} operations/s")
    return {"typed_vs_plain": round(found, 3)}


async def shared(directory: Path, workers: int, *, preload: bool) -> Figures:
    """Memory of each worker, after all have used the index, and seconds that one more takes to start."""
    from benchmarks.embeddings import INDEX_MB

    here = "benchmarks.embeddings"
    settings: dict[str, Any] = {
        "programs": {"retrieve": {"import_path": f"{here}:Retriever"}},
        "allowed_imports": (here,),
        "preload": (here,) if preload else (),
        "pool_size": workers,
        "max_pool_size": workers + 1,
        "strategy": "fifo",
        "slots_per_worker": 1,
    }
    async with pool_of(directory / f"shared-{preload}", f"bench-shared-{int(preload)}", **settings) as pool:
        await batch(lambda _: pool.execute("retrieve", query=1.0), 5 * workers, workers)
        members = pool.client.membership.workers
        memory = [await pool.worker_memory(member.worker_id) for member in members]
        starts = {worker.start for worker in (await pool.status()).workers}
        another_s = await grow(pool, workers + 1)
    figures = {kind: statistics.median(one[f"{kind}_mb"] for one in memory) for kind in ("uss", "pss", "rss")}
    print(
        f"  shared: {workers} workers with {INDEX_MB} MB of embeddings, {'' if preload else 'not '}preloaded "
        f"({', '.join(starts)}): USS {figures['uss']:.0f}, PSS {figures['pss']:.0f}, RSS {figures['rss']:.0f} MB each; "
        f"one more in {another_s:.2f} s"
    )
    return {**{f"{kind}_mb": value for kind, value in figures.items()}, "another_s": round(another_s, 3)}


async def blocked(directory: Path, seconds: float) -> Figures:
    """Two workers; one caller blocks a loop again and again, others come on a schedule of their own."""
    settings = classes(block="Blocking") | {"pool_size": WORKERS, "slots_per_worker": 8}
    async with pool_of(directory / "blocked", "bench-blocked", **settings) as pool:
        quiet = await open_loop(ask(pool), NEIGHBOURS_PER_S, seconds / 2)
        until = time.perf_counter() + seconds

        async def block() -> int:
            times = 0
            while time.perf_counter() < until:
                await pool.execute("block")
                times += 1
            return times

        beside, times = await asyncio.gather(open_loop(ask(pool), NEIGHBOURS_PER_S, seconds), block())
    p99s = [percentile(list(taken.latencies.values()), 0.99) * 1e3 for taken in (quiet, beside)]
    print(
        f"  blocked: {times} times a second of a worker's loop; p99 of {len(beside.latencies)} others "
        f"{p99s[1]:.0f} ms, {p99s[0]:.1f} ms without; {beside.failed} failed"
    )
    if beside.failed:
        raise RuntimeError(f"{beside.failed} of the others failed")
    return {"blocked_neighbour_p99_ms": round(p99s[1], 1), "unblocked_p99_ms": round(p99s[0], 1)}


async def inprocess(starts: int) -> Figures:
    from dspool.config import ProgramConfig
    from dspool.testing import local_pool

    taken = []
    for _ in range(starts + 1):
        began = time.perf_counter()
        async with local_pool({PROGRAM: ProgramConfig(spec=SPEC)}) as pool:
            taken.append(time.perf_counter() - began)
            await pool.execute(PROGRAM, **INPUTS)
    print(
        f"  inprocess: {starts} starts, median {statistics.median(taken[1:]):.3f} s; the first {taken[0]:.3f} s"
    )
    return {
        "inprocess_start_s": round(statistics.median(taken[1:]), 4),
        "inprocess_first_start_s": round(taken[0], 3),
    }


async def measure(part: str, directory: Path, *, quick: bool) -> Figures:
    # Short turns: what else this machine does then falls on both sides of a ratio.
    seconds, rounds = (1.0, 1) if quick else (0.75, 28)
    if part == "own":
        return await own(directory, seconds, rounds)
    if part == "typed":
        return await typed(directory, seconds, rounds)
    if part == "blocked":
        return await blocked(directory, 3.0 if quick else 20.0)
    if part == "inprocess":
        return await inprocess(3 if quick else 20)
    if part == "reload":
        return await asyncio.to_thread(reload, 2 if quick else 20)
    with_it = await shared(directory, 2 if quick else SHARING, preload=True)
    without = await shared(directory, 2, preload=False)
    return {
        "shared_uss_mb": with_it["uss_mb"],
        "shared": with_it,
        "unshared": without,
    }


async def main() -> int:
    options = arguments(__doc__ or "", PARTS).parse_args()
    header("programs: a team's own modules, offline engine")
    figures: Figures = dict.fromkeys(GOALS)
    failed: dict[str, str] = {}
    clustered = [part for part in options.only if part not in ("inprocess", "reload")]
    if clustered:
        with ray_cluster("dsp-o-") as directory:
            for part in clustered:
                work = measure(part, directory, quick=options.quick)
                figures |= await attempt(part, work, LIMIT_S, failed) or {}
    for part in options.only:
        if part not in clustered:
            with tempfile.TemporaryDirectory() as directory_name:
                work = measure(part, Path(directory_name), quick=options.quick)
                figures |= await attempt(part, work, LIMIT_S, failed) or {}
    for name, goal in GOALS.items():
        print(f"  {name:26s} {'-' if figures[name] is None else figures[name]}  (to reach: {goal})")
    finish({**figures, "failed_parts": failed}, as_json=options.json)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
