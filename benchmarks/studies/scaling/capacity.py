"""More workers, more slots, more clients: operations a second; and how long workers take to start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import ROOT, percentile
from benchmarks.load import closed_loop, steady_state
from benchmarks.pools import INPUTS, PROGRAM, ask, classes, cpu_s, grow, pids_of, pool_of
from benchmarks.services import model_server
from benchmarks.studies.scaling.curves import Busy, Curve

WAIT_S = 0.1
MODEL_S = 0.2
SLOTS = 8


async def workers(directory: Path, quick: bool) -> list[Curve]:
    """The same pool at growing sizes: work that waits, and work that computes."""
    sizes = (1, 2) if quick else (1, 2, 4, 8, 16, 32)
    seconds = 0.5 if quick else 3.0
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
    async with pool_of(directory, "c-workers", **settings, **classes(wait="Wait")) as pool:
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
    """Two workers, a model of 200 ms behind HTTP, as many callers as slots; and whose processor time it takes."""
    numbers = (64,) if quick else (16, 64, 128, 256, 512, 1024)
    seconds = 1.0 if quick else 5.0
    curve = Curve(
        "slots_model_200ms",
        "Slots of 2 workers, a model of 200 ms behind HTTP",
        "slots",
        "operations/s",
        "Each point says how many ms of processor time an operation takes in the workers, the client and the model's "
        "server, which all share the machine.",
    )
    with model_server(MODEL_S) as port:
        model = _listening(port)
        for number in numbers:
            settings = {"pool_size": 2, "slots_per_worker": number // 2, "model_port": port}
            async with pool_of(directory / str(number), f"c-slots-{number}", **settings) as pool:
                pids = {
                    "worker": pids_of(pool),
                    "client": [os.getpid()],
                    "model": [model],
                }
                await closed_loop(ask(pool), number, 2 * MODEL_S)
                busy, before = Busy(), _used(pids)
                taken = await steady_state(ask(pool), number, seconds, ramp_s=2 * MODEL_S)
                used, percent = _used(pids), busy.percent()
            latencies = list(taken.latencies.values())
            # What ran in the ramp and at the end took processor time as well.
            operations = taken.ops_per_s * (seconds + 3 * MODEL_S)
            curve.add(
                number,
                taken.ops_per_s,
                number / MODEL_S,
                cpu_percent=percent,
                p50_ms=1e3 * percentile(latencies, 0.5),
                p99_ms=1e3 * percentile(latencies, 0.99),
                **{f"{name}_cpu_ms": 1e3 * (used[name] - before[name]) / operations for name in pids},
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
    numbers = (2,) if quick else (1, 8, 24, 50)
    curve = Curve(
        "starts",
        "Workers ordered at once, until all are warm",
        "workers",
        "seconds",
        "What a start is made of, and what bounds it, is in docs/explanation/performance.md.",
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


def _listening(port: int) -> int:
    """The process at that port, a child of this one; as soon as it is there."""
    until = time.monotonic() + 60.0
    while time.monotonic() < until:
        for one in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if any(at.laddr.port == port and at.status == "LISTEN" for at in one.net_connections()):
                    return one.pid
        time.sleep(0.05)
    raise RuntimeError(f"no process listens at port {port}")


def _used(pids: dict[str, list[int]]) -> dict[str, float]:
    return {name: cpu_s(some) for name, some in pids.items()}


# --- a client process ---


async def _client(name: str) -> Any:
    import ray

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "benchmarks.studies.scaling.capacity", address, name]
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
