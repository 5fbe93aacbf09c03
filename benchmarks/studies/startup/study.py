"""What does a worker cost to start and to keep, forked from a preloaded parent and started by exec?

    python -m benchmarks.startup [--json] [--quick] [--only PART,...] [--soak 1000]

Both kinds of pool run on one cluster at the same time and take turns, so that a ratio holds whatever else the machine
does: each ratio is the median of those of all turns. A worker counts as started when it is warm: in service. Memory is
taken after 1,000 operations a worker; PSS shares what is shared, USS is what one more worker takes. Operations of a
forked and of an executed worker are timed in turn, one by one, on several pairs of workers, as processes of one kind
differ, too; `slower_percent` is the largest of what was found, `noise_percent` how much two executed workers
differed. With `--soak N` nothing else is done: N workers are started and killed, and what they leave behind is counted;
exit code 1 if that is anything.
"""

from __future__ import annotations

import asyncio
import functools
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import psutil

from benchmarks.common import arguments, finish, header, ray_cluster
from benchmarks.pools import grow, pids_of
from benchmarks.studies.startup.leftovers import session_dir, soak
from benchmarks.studies.startup.modes import (
    MODES,
    QUESTION,
    Pools,
    ask,
    both,
    end_parents,
    pool_started_by,
    shrink,
    turns,
)

PARTS = ("figures", "litellm", "operations", "soak")
LITELLM = {
    "lm_profiles": {
        "offline": {"model": "offline", "engine": "offline"},
        "other": {"model": "openai/x", "engine": "litellm"},
    },
    "default_lm": "offline",
    "warmup": {"steps": [{"step": "import_modules", "modules": ["litellm"]}, {"step": "load_programs"}]},
}


def memory(pids: list[int]) -> list[Any]:
    return [psutil.Process(pid).memory_full_info() for pid in pids]


def mb(values: list[float]) -> float:
    return round(statistics.mean(values) / 2**20, 1)


async def weigh(pool: Any, mode: str, operations: int) -> dict[str, float]:
    """Memory of each worker after so many operations of each, and of all with their parent."""
    from dspool.runtime import forkserver

    pids = pids_of(pool)
    await ask(pool, operations * len(pids))
    workers = memory(pids)
    parents = [
        found.pid
        for found in forkserver.report(session_dir())
        if found.pid is not None and set(pids) <= set(found.workers)
    ]
    if mode == "fork" and len(parents) != 1:
        raise RuntimeError(f"the workers were not forked from one parent: {(await pool.status()).workers}")
    return {
        "pss_mb": mb([used.pss for used in workers]),
        "uss_mb": mb([used.uss for used in workers]),
        "rss_mb": mb([used.rss for used in workers]),
        "node_total_mb": round(sum(used.pss for used in [*workers, *memory(parents)]) / 2**20, 1),
    }


async def figures(
    pools: Pools, first: dict[str, float], *, eight: int, rounds: int, operations: int
) -> dict[str, Any]:
    ones: dict[str, list[float]] = {mode: [] for mode in MODES}
    eights: dict[str, list[float]] = {mode: [] for mode in MODES}
    for order in turns(rounds):
        for mode in order:
            ones[mode].append(await grow(pools[mode], 2))
            await shrink(pools[mode], 1)
        for mode in order:
            eights[mode].append(await grow(pools[mode], eight + 1))
            await shrink(pools[mode], 1)
    found: dict[str, Any] = {"workers": eight}
    for mode, pool in pools.items():
        await grow(pool, eight)
        found[mode] = {
            "first_s": first[mode],
            "start_one_s": round(statistics.median(ones[mode]), 3),
            "start_eight_s": round(statistics.median(eights[mode]), 3),
            **await weigh(pool, mode, operations),
        }
        # The one that stays weighs little beside the other pool's.
        await shrink(pool, 1)
    for name, taken in (("start_one", ones), ("start_eight", eights)):
        each = [forked / executed for forked, executed in zip(taken["fork"], taken["exec"], strict=True)]
        found[f"{name}_ratio"] = round(statistics.median(each), 2)
        found[f"{name}_ratios"] = [round(ratio, 2) for ratio in each]
    found["node_total_ratio"] = round(found["fork"]["node_total_mb"] / found["exec"]["node_total_mb"], 2)
    return found


