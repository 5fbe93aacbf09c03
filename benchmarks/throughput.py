"""How many operations a second a pool of two workers serves, beside what it replaces and the limit of the machine.

One run, the same DSPy program (`question -> answer`, Predict, offline engine), the systems in turn, several rounds:

- limit: as many bare DSPy processes as workers, DSPy as it comes, no pool, no queue, no network.
- limit_same_adapter: the same with the adapter that dspool's workers use, which writes a prompt faster. Stricter:
  nothing that runs the same code in that many processes can be faster.
- pool: `dspool.Pool`, all operations from one client process.
- actor_pool: `ray.util.ActorPool` over actors that run the same worker code.
- serve_handle: a Ray Serve deployment of the same code, called through its handle.

At concurrency 1 the pool is compared with one bare Ray actor call to the same program, call by call in turn.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")

from benchmarks.common import arguments, finish, header, percentile, ray_cluster, spread
from benchmarks.load import batch, closed_loop
from benchmarks.pools import INPUTS, PROGRAM, SPEC, ask, pool_of

WORKERS = 2
CONCURRENCY = 128
SLOTS = 64


class SameCode:
    """The worker's own way to run the program, without a pool around it."""

    def __init__(self) -> None:
        from dspool.config import PoolConfig
        from dspool.messages import Deployment, ExecuteProgram
        from dspool.programs.sessions.host import SessionHost

        self._host = SessionHost(PoolConfig())
        self._host.deploy(Deployment(PROGRAM, 1, spec=SPEC))
        self._command = ExecuteProgram

    def execute(self, inputs: dict[str, Any]) -> Any:
        return self._host.run_inline(self._command(PROGRAM, inputs), None).value

    async def __call__(self, inputs: dict[str, Any]) -> Any:
        return self.execute(inputs)


def _bare(seconds: float, stock: bool, start: Any, counts: Any) -> None:
    import dspy

    from dspool.config import PoolConfig
    from dspool.programs.sessions.host import SessionHost

    host = SessionHost(PoolConfig())
    program = dspy.Predict("question -> answer")
    adapter = dspy.ChatAdapter() if stock else dspy.settings.adapter
    with dspy.context(lm=host.lms.get(None), adapter=adapter):
        for _ in range(200):
            program(**INPUTS)
        start.wait()
        until, done = time.perf_counter() + seconds, 0
        began = time.perf_counter()
        while time.perf_counter() < until:
            program(**INPUTS)
            done += 1
        counts.put(done / (time.perf_counter() - began))


