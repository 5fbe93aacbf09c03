"""What does a worker cost to start and to keep, forked from a preloaded parent and started by exec?

    python -m benchmarks.startup [--json] [--quick] [--only figures|litellm|operations] [--soak 1000]

Both kinds of pool run on one cluster, in turn, so that a ratio holds whatever else the machine does. A worker counts as
started when it is warm: in service. Memory is taken after 1,000 operations a worker; PSS shares what is shared, USS is
what one more worker takes. Operations of a forked and of an executed worker are timed in turn, one by one. With
`--soak N` nothing else is done: N workers are started and killed, and what they leave behind is counted; exit code 1
if that is anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import arguments, finish, header, percentile

QUESTION = {"context": "Paris is the capital of France.", "question": "What is the capital of France?"}
MODES = ("fork", "exec")
LITELLM = {
    "lm_profiles": {
        "offline": {"model": "offline", "engine": "offline"},
        "other": {"model": "openai/x", "engine": "litellm"},
    },
    "default_lm": "offline",
    "warmup": {"steps": [{"step": "import_modules", "modules": ["litellm"]}, {"step": "load_programs"}]},
}


@contextlib.asynccontextmanager
async def pool_of(mode: str, size: int, most: int, **more: Any) -> AsyncIterator[Any]:
    from dspool import Pool, PoolConfig

    with tempfile.TemporaryDirectory(prefix="dsp-b-") as state:
        config = PoolConfig.default().override(
            name=f"{mode}{time.monotonic_ns() % 1_000_000}",
            worker_start=mode,
            pool_size=size,
            min_pool_size=1,
            max_pool_size=most,
            state_dir=Path(state),
            init_timeout_s=600.0,
            # The machine may be busy with other things, too.
            health_check_interval_s=30.0,
            health_check_timeout_s=30.0,
            **{"warmup": {"worker_deadline_s": 300.0, "min_ready": size, **more.pop("warmup", {})}},
            **more,
        )
        async with Pool.start(config) as pool:
            yield pool


async def grow(pool: Any, size: int) -> float:
    """Seconds from the order to `size` warm workers."""
    started = time.perf_counter()
    await pool.resize(size)
    while len(pool.client.membership.workers) < size:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return time.perf_counter() - started


async def shrink(pool: Any, size: int) -> None:
    await pool.resize(size)
    while len((await pool.status()).workers) > size:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def ask(pool: Any, count: int, concurrency: int = 32) -> None:
    left = iter(range(count))

    async def caller() -> None:
        for _ in left:
            await pool.execute("qa", timeout_s=60, **QUESTION)

    await asyncio.gather(*(caller() for _ in range(concurrency)))


def memory(pids: list[int]) -> list[Any]:
    return [psutil.Process(pid).memory_full_info() for pid in pids]


def mb(values: list[float]) -> float:
    return round(statistics.mean(values) / 2**20, 1)


def session_dir() -> Path:
    import ray

    return Path(ray._private.worker._global_node.get_session_dir_path())


async def weigh(pool: Any, mode: str, operations: int) -> dict[str, float]:
    """Memory of each worker after so many operations of each, and of all with their parent."""
    from dspool import forkserver

    pids = [member.pid for member in pool.client.membership.workers]
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


async def figures_of(mode: str, *, eight: int, rounds: int, operations: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    started = time.perf_counter()
    async with pool_of(mode, 1, eight + 1) as pool:
        figures["first_s"] = round(time.perf_counter() - started, 2)
        ones, eights = [], []
        for number in range(rounds):
            ones.append(await grow(pool, 2))
            await shrink(pool, 1)
            eights.append(await grow(pool, eight + 1))
            await shrink(pool, eight if number == rounds - 1 else 1)
        figures["start_one_s"] = round(statistics.median(ones), 3)
        figures["start_eight_s"] = round(statistics.median(eights), 3)
        figures |= await weigh(pool, mode, operations)
    return figures


async def litellm_of(mode: str, *, size: int, operations: int) -> dict[str, float]:
    async with pool_of(mode, 1, size, **LITELLM) as pool:
        figures = {"start_one_s": round(await grow(pool, 2), 3)} if size > 1 else {}
        figures |= await weigh(pool, mode, operations)
    del figures["node_total_mb"]
    return {f"{name}_litellm": value for name, value in figures.items()}


async def slower(pairs: int, rounds: int) -> dict[str, float]:
    """How much longer an operation takes on a forked worker, in per cent of the median."""
    async with pool_of("fork", 1, 1) as forked, pool_of("exec", 1, 1) as executed:
        kinds: dict[str, dict[Any, Callable[[], Awaitable[Any]]]] = {
            "program": {},
            "session": {},
            "change": {},
        }
        for pool in (forked, executed):
            session = pool.session("s")
            await session.create_program("reader", "context, question -> answer")
            kinds["program"][pool] = functools.partial(pool.execute, "qa", timeout_s=60, **QUESTION)
            kinds["session"][pool] = functools.partial(session.execute, "reader", **QUESTION)
            kinds["change"][pool] = functools.partial(session.set_variable, "n", 1)
            await ask(pool, 1000)
        found = {}
        for kind, calls in kinds.items():
            taken: dict[Any, list[float]] = {forked: [], executed: []}
            # One by one: whatever else the machine does meets both alike.
            for number in range(pairs):
                for pool in (forked, executed) if number % 2 else (executed, forked):
                    started = time.perf_counter()
                    await calls[pool]()
                    taken[pool].append(time.perf_counter() - started)
            ratio = percentile(taken[forked], 0.5) / percentile(taken[executed], 0.5)
            found[f"{kind}_slower_percent"] = round(100 * (ratio - 1), 1)
            found[f"{kind}_p50_ms"] = round(1000 * percentile(taken[forked], 0.5), 3)
        ratios = []
        for number in range(rounds):
            batches = {}
            for pool in (forked, executed) if number % 2 else (executed, forked):
                started = time.perf_counter()
                await ask(pool, 100)
                batches[pool] = time.perf_counter() - started
            ratios.append(batches[forked] / batches[executed])
    found["at_once_slower_percent"] = round(100 * (statistics.median(ratios) - 1), 1)
    return found


# --- the soak --------------------------------------------------------------------------------------


def left_behind(parent: int) -> dict[str, int]:
    """What there is of each kind of thing that a worker could leave."""
    raylet = next(p for p in psutil.Process().children(recursive=True) if p.name() == "raylet")
    processes = [*raylet.children(recursive=True), *psutil.Process(parent).children(recursive=True)]
    folder = session_dir()
    return {
        "processes": len({process.pid for process in processes}),
        "zombies": sum(process.status() == psutil.STATUS_ZOMBIE for process in processes),
        "sockets": sum(path.is_socket() for path in folder.rglob("*")),
        # A browser on the same machine has its own there.
        "shared_memory": sum(
            not path.name.startswith(".org.chromium") for path in Path("/dev/shm").iterdir()
        ),
        "parent_fds": psutil.Process(parent).num_fds(),
        "raylet_fds": raylet.num_fds(),
    }


def soak(cycles: int, at_once: int = 4, settle_s: float = 5.0) -> dict[str, Any]:
    """Start and kill so many forked workers; half with `ray.kill`, half with SIGKILL."""
    import ray

    from dspool import forkserver

    class Held:
        def pid(self) -> int:
            return os.getpid()

    held: Any = ray.remote(Held).options(num_cpus=0, runtime_env={"py_executable": forkserver.command(())})

    def cycle(number: int) -> None:
        actors = [held.remote() for _ in range(number)]
        for index, (actor, pid) in enumerate(
            zip(actors, ray.get([a.pid.remote() for a in actors]), strict=True)
        ):
            if index % 2:
                os.kill(pid, signal.SIGKILL)
            else:
                ray.kill(actor, no_restart=True)
        gone = time.monotonic() + 30
        while parent_of().workers and time.monotonic() < gone:
            time.sleep(0.01)

    def parent_of() -> Any:
        return next(found for found in forkserver.report(session_dir()) if found.pid is not None)

    def settled() -> dict[str, int]:
        time.sleep(settle_s)
        return left_behind(parent_of().pid)

    keeper = held.remote()
    ray.get(keeper.pid.remote())
    ray.kill(keeper, no_restart=True)
    cycle(at_once)
    before, began = settled(), time.monotonic()
    done = 0
    while done < cycles:
        cycle(min(at_once, cycles - done))
        done += at_once
        if done % 100 < at_once and done < cycles:
            # A soak that is broken off has said something, too.
            now = settled()
            grown = {name: now[name] - before[name] for name in now if now[name] != before[name]}
            print(
                f"  {done} of {cycles}, {time.monotonic() - began:.0f} s, more or less: {grown}", flush=True
            )
    took_s, after = round(time.monotonic() - began, 1), settled()
    left = {name: after[name] - before[name] for name in after}
    return {
        "cycles": cycles,
        "seconds": took_s,
        "before": before,
        "after": after,
        "left": left,
        "clean": not any(number > 0 for number in left.values()),
    }


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=("figures", "litellm", "operations"), help="a part of it")
    parser.add_argument("--soak", type=int, metavar="N", help="start and kill so many, and nothing else")
    chosen = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    header("How workers start")
    quick = chosen.quick
    settle_s = 2.0 if quick else 5.0
    result: dict[str, Any] = {}

    import ray

    from dspool.runtime.cluster import start_cluster

    with tempfile.TemporaryDirectory(prefix="dsp-f-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        start_cluster(Path(folder))
        try:
            if chosen.soak:
                result["soak"] = soak(chosen.soak, settle_s=settle_s)
            else:
                parts = (chosen.only,) if chosen.only else ("figures", "litellm", "operations")
                result |= measure(parts, quick)
                if chosen.only is None:
                    result["soak"] = soak(4 if quick else 100, settle_s=settle_s)
        finally:
            ray.shutdown()
    finish(result, as_json=chosen.json)
    if chosen.soak and not result["soak"]["clean"]:
        raise SystemExit(1)


def measure(parts: Sequence[str], quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {mode: {} for mode in MODES}
    eight, operations = (2, 100) if quick else (8, 1000)
    for mode in MODES:
        if "figures" in parts:
            found["workers"] = eight
            found[mode] |= asyncio.run(
                figures_of(mode, eight=eight, rounds=1 if quick else 3, operations=operations)
            )
        if "litellm" in parts:
            found[mode] |= asyncio.run(litellm_of(mode, size=1 if quick else 2, operations=operations))
        print(f"  {mode:5}", found[mode], flush=True)
    if "figures" in parts:
        for name, key in (("node_total_ratio", "node_total_mb"), ("start_eight_ratio", "start_eight_s")):
            found[name] = round(found["fork"][key] / found["exec"][key], 2)
    if "operations" in parts:
        found |= asyncio.run(slower(100 if quick else 3000, 3 if quick else 60))
    return found


if __name__ == "__main__":
    main()
