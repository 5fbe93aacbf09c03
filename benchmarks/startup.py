"""What does a worker cost to start and to keep, forked from a preloaded parent and started by exec?

    python -m benchmarks.startup [--json] [--quick] [--only figures|soak]

Both kinds of pool run on one cluster, in turn, so that a ratio holds whatever else the machine does. A worker counts as
started when it is warm: in service. Memory is taken after 1,000 operations a worker; PSS shares what is shared, USS is
what one more worker takes. The soak starts and kills workers and looks for what they leave behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
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


async def litellm_of(mode: str, *, operations: int) -> dict[str, float]:
    async with pool_of(mode, 1, 4, **LITELLM) as pool:
        figures = {"start_one_s": round(await grow(pool, 2), 3)}
        figures |= await weigh(pool, mode, operations)
    del figures["node_total_mb"]
    return {f"{name}_litellm": value for name, value in figures.items()}


async def slower(rounds: int, batch: int) -> dict[str, float]:
    """How much longer an operation takes on a forked worker, in per cent: two pools, turn by turn."""
    async with pool_of("fork", 1, 1) as forked, pool_of("exec", 1, 1) as executed:
        for pool in (forked, executed):
            await ask(pool, 200)
        ratios = {"p50": [], "throughput": []}
        for number in range(rounds):
            taken: dict[Any, dict[str, float]] = {}
            for pool in (forked, executed) if number % 2 else (executed, forked):
                times = []
                for _ in range(batch):
                    started = time.perf_counter()
                    await pool.execute("qa", timeout_s=60, **QUESTION)
                    times.append(time.perf_counter() - started)
                started = time.perf_counter()
                await ask(pool, batch)
                taken[pool] = {"p50": percentile(times, 0.5), "throughput": time.perf_counter() - started}
            for name, found in ratios.items():
                found.append(taken[forked][name] / taken[executed][name])
    return {
        f"{name}_slower_percent": round(100 * (statistics.median(found) - 1), 1)
        for name, found in ratios.items()
    }


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
        "shared_memory": len(list(Path("/dev/shm").glob("*"))),
        "parent_fds": psutil.Process(parent).num_fds(),
        "raylet_fds": raylet.num_fds(),
    }


def soak(cycles: int, at_once: int = 4) -> dict[str, Any]:
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
        time.sleep(5.0)
        return left_behind(parent_of().pid)

    keeper = held.remote()
    ray.get(keeper.pid.remote())
    ray.kill(keeper, no_restart=True)
    cycle(at_once)
    before = settled()
    for _ in range(cycles // at_once):
        cycle(at_once)
    after = settled()
    return {
        "cycles": cycles,
        "before": before,
        "after": after,
        "left": {k: after[k] - before[k] for k in after},
    }


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=("figures", "soak"), help="one half of it")
    chosen = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    header("How workers start")
    quick = chosen.quick
    result: dict[str, Any] = {mode: {} for mode in MODES}
    result["workers"] = eight = 2 if quick else 8

    import ray

    from dspool.runtime.cluster import start_cluster

    with tempfile.TemporaryDirectory(prefix="dsp-f-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        start_cluster(Path(folder))
        try:
            if chosen.only != "soak":
                for mode in MODES:
                    result[mode] |= asyncio.run(
                        figures_of(
                            mode, eight=eight, rounds=1 if quick else 3, operations=200 if quick else 1000
                        )
                    )
                    if not quick or mode == "fork":
                        result[mode] |= asyncio.run(litellm_of(mode, operations=100 if quick else 1000))
                    print(f"  {mode:5}", result[mode], flush=True)
                result |= asyncio.run(slower(3 if quick else 30, 50 if quick else 200))
                result["node_total_ratio"] = round(
                    result["fork"]["node_total_mb"] / result["exec"]["node_total_mb"], 2
                )
                result["start_eight_ratio"] = round(
                    result["fork"]["start_eight_s"] / result["exec"]["start_eight_s"], 2
                )
            if chosen.only != "figures":
                result["soak"] = soak(8 if quick else 1000)
                print("  soak ", result["soak"], flush=True)
        finally:
            ray.shutdown()
    finish(result, as_json=chosen.json)


if __name__ == "__main__":
    main()
