"""Systems that are called from Python, each driven from a process of its own that does nothing else.

    python -m benchmarks.studies.peers.handles SYSTEM DIRECTORY PORTS

prints `{"ready": [SYSTEM]}`, then answers each line of stdin (system, workload, and concurrency or rate, and seconds)
with a line of JSON; it ends with stdin. Once its system stands it keeps to one processor: what calls, and the client
that is called, share it in all systems.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import load_processor, pin_threads
from benchmarks.load import Taken, closed_loop, open_loop, schedule
from benchmarks.studies.peers import workloads
from benchmarks.studies.peers.abilities import NO_SESSIONS
from benchmarks.studies.peers.workloads import SESSIONS, WORKERS, inputs_of, is_slow


class Called:
    """A system with an awaitable call. `refusals` says by workload what it cannot do."""

    interface = "handle"
    refusals: dict[str, str] = {}  # noqa: RUF012  (read only)

    async def call(self, workload: str, number: int) -> Any:
        raise NotImplementedError

    async def closed(self, workload: str, concurrency: int, seconds: float) -> Taken:
        return await closed_loop(lambda number: self.call(workload, number), concurrency, seconds)

    async def open(self, workload: str, rate: float, seconds: float) -> Taken:
        return await open_loop(lambda number: self.call(workload, number), rate, seconds)


class Dspool(Called):
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def prepare(self) -> None:
        for number in range(SESSIONS):
            await self._pool.session(f"s{number}").create_program("p", workloads.SIGNATURE)

    async def call(self, workload: str, number: int) -> Any:
        if workload == "sessions":
            return await self._pool.session(f"s{number % SESSIONS}").execute("p", question=workloads.QUESTION)
        return await self._pool.execute(workload, **inputs_of(workload, number))


class Held:
    """An actor, or a Serve replica, that runs the programs."""

    def __init__(self, ports: dict[str, int]) -> None:
        self._programs = workloads.load(ports)
        self._awaitables = workloads.awaitables(self._programs, asyncify=False)

    def run(self, workload: str, inputs: dict[str, Any]) -> Any:
        return self._programs[workload](**inputs).toDict()

    async def __call__(self, workload: str, inputs: dict[str, Any]) -> Any:
        return (await self._awaitables[workload](**inputs)).toDict()


class ActorPool:
    """`ray.util.ActorPool`: one operation an actor at a time; what waits, waits in the driver."""

    interface = "handle"
    refusals = {"sessions": NO_SESSIONS}  # noqa: RUF012

    def __init__(self, actors: list[Any]) -> None:
        from ray.util import ActorPool as RayActorPool

        self._pool = RayActorPool(actors)

    def _submit(self, workload: str, number: int) -> None:
        # The pool gives results in any order and says not whose they are: the number goes along.
        def ask(actor: Any, inputs: dict[str, Any]) -> Any:
            return actor.numbered.remote(number, workload, inputs)

        self._pool.submit(ask, inputs_of(workload, number))

    async def closed(self, workload: str, concurrency: int, seconds: float) -> Taken:
        taken, asked = Taken(), {}
        began = time.perf_counter()
        count = 0
        while count < concurrency or self._pool.has_next():
            if count < concurrency or time.perf_counter() - began < seconds:
                asked[count] = time.perf_counter()
                self._submit(workload, count)
                count += 1
                if count < concurrency:
                    continue
            number = self._pool.get_next_unordered()
            taken.latencies[number] = time.perf_counter() - asked[number]
        taken.seconds = time.perf_counter() - began
        return taken

    async def open(self, workload: str, rate: float, seconds: float) -> Taken:
        taken = Taken()
        due = list(schedule(rate, seconds))
        began = time.perf_counter()
        count = 0
        while count < len(due) or self._pool.has_next():
            while count < len(due) and due[count] <= time.perf_counter() - began:
                self._submit(workload, count)
                count += 1
            pause = due[count] - (time.perf_counter() - began) if count < len(due) else None
            if not self._pool.has_next():
                time.sleep(max(0.0, pause or 0.0))  # noqa: ASYNC251  (it has no asynchronous form)
                continue
            try:
                number = self._pool.get_next_unordered(None if pause is None else max(0.0, pause))
            except TimeoutError:
                continue
            taken.latencies[number] = time.perf_counter() - began - due[number]
        taken.seconds = time.perf_counter() - began
        return taken


class NumberedActor(Held):
    def numbered(self, number: int, workload: str, inputs: dict[str, Any]) -> int:
        self.run(workload, inputs)
        return number


class ServeHandle(Called):
    refusals = {"sessions": NO_SESSIONS}  # noqa: RUF012

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def call(self, workload: str, number: int) -> Any:
        return await self._handle.remote(workload, inputs_of(workload, number))


_here: Held | None = None


def _load(ports: dict[str, int]) -> None:
    global _here
    _here = Held(ports)


def _run(workload: str, inputs: dict[str, Any]) -> Any:
    assert _here is not None
    return _here.run(workload, inputs)


class ProcessPool(Called):
    """`concurrent.futures.ProcessPoolExecutor`: one operation a process at a time."""

    refusals = {"sessions": NO_SESSIONS}  # noqa: RUF012

    def __init__(self, ports: dict[str, int]) -> None:
        self._pool = ProcessPoolExecutor(
            WORKERS, mp_context=get_context("spawn"), initializer=_load, initargs=(ports,)
        )

    async def call(self, workload: str, number: int) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, _run, workload, inputs_of(workload, number))


class Taskiq(Called):
    """Taskiq over Redis: two worker processes, results by asking Redis until they are there."""

    interface = "queue"
    refusals = {"sessions": NO_SESSIONS}  # noqa: RUF012

    def __init__(self) -> None:
        from benchmarks.studies.peers import taskiq_app

        self.broker, self._task = taskiq_app.broker, taskiq_app.execute

    async def call(self, workload: str, number: int) -> Any:
        task = await self._task.kiq(workload, inputs_of(workload, number))
        result = await task.wait_result(check_interval=0.002, timeout=60)
        result.raise_for_error()
        return result.return_value


# --- starting ---


@asynccontextmanager
async def on_dspool(directory: Path, ports: dict[str, int]) -> AsyncIterator[Any]:
    from dspool import Pool
    from dspool.config import PoolConfig
    from dspool.runtime.cluster import own_cluster

    with own_cluster("dpb-r-"):
        config = PoolConfig(name="peers", state_dir=directory / "s", **workloads.dspool_settings(ports))
        async with Pool.start(config) as pool:
            ours = Dspool(pool)
            await ours.prepare()
            yield ours


@asynccontextmanager
async def on_actors(directory: Path, ports: dict[str, int]) -> AsyncIterator[Any]:
    import ray

    from dspool.runtime.cluster import own_cluster

    with own_cluster("dpb-r-"):
        remote: Any = ray.remote(num_cpus=0)(NumberedActor)
        actors = [remote.remote(ports) for _ in range(WORKERS)]
        ray.get([actor.run.remote("cheapest", inputs_of("cheapest", 0)) for actor in actors])
        yield ActorPool(actors)


@asynccontextmanager
async def on_serve(directory: Path, ports: dict[str, int]) -> AsyncIterator[Any]:
    # Ray's "Enable High Throughput on Ray Serve": replicas without a second thread for their code, no log line a
    # request, calls between deployments by gRPC. Read when Serve is imported, by replicas as well.
    # docs.ray.io/en/master/kuberay/user-guides/serve-high-throughput.html
    os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    from ray import serve

    from dspool.runtime.cluster import own_cluster

    with own_cluster("dpb-r-"):
        try:
            # More than five requests a replica at once, which is the default:
            # docs.ray.io/en/latest/serve/configure-serve-deployment.html
            deployment = serve.deployment(
                num_replicas=WORKERS, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0}
            )(Held)
            serve.start(http_options={"location": "NoServer"})
            yield ServeHandle(serve.run(deployment.bind(ports), name="peers", route_prefix=None))
        finally:
            await serve.shutdown_async()


@asynccontextmanager
async def in_processes(directory: Path, ports: dict[str, int]) -> AsyncIterator[Any]:
    yield ProcessPool(ports)


@asynccontextmanager
async def over_redis(directory: Path, ports: dict[str, int]) -> AsyncIterator[Any]:
    socket = directory / "redis.sock"
    os.environ["BENCH_REDIS"] = f"unix://{socket}"
    os.environ["BENCH_PORTS"] = json.dumps(ports)
    redis = [
        "redis-server",
        "--port",
        "0",
        "--unixsocket",
        str(socket),
        "--save",
        "",
        "--dir",
        str(directory),
    ]
    redis += ["--logfile", str(directory / "redis.log")]
    app = "benchmarks.studies.peers.taskiq_app:broker"
    worker = [sys.executable, "-m", "taskiq", "worker", app, "--workers", str(WORKERS)]
    worker += ["--log-level", "ERROR", "--max-async-tasks", "256"]
    running = []
    try:
        for command in (redis, worker):
            running.append(await asyncio.create_subprocess_exec(*command, stdout=sys.stderr))
            async with asyncio.timeout(30):
                while not socket.exists():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        ours = Taskiq()
        await ours.broker.startup()
        yield ours
        await ours.broker.shutdown()
    finally:
        for one in reversed(running):
            one.terminate()
            await one.wait()


STARTS = {
    "dspool": on_dspool,
    "actor_pool": on_actors,
    "serve_handle": on_serve,
    "process_pool": in_processes,
    "taskiq_redis": over_redis,
}


async def serve_commands(systems: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    for system in systems.values():
        await system.closed("cheapest", 4, 0.3)
    # What the system started before runs where it likes.
    pin_threads(load_processor())
    warm = {(name, "cheapest") for name in systems}
    print(json.dumps({"ready": list(systems)}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        system = systems[asked["system"]]
        workload, seconds = asked["workload"], asked["seconds"]
        if workload in system.refusals:
            print(json.dumps({"note": system.refusals[workload]}), flush=True)
            continue
        try:
            if (asked["system"], workload) not in warm:
                await system.closed(workload, 4, 0.2)
                warm.add((asked["system"], workload))
            before = time.process_time()
            if asked.get("rate"):
                taken = await system.open(workload, asked["rate"], seconds)
            else:
                taken = await system.closed(workload, asked["concurrency"], seconds)
        except Exception as failed:
            print(json.dumps({"error": f"{type(failed).__name__}: {failed}"}), flush=True)
            continue
        counted = [
            round(1e3 * taken_s, 3)
            for number, taken_s in taken.latencies.items()
            if not is_slow(workload, number)
        ]
        answer = {
            "done": len(taken.latencies),
            "failed": taken.failed,
            "seconds": taken.seconds,
            "load_cpu_s": time.process_time() - before,
            "latencies_ms": counted,
        }
        print(json.dumps(answer), flush=True)


async def main() -> None:
    kind, directory, ports = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    # It ends with stdin, in order, so that nothing it started is left.
    signal.signal(signal.SIGTERM, lambda *_: None)
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    async with AsyncExitStack() as running:
        await serve_commands({kind: await running.enter_async_context(STARTS[kind](directory, ports))})


if __name__ == "__main__":
    asyncio.run(main())
