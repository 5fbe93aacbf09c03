"""What SIGKILL does to a pool under load: how long until it is whole again, and what becomes of the operations.

A random worker is killed while callers ask again and again: a third of them for a program that may be repeated, a third
for one that may not, a third change variables of sessions. After each kill is measured, as the client sees it, the time
until `pool_size` warm workers take traffic and are connected. Before the next kill a new spare must be warm; that
wait is no recovery time and is stated on its own. Then the same without a spare, and last the supervisor is killed.

- failed_idempotent: failures of operations that may be repeated, of any kind.
- failed_started_not_idempotent: `WorkerLost` of the others; how many of them left no trace of a run is printed too.
- hanging: operations without an end two seconds after their deadline.
- answered_twice: operations that may not be repeated and ran twice, and answers that belong to another operation.
- sessions_lost: sessions whose program is gone, or whose variable is older than the last acknowledged one.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks.common import arguments, finish, header, percentile, ray_cluster

WORKERS = 2
SLOTS = 16
CALLERS = 18
RUN_S = 0.02
DEADLINE_S = 10.0
GRACE_S = 2.0
SEED = 20260
SPARE_WAIT_S = 120.0


class Load:
    """Callers of one pool, and the books about every operation."""

    def __init__(self, pool: Any, log: Path, phase: str) -> None:
        self.pool, self.log, self.phase = pool, log, phase
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.lost: set[str] = set()
        """Labels of `once` that ended with `WorkerLost`."""
        self.hanging = 0
        self.foreign = 0
        self.acknowledged: dict[str, int] = {}
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for number in range(CALLERS // 3):
            session = f"{self.phase}-{number}"
            await self.pool.session(session).create_program("p", "question -> answer")
            await self.pool.session(session).set_variable("n", 0)
            self.acknowledged[session] = 0
            self._tasks.append(asyncio.create_task(self._change(session)))
            self._tasks.append(asyncio.create_task(self._ask("again", number)))
            self._tasks.append(asyncio.create_task(self._ask("once", number)))

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _ask(self, program: str, caller: int) -> None:
        count = 0
        while not self._stopping:
            count += 1
            label = f"{self.phase}-{program}-{caller}-{count}"
            inputs = {"label": label, "path": str(self.log), "seconds": RUN_S}
            result = await self._ended(
                program, label, self.pool.execute(program, timeout_s=DEADLINE_S, **inputs)
            )
            self.foreign += result is not None and result.label != label

    async def _change(self, session: str) -> None:
        value = 0
        handle = self.pool.session(session)
        while not self._stopping:
            value += 1
            if await self._ended("change", session, handle.set_variable("n", value)) is not None:
                self.acknowledged[session] = value
            await asyncio.sleep(RUN_S)

    async def _ended(self, kind: str, label: str, operation: Any) -> Any:
        from dspool import PoolError

        try:
            result = await asyncio.wait_for(operation, DEADLINE_S + GRACE_S)
        except TimeoutError:
            self.hanging += 1
        except PoolError as failed:
            self.failed[f"{kind}: {failed.code}"] += 1
            # The pool was closed under us (Ctrl-C): there is nobody left to ask.
            self._stopping |= failed.code == "pool_closed"
            if kind == "once" and failed.code == "worker_lost":
                self.lost.add(label)
        else:
            self.done[kind] += 1
            return result
        return None

    async def sessions_lost(self) -> int:
        from dspool import PoolError

        lost = 0
        for session, value in self.acknowledged.items():
            handle = self.pool.session(session)
            try:
                programs = [program["program"] for program in (await handle.programs())["programs"]]
                # A later one than the last acknowledged may have been saved just before its worker died.
                lost += "p" not in programs or (await handle.get_variable("n"))["value"] < value
            except PoolError:
                lost += 1
        return lost


def config(name: str, spares: int, state_dir: Path) -> Any:
    from dspool import PoolConfig

    program = {"import_path": "benchmarks.modules:Journal"}
    return PoolConfig(
        name=name,
        pool_size=WORKERS,
        spares=spares,
        slots_per_worker=SLOTS,
        state_dir=state_dir,
        programs={"again": {**program, "idempotent": True}, "once": {**program, "idempotent": False}},  # type: ignore[dict-item]
        allowed_imports=("benchmarks.modules",),
        # The crash-loop breaker would be right to slow this down.
        restart={"intensity": 100_000, "backoff_s": 0.01, "backoff_max_s": 0.01},  # type: ignore[arg-type]
    )


async def whole(pool: Any, without: str | None = None) -> None:
    """Wait until the client is connected to as many warm workers as the pool is to have, and not to `without`."""
    until = time.monotonic() + SPARE_WAIT_S
    while len(members := pool.client.membership.workers) < WORKERS or without in {
        m.worker_id for m in members
    }:
        assert time.monotonic() < until, f"the pool did not become whole: {await pool.status()}"
        await asyncio.sleep(0.001)
    assert await pool.client.wait_ready(WORKERS, SPARE_WAIT_S)


async def spare_warm(pool: Any, spares: int) -> None:
    from dspool.runtime.cluster import ask

    until = time.monotonic() + SPARE_WAIT_S
    while (await ask(pool.supervisor, "status", fresh=False)).spares < spares:
        assert time.monotonic() < until, f"no spare became warm: {await pool.status()}"
        await asyncio.sleep(0.05)


async def kill_workers(
    pool: Any, kills: int, spares: int, chance: random.Random
) -> tuple[list[float], list[float]]:
    """Seconds until the pool was whole after each kill, and then until the next spare was warm."""
    recovery, refill = [], []
    for number in range(kills):
        await whole(pool)
        await spare_warm(pool, spares)
        await asyncio.sleep(chance.uniform(0.1, 0.3))
        victim = chance.choice(pool.client.membership.workers)
        began = time.perf_counter()
        os.kill(victim.pid, signal.SIGKILL)
        await whole(pool, without=victim.worker_id)
        recovery.append(time.perf_counter() - began)
        began = time.perf_counter()
        await spare_warm(pool, spares)
        refill.append(time.perf_counter() - began)
        if (number + 1) % 20 == 0:
            so_far = (
                f"p50 {percentile(recovery, 0.5) * 1e3:.0f} ms, p99 {percentile(recovery, 0.99) * 1e3:.0f} ms"
            )
            print(f"    {number + 1} kills, whole again after {so_far}", flush=True)
    return recovery, refill


async def kill_supervisor(pool: Any, kills: int) -> None:
    """Each successor must have adopted the same workers before the next kill."""
    from dspool import PoolError

    for _ in range(kills):
        workers = {member.worker_id: member.pid for member in pool.client.membership.workers}
        pid = await pool.supervisor.__ray_call__.remote(lambda self: os.getpid())
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.5)
        until = time.monotonic() + SPARE_WAIT_S
        while True:
            try:
                status = await pool.status()
                break
            except PoolError:
                assert time.monotonic() < until, "the supervisor did not come back"
                await asyncio.sleep(0.05)
        kept = {worker.id: worker.pid for worker in status.workers if worker.state == "ready"}
        assert kept == workers, f"the successor did not keep the workers: {kept}, before: {workers}"
        await asyncio.sleep(1.0)


async def phase(name: str, spares: int, kills: int, supervisor_kills: int, directory: Path) -> dict[str, Any]:
    """One pool under load from its start to its end, with its kills; what was seen."""
    from dspool import Pool

    log = directory / f"{name}.log"
    chance = random.Random(SEED)
    async with Pool.start(config(name, spares, directory)) as pool:
        await whole(pool)
        load = Load(pool, log, name)
        await load.start()
        await asyncio.sleep(1.0)
        recovery, refill = await kill_workers(pool, kills, spares, chance)
        before = sum(load.failed.values())
        await kill_supervisor(pool, supervisor_kills)
        supervisor_failed = sum(load.failed.values()) - before
        await load.stop()
        sessions_lost = await load.sessions_lost()
    runs = Counter(log.read_text().split())
    twice = sum(count > 1 for label, count in runs.items() if "-once-" in label)
    return {
        "recovery": recovery,
        "refill": refill,
        "done": sum(load.done.values()),
        "failed": dict(sorted(load.failed.items())),
        "lost_without_trace": len(load.lost - runs.keys()),
        "hanging": load.hanging,
        "answered_twice": twice + load.foreign,
        "sessions_lost": sessions_lost,
        "supervisor_failed": supervisor_failed,
    }


def said(name: str, seen: dict[str, Any]) -> None:
    times = seen["recovery"]
    print(
        f"  {name}: {len(times)} kills, whole again after p50 {percentile(times, 0.5) * 1e3:.0f} ms, "
        f"p99 {percentile(times, 0.99) * 1e3:.0f} ms, max {max(times) * 1e3:.0f} ms; "
        f"then {percentile(seen['refill'], 0.5):.1f} s (p50) until a new spare was warm\n"
        f"    {seen['done']:,} operations succeeded; failed: {seen['failed'] or 'none'} "
        f"({seen['lost_without_trace']} lost without a trace of a run)\n"
        f"    hanging {seen['hanging']}, answered twice {seen['answered_twice']}, "
        f"sessions lost {seen['sessions_lost']}",
        flush=True,
    )


async def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    kills, bare_kills, supervisor_kills = (1, 1, 1) if options.quick else (100, 12, 5)
    header(f"recovery: SIGKILL of a random one of {WORKERS} workers under load from {CALLERS} callers")

    with ray_cluster("dsp-r-") as directory:
        spare = await phase("spare", 1, kills, supervisor_kills, directory)
        said("with one spare", spare)
        bare = await phase("bare", 0, bare_kills, 0, directory)
        said("without a spare", bare)
    print(
        f"  supervisor: {supervisor_kills} kills, {spare['supervisor_failed']} operations failed; "
        "each successor kept the same workers",
        flush=True,
    )
    both = (spare, bare)
    failed = Counter(spare["failed"]) + Counter(bare["failed"])
    result = {
        "kills": kills,
        "recovery_p50_ms": round(percentile(spare["recovery"], 0.5) * 1e3, 1),
        "recovery_p99_ms": round(percentile(spare["recovery"], 0.99) * 1e3, 1),
        "recovery_max_ms": round(max(spare["recovery"]) * 1e3, 1),
        "next_spare_warm_p50_s": round(percentile(spare["refill"], 0.5), 2),
        "failed_idempotent": sum(count for kind, count in failed.items() if kind.startswith("again")),
        "failed_started_not_idempotent": failed["once: worker_lost"] + failed["change: worker_lost"],
        "failed_by_kind": dict(failed),
        "lost_without_trace": sum(seen["lost_without_trace"] for seen in both),
        "hanging": sum(seen["hanging"] for seen in both),
        "answered_twice": sum(seen["answered_twice"] for seen in both),
        "sessions_lost": sum(seen["sessions_lost"] for seen in both),
        "supervisor_kills": supervisor_kills,
        "supervisor_kill_failed": spare["supervisor_failed"],
        "no_spare_kills": bare_kills,
        "no_spare_p50_ms": round(percentile(bare["recovery"], 0.5) * 1e3, 1),
        "no_spare_p99_ms": round(percentile(bare["recovery"], 0.99) * 1e3, 1),
        "operations": spare["done"] + bare["done"],
    }
    finish(result, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
