"""More workers, more slots, more clients: operations a second; and how long workers take to start."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, percentile
from benchmarks.load import closed_loop
from benchmarks.scaling_parts.curves import Busy, Curve
from benchmarks.scaling_parts.work import SETTINGS
from benchmarks.startup import grow
from benchmarks.target_metrics.served import INPUTS, PROGRAM, ask, model_server, pool_of

WAIT_S = 0.1
MODEL_S = 0.2
SLOTS = 8


async def workers(directory: Path, quick: bool) -> list[Curve]:
    """The same pool at growing sizes: work that waits, and work that computes."""
    sizes = (1, 2) if quick else (1, 2, 4, 8, 16, 32)
    seconds = 0.5 if quick else 4.0
    waits = Curve(
        "workers_waiting",
        f"Workers of {SLOTS} slots, operations that wait {WAIT_S * 1e3:g} ms",
        "workers",
        "operations/s",
    )
    computes = Curve(
        "workers_computing",
        "Workers, the cheapest operation, 128 callers",
        "workers",
        "operations/s",
        "No ideal is drawn: this work computes, and the machine has as many processors as it has.",
    )
    most = max(sizes)
    settings = {"pool_size": 1, "min_pool_size": 1, "max_pool_size": most, "slots_per_worker": SLOTS}
    async with pool_of(directory, "c-workers", **settings, **SETTINGS) as pool:
        for number in sizes:
            await grow(pool, number)
            assert await pool.client.wait_ready(number, 60.0)
            wait, callers = (lambda _: pool.execute("wait", seconds=WAIT_S)), number * SLOTS
            await closed_loop(wait, callers, WAIT_S)
            busy = Busy()
            taken = await closed_loop(wait, callers, seconds)
            latencies = list(taken.latencies.values())
            waits.add(
                number,
                taken.ops_per_s,
                callers / WAIT_S,
                cpu_percent=busy.percent(),
                p99_ms=1e3 * percentile(latencies, 0.99),
            )
            taken = await closed_loop(ask(pool), 128, seconds)
            computes.add(number, taken.ops_per_s, cpu_percent=busy.percent())
    return [waits, computes]


async def slots(directory: Path, quick: bool) -> list[Curve]:
    """Two workers, a model of 200 ms behind HTTP, as many callers as slots."""
    numbers = (16, 64) if quick else (16, 32, 64, 128, 256, 512)
    seconds = 1.0 if quick else 6.0
    curve = Curve(
        "slots_model_200ms",
        "Slots of 2 workers, a model of 200 ms behind HTTP",
        "slots",
        "operations/s",
        "A call by lm15 takes 1.5 to 2.2 ms of processor time, its server and client more.",
    )
    with model_server(MODEL_S) as port:
        for number in numbers:
            settings = {"pool_size": 2, "slots_per_worker": number // 2, "model_port": port}
            async with pool_of(directory / str(number), f"c-slots-{number}", **settings) as pool:
                await closed_loop(ask(pool), number, 2 * MODEL_S)
                busy = Busy()
                taken = await closed_loop(ask(pool), number, seconds)
            latencies = list(taken.latencies.values())
            curve.add(
                number,
                taken.ops_per_s,
                number / MODEL_S,
                cpu_percent=busy.percent(),
                p50_ms=1e3 * percentile(latencies, 0.5),
                p99_ms=1e3 * percentile(latencies, 0.99),
            )
    return [curve]


async def clients(directory: Path, quick: bool) -> list[Curve]:
    """One pool of two workers asked by 1 to 16 client processes, 128 callers in all."""
    numbers = (1, 2) if quick else (1, 2, 4, 8, 16)
    seconds = 1.0 if quick else 4.0
    curve = Curve(
        "clients",
        "Client processes, 128 callers in all, the cheapest operation",
        "clients",
        "operations/s",
        "The ideal is what one client reaches: more of them should cost nothing.",
    )
    async with pool_of(directory, "c-clients", pool_size=2, slots_per_worker=64) as pool:
        await closed_loop(ask(pool), 32, 1.0)
        ideal = None
        for number in numbers:
            started = [await _client(pool.name) for _ in range(number)]
            for one in started:
                await one.stdout.readline()
            busy = Busy()
            for one in started:
                one.stdin.write(f"{seconds} {max(1, 128 // number)}\n".encode())
            found = [json.loads(await one.stdout.readline()) for one in started]
            percent = busy.percent()
            for one in started:
                await one.wait()
            rate = sum(done / took for done, took, _ in found)
            ideal = ideal or rate
            curve.add(number, rate, ideal, cpu_percent=percent, p99_ms=1e3 * max(p99 for *_, p99 in found))
    return [curve]


async def starts(directory: Path, quick: bool) -> list[Curve]:
    """One more worker, and many more at once, from the order until all are warm."""
    numbers = (1, 2) if quick else (1, 2, 8, 24, 50)
    curve = Curve(
        "starts",
        "Workers ordered at once, until all are warm",
        "workers",
        "seconds",
        "What a start is made of, and what bounds it, is in docs/performance.md.",
    )
    most = 1 + max(numbers)
    settings = {"pool_size": 1, "min_pool_size": 1, "max_pool_size": most}
    async with pool_of(directory, "c-starts", **settings) as pool:
        for number in numbers:
            busy = Busy()
            took = await grow(pool, 1 + number)
            curve.add(number, took, cpu_percent=busy.percent(), seconds_each=took / number)
            await pool.resize(1)
            while len((await pool.status()).workers) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    return [curve]


# --- a client process ---


async def _client(name: str) -> Any:
    import ray

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "benchmarks.scaling_parts.size", address, name]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=dict(os.environ), stdin=pipe, stdout=pipe
    )


async def _as_client(address: str, name: str) -> None:
    from dspool import Pool
    from dspool.runtime.cluster import join_cluster

    join_cluster(address)
    pool = await Pool.connect(name)
    await pool.wait_ready()
    await pool.execute(PROGRAM, **INPUTS)
    print("ready", flush=True)
    seconds, callers = sys.stdin.readline().split()
    began = time.perf_counter()
    taken = await closed_loop(ask(pool), int(callers), float(seconds))
    took = time.perf_counter() - began
    p99 = percentile(list(taken.latencies.values()), 0.99)
    print(json.dumps([len(taken.latencies), took, p99]), flush=True)
    await pool.close()


if __name__ == "__main__":
    asyncio.run(_as_client(sys.argv[1], sys.argv[2]))