async def with_litellm(*, eight: int, operations: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with both(1, eight + 1, **LITELLM) as (pools, _):
        for mode, pool in pools.items():
            one_s = eights_s = await grow(pool, 2)
            if eight > 1:
                await shrink(pool, 1)
                eights_s = await grow(pool, eight + 1)
                await shrink(pool, eight)
            taken = {"start_one_s": round(one_s, 3), "start_eight_s": round(eights_s, 3)}
            taken |= await weigh(pool, mode, operations)
            found[mode] = {f"{name}_litellm": value for name, value in taken.items()}
            await shrink(pool, 1)
    return found


# --- the time of operations ------------------------------------------------------------------------


Ratios = dict[str, dict[str, list[float]]]
"""To the executed worker's time: by pool, then by kind of operation, of each pair."""


async def slower(groups: int, pairs: int, rounds: int) -> dict[str, Any]:
    """How much longer an operation takes on a forked worker, in per cent: the median of several pairs of workers.

    And how much two executed workers differ, by the same measure: less than that says nothing about forking.
    """
    ratios: Ratios = {}
    # Of pools made one after the other, the first was up to 3 % slower at changes of a session, whatever its kind.
    for order in turns(groups):
        async with both(1, 1, order=order) as (pools, _), pool_started_by("exec", 1, 1) as again:
            await compare({**pools, "again": again}, ratios, pairs, rounds)
    found = compared(ratios["fork"])
    noise = [100 * abs(statistics.median(seen) - 1) for seen in ratios["again"].values()]
    return {**found, "noise_percent": round(max(noise), 1)}


async def compare(pools: Pools, ratios: Ratios, pairs: int, rounds: int) -> None:
    """Add to `ratios` what these workers do."""
    calls = {name: await calls_of(pool) for name, pool in pools.items()}
    for kind in calls["fork"]:
        taken = await times(calls, kind, pairs)
        print(f"    {kind}, median ms:", {name: round(1000 * seen, 3) for name, seen in taken.items()})
        for name in taken.keys() - {"exec"}:
            ratios.setdefault(name, {}).setdefault(kind, []).append(taken[name] / taken["exec"])
    for name, ratio in (await at_once(pools, rounds)).items():
        ratios[name].setdefault("at_once", []).append(ratio)


def compared(ratios: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """For each kind of operation how much slower the forked worker of each pair was, the median, and the worst kind."""
    found: dict[str, Any] = {}
    for kind, seen in ratios.items():
        found[f"{kind}_slower_percent"] = round(100 * (statistics.median(seen) - 1), 1)
        found[f"{kind}_slower_percents"] = [round(100 * (ratio - 1), 1) for ratio in seen]
    found["slower_percent"] = max(found[f"{kind}_slower_percent"] for kind in ratios)
    return found


async def calls_of(pool: Any) -> dict[str, Callable[[], Awaitable[Any]]]:
    """One operation of each kind, on a worker that has done many."""
    session = pool.session("s")
    await session.create_program("reader", "context, question -> answer")
    await ask(pool, 1000)
    return {
        "program": functools.partial(pool.execute, "qa", timeout_s=60, **QUESTION),
        "session": functools.partial(session.execute, "reader", **QUESTION),
        "change": functools.partial(session.set_variable, "n", 1),
    }


async def times(
    calls: dict[str, dict[str, Callable[[], Awaitable[Any]]]], kind: str, pairs: int
) -> dict[str, float]:
    """The median of each worker. One by one: whatever else the machine does meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for order in turns(pairs, tuple(calls)):
        for name in order:
            started = time.perf_counter()
            await calls[name][kind]()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seen) for name, seen in taken.items()}


async def at_once(pools: Pools, rounds: int) -> dict[str, float]:
    """The ratios of the times for 200 operations, 32 at once, to those of the executed worker."""
    ratios: dict[str, list[float]] = {name: [] for name in pools if name != "exec"}
    for order in turns(rounds, tuple(pools)):
        took = {}
        for name in order:
            started = time.perf_counter()
            await ask(pools[name], 200)
            took[name] = time.perf_counter() - started
        for name, seen in ratios.items():
            seen.append(took[name] / took["exec"])
    return {name: statistics.median(seen) for name, seen in ratios.items()}


# --- all of it -------------------------------------------------------------------------------------


def main() -> int:
    parser = arguments(__doc__ or "", PARTS)
    parser.add_argument("--soak", type=int, metavar="N", help="start and kill so many, and nothing else")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    header("How workers start")
    quick = options.quick
    parts, cycles = (["soak"], options.soak) if options.soak else (options.only, 4 if quick else 100)
    result: dict[str, Any] = {}
    # It ends the parents that workers are forked from.
    with ray_cluster("dsp-f-", alone=True):
        if set(parts) - {"soak"}:
            result |= asyncio.run(measure(parts, quick))
            end_parents()
        if "soak" in parts:
            result["soak"] = soak(cycles, settle_s=1.0 if quick else 5.0)
    finish(result, as_json=options.json)
    return 1 if options.soak and not result["soak"]["clean"] else 0


async def measure(parts: Sequence[str], quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {mode: {} for mode in MODES}
    eight, operations = (2, 100) if quick else (8, 1000)

    def say(part: str, seen: dict[str, Any]) -> None:
        print(f"  {part}: {seen}", flush=True)
        for mode in MODES:
            found[mode] |= seen.pop(mode, {})
        found.update(seen)

    if "figures" in parts:
        async with both(1, eight + 1) as (pools, first):
            rounds = 1 if quick else 3
            say("figures", await figures(pools, first, eight=eight, rounds=rounds, operations=operations))
            if quick and "operations" in parts:
                ratios: Ratios = {}
                await compare(pools, ratios, 100, 3)
                say("operations", compared(ratios["fork"]))
    if "litellm" in parts:
        say("litellm", await with_litellm(eight=1 if quick else 8, operations=operations))
    if "operations" in parts and not (quick and "figures" in parts):
        say("operations", await slower(*((1, 100, 3) if quick else (6, 500, 60))))
    return found