def bare_ops(seconds: float, *, stock: bool) -> float:
    context = multiprocessing.get_context("spawn")
    start, counts = context.Barrier(WORKERS), context.Queue()
    processes = [context.Process(target=_bare, args=(seconds, stock, start, counts)) for _ in range(WORKERS)]
    for process in processes:
        process.start()
    total = sum(counts.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    return total


async def measured(call: Callable[[int], Awaitable[Any]], seconds: float) -> tuple[float, list[float]]:
    """Operations a second and each one's latency, with `CONCURRENCY` callers that ask again at once."""
    taken = await closed_loop(call, CONCURRENCY, seconds)
    if taken.failed:
        raise RuntimeError(f"{taken.failed} operations failed")
    return taken.ops_per_s, list(taken.latencies.values())


def actor_pool_ops(actors: list[Any], seconds: float) -> float:
    from ray.util import ActorPool

    pool, done = ActorPool(actors), 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in pool.map_unordered(
            lambda actor, inputs: actor.execute.remote(inputs), [INPUTS] * CONCURRENCY
        ):
            done += 1
    return done / (time.perf_counter() - began)


async def one_at_a_time(pool: Any, actor: Any, calls: int) -> tuple[list[float], list[float]]:
    """Latencies of the pool and of a bare actor call, one operation in flight, in turn."""
    import ray

    ours, bare = [], []
    for index in range(calls + 50):
        began = time.perf_counter()
        await pool.execute(PROGRAM, **INPUTS)
        between = time.perf_counter()
        ray.get(actor.execute.remote(INPUTS))
        if index >= 50:
            ours.append(between - began)
            bare.append(time.perf_counter() - between)
    return ours, bare


async def memory_after(pool: Any, operations: int) -> dict[str, float]:
    """Growth of the client and of the workers over `operations`, in MB, after a first tenth as warm-up."""
    import psutil

    def now() -> dict[str, float]:
        pids = {"client": os.getpid()} | {f"worker{m.ordinal}": m.pid for m in pool.client.membership.workers}
        return {name: psutil.Process(pid).memory_info().rss / 2**20 for name, pid in pids.items()}

    await batch(ask(pool), operations // 10, CONCURRENCY)
    before = now()
    await batch(ask(pool), operations, CONCURRENCY)
    return {name: round(after - before[name], 2) for name, after in now().items()}


async def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    seconds, rounds, calls = (1.0, 1, 50) if options.quick else (4.0, 5, 1000)
    operations = 2_000 if options.quick else 100_000
    header("throughput: cheapest signature, 2 workers, 128 concurrent, offline engine")

    import ray
    from ray import serve

    names = ("limit", "limit_same_adapter", "pool", "actor_pool", "serve_handle")
    figures: dict[str, list[float]] = {name: [] for name in names}
    latencies: list[float] = []
    settings = {"pool_size": WORKERS, "slots_per_worker": SLOTS}
    with ray_cluster("dsp-p-") as directory:
        async with pool_of(directory / "s", "bench", **settings) as pool:
            remote = ray.remote(num_cpus=0)(SameCode)
            actors = [remote.remote() for _ in range(WORKERS)]
            deployment = serve.deployment(
                num_replicas=WORKERS, max_ongoing_requests=CONCURRENCY, ray_actor_options={"num_cpus": 0}
            )(SameCode)
            serve.start(http_options={"location": "NoServer"})
            handle = serve.run(deployment.bind(), name="bench", route_prefix=None)
            ray.get([actor.execute.remote(INPUTS) for actor in actors])
            await measured(ask(pool), seconds / 2)
            await measured(lambda _: handle.remote(INPUTS), seconds / 2)
            for _ in range(rounds):
                figures["limit"].append(bare_ops(seconds, stock=True))
                figures["limit_same_adapter"].append(bare_ops(seconds, stock=False))
                rate, taken = await measured(ask(pool), seconds)
                figures["pool"].append(rate)
                latencies += taken
                figures["actor_pool"].append(actor_pool_ops(actors, seconds))
                rate, _ = await measured(lambda _: handle.remote(INPUTS), seconds)
                figures["serve_handle"].append(rate)
            serve.delete("bench")
            ours, bare = await one_at_a_time(pool, actors[0], calls)
            growth = await memory_after(pool, operations)
        await serve.shutdown_async()

    def ratio(peer: str) -> float:
        return statistics.median(ours / its for ours, its in zip(figures["pool"], figures[peer], strict=True))

    result = {
        **{f"{name}_ops_per_s": round(statistics.median(values), 1) for name, values in figures.items()},
        "vs_actor_pool": round(ratio("actor_pool"), 2),
        "vs_limit": round(ratio("limit"), 3),
        "vs_limit_same_adapter": round(ratio("limit_same_adapter"), 3),
        "p50_ms": round(percentile(latencies, 0.50) * 1e3, 2),
        "p99_ms": round(percentile(latencies, 0.99) * 1e3, 2),
        "overhead_p50_ms": round((percentile(ours, 0.5) - percentile(bare, 0.5)) * 1e3, 3),
        "one_p50_ms": round(percentile(ours, 0.5) * 1e3, 3),
        "bare_actor_p50_ms": round(percentile(bare, 0.5) * 1e3, 3),
        "vs_bare_actor": round(percentile(ours, 0.5) / percentile(bare, 0.5), 2),
        "memory_growth_mb": growth,
        "memory_operations": operations,
        "rounds": rounds,
    }
    for name, values in figures.items():
        print(f"  {name:18s} {spread(values)} operations/s, {rounds} rounds of {seconds:g} s")
    print(
        f"  pool at 128 concurrent: p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms\n"
        f"  at concurrency 1: p50 {result['one_p50_ms']} ms, a bare actor call {result['bare_actor_p50_ms']} ms "
        f"(ratio {result['vs_bare_actor']}, to reach: at most 1.2)\n"
        f"  against ActorPool {result['vs_actor_pool']} times (to reach: 5), of the limit {result['vs_limit']} "
        f"(to reach: 0.75), {result['vs_limit_same_adapter']} of it with our adapter\n"
        f"  memory over {operations:,} operations: "
        + ", ".join(f"{name} {grown:+.1f} MB" for name, grown in growth.items())
    )
    finish(result, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
