"""One service, its clients and what happens to them, for `benchmarks.chaos`."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from benchmarks.appending import lines_of
from benchmarks.chaos_callers import AGAIN, HTTP, ONCE, PYTHON, SESSIONS, Callers, opened
from benchmarks.chaos_faults import Faults, Postgres, SecondNode, small_disk
from benchmarks.common import ROOT, percentile
from benchmarks.processes import processes_of
from benchmarks.services import running_service
from tests.simulation.checker import DECLARED, violations
from tests.simulation.history import Call, History, Run

POOL = "chaos"
WORKERS, SLOTS = 2, 8
AT_ONCE = 12
"""Most faults before a look whether everything works again."""
PAUSE_S = 0.3
WHOLE_S = 180.0
LATE_S, CALM_S = 10.0, 10.0
"""The machine is full of processes that start."""
CLIENTS = (PYTHON, HTTP, PYTHON, HTTP)
OF_A_SERVICE = frozenset(
    {
        "unreachable",
        "ingress_failed",
        "pool_not_ready",
        "cancelled",
        "stale_lease",
        "rate_limited",
        "rejected",
        "idempotency_in_progress",
        "idempotency_outcome_unknown",
    }
)


class Arena:
    """One service, its clients and what happens to them."""

    def __init__(self, directory: Path, said: dict[str, Any], seed: int, node: SecondNode) -> None:
        self.directory, self.said, self.node = directory, said, node
        self.history = History(time.monotonic)
        self.history.slots = SLOTS
        self.clients: dict[str, subprocess.Popen[bytes]] = {}
        self.recovery: list[float] = []
        self.not_recovered = 0
        self.by_kind: Counter[str] = Counter()
        self._started = 0
        self._chance = random.Random(seed)
        self._own: list[Callers] = []
        self._runs = directory / "runs"

    # --- processes ---

    def start_client(self) -> None:
        kind = CLIENTS[self._started % len(CLIENTS)]
        self._started += 1
        name = f"{kind}{self._started}"
        command = [sys.executable, "-m", "benchmarks.chaos_callers", "--kind", kind, "--name", name]
        command += ["--pool", POOL, "--url", self.said["url"], "--address", self.said["ray_address"]]
        command += ["--history", str(self.directory / "history"), "--runs", str(self._runs)]
        command += ["--seed", str(self._chance.getrandbits(32))]
        log = (self.directory / f"{name}.log").open("wb")
        self.clients[name] = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log
        )
        log.close()

    def replace_dead_clients(self) -> None:
        for name, process in list(self.clients.items()):
            if process.poll() is not None:
                del self.clients[name]
                self.history.lost_clients.add(name)
                if name not in self.history.deaths:
                    said = (self.directory / f"{name}.log").read_text()[-500:]
                    self.history.errors.append(f"{name} ended by itself: {said}")
                self.start_client()

    async def processes(self, kind: str) -> dict[str, int]:
        if kind == "client":
            return {name: process.pid for name, process in self.clients.items() if process.poll() is None}
        # Of the second node too: its workers are no children of the service.
        roots = [pid for pid in (self.said["pid"], self.node.pid) if pid is not None]
        return {str(pid): pid for root in roots for pid in processes_of(root).get(kind, [])}

    # --- probes ---

    async def enter(self, stack: AsyncExitStack) -> None:
        """Be a client of both kinds, for looks between faults."""
        for kind in (PYTHON, HTTP):
            pool = await opened(kind, POOL, self.said["url"], self.said["ray_address"], stack)
            history = self.directory / "history"
            self._own.append(Callers(pool, f"probe-{kind}", kind, history, self._runs, 1))

    async def works(self) -> bool:
        """One look: each kind of operation by each way succeeds, and the pool has its size."""
        for callers in self._own:
            calls = await asyncio.gather(
                callers.execute(AGAIN, 0.0), callers.set("s0", callers.name), callers.get("s0", callers.name)
            )
            if any(call.outcome != "ok" for call in calls):
                return False
        from dspool.errors import PoolError

        try:
            async with asyncio.timeout(5.0):
                status = await self._own[0].pool.status()
        except (PoolError, TimeoutError):
            return False
        self.history.last_status = f"{status.state} {status.actual} of {status.desired}: {status.reason}"
        return bool(status.state == "ready" and status.actual >= WORKERS)

    async def recovered(self, faults: Faults) -> bool:
        """Wait until everything works; what is stopped meanwhile goes on in its time."""
        until = time.monotonic() + WHOLE_S
        while time.monotonic() < until:
            faults.undo()
            if await self.works() and not faults.is_under_way:
                return True
            await asyncio.sleep(0.02)
        return False

    async def create_sessions(self) -> None:
        for number in range(SESSIONS):
            call = await self._own[0].set(f"s{number}", "first")
            assert call.outcome == "ok", f"the first change ended with {call.outcome}"

    # --- the run ---

    async def run(self, count: int, faults: Faults) -> None:
        kinds = faults.kinds()
        injected = 0
        while injected < count:
            self.replace_dead_clients()
            if self.node.is_gone and not faults.is_under_way:
                self.node.start()
            batch = self._chance.randint(1, min(AT_ONCE, count - injected))
            for _ in range(batch):
                kind = self._chance.choices(list(kinds), list(kinds.values()))[0]
                if await faults.inject(kind):
                    injected += 1
                    self.by_kind[kind] += 1
                faults.undo()
                await asyncio.sleep(self._chance.expovariate(1.0 / PAUSE_S))
            began = time.monotonic()
            if await self.recovered(faults):
                self.recovery.append(time.monotonic() - began)
            else:
                self.not_recovered += 1
            if injected // 100 > (injected - batch) // 100:
                so_far = f"p99 {percentile(self.recovery or [0.0], 0.99):.1f} s"
                print(
                    f"    {self.directory.name}: {injected} faults, all well again after {so_far}", flush=True
                )

    async def calm(self, faults: Faults) -> None:
        """The faults have stopped: the clients end, and everything must succeed."""
        faults.undo(all_of_it=True)
        self.history.quiet_from = time.monotonic()
        for process in self.clients.values():
            assert process.stdin is not None
            process.stdin.close()
        await asyncio.gather(*(asyncio.to_thread(_end, process) for process in self.clients.values()))
        if await self.recovered(faults):
            self.history.ready_again_at = time.monotonic()
        for callers in self._own:
            for number in range(SESSIONS):
                for client in sorted({call.key for call in self.calls() if call.key is not None}):
                    await callers.get(f"s{number}", client, calm=True)
            for program in (AGAIN, ONCE):
                await callers.execute(program, 0.0, calm=True)

    def calls(self) -> list[Call]:
        """As the clients wrote them down."""
        found: dict[str, Call] = {}
        for line in lines_of(self.directory / "history"):
            if "call" in line:
                found[line["call"]["id"]] = Call(**line["call"])
            else:
                call = found[line["ended"]]
                call.ends += 1
                call.ended_at, call.outcome, call.answer = line["at"], line["outcome"], line["answer"]
        return list(found.values())

    def judged(self) -> list[str]:
        history = self.history
        for call in self.calls():
            history.call(call)
        under_way: dict[tuple[str, int], Run] = {}
        for line in lines_of(self._runs):
            if "began" in line:
                run = Run(line["began"], str(line["pid"]), None, line["at"])
                under_way[line["began"], line["pid"]] = run
                history.runs.append(run)
            else:
                under_way[line["ended"], line["pid"]].ended_at = line["at"]
        return violations(
            history, slots=SLOTS, late_s=LATE_S, calm_s=CALM_S, declared=DECLARED | OF_A_SERVICE
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(90.0)
    except subprocess.TimeoutExpired:
        process.kill()  # its operations have no end then: they hang
        process.wait()


def _kill_all(clients: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in clients.values():
        for number in (signal.SIGCONT, signal.SIGKILL):
            if process.poll() is None:
                process.send_signal(number)


def settings(workers: str, store: str | None) -> dict[str, Any]:
    program = {"import_path": "benchmarks.modules:Chronicle"}
    return {
        "name": POOL,
        "pool_size": WORKERS,
        "max_pool_size": WORKERS + 1,
        "spares": 1 if workers == "fork" else 0,
        "slots_per_worker": SLOTS,
        "worker_start": workers,
        "programs": {AGAIN: {**program, "idempotent": True}, ONCE: {**program, "idempotent": False}},
        "allowed_imports": ["benchmarks.modules"],
        "health_check_interval_s": 0.5,
        "health_check_timeout_s": 0.5,
        "max_health_failures": 3,
        # The breaker would be right to slow this down, and to refuse what workers die of.
        "restart": {"intensity": 100_000, "backoff_s": 0.01, "backoff_max_s": 0.1},
        "retry": {"refuse_poison_s": 0.0},
        **({} if store is None else {"store_url": store}),
    }


async def arena(
    workers: str, store: str, count: int, seed: int, directory: Path, clients: int, number: int
) -> dict[str, Any]:
    """The one with this `number`: several may run on the machine at once."""
    postgres = Postgres(directory / "pg") if store == "postgresql" else None
    with small_disk(directory / "state") as may_be_filled:
        given = settings(workers, None if postgres is None else postgres.url)
        try:
            with running_service(directory / "state", given) as said:
                node = SecondNode(said["ray_address"], f"127.0.0.{2 + number}", directory / "node.log")
                one = Arena(directory, said, seed, node)
                return await _arena(one, count, seed, postgres, may_be_filled, clients)
        finally:
            if postgres is not None:
                postgres.stop()


async def _arena(
    one: Arena, count: int, seed: int, postgres: Postgres | None, may_be_filled: bool, clients: int
) -> dict[str, Any]:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": one.said["ray_token_path"]}
    disk = one.directory / "state" if may_be_filled else None
    faults = Faults(one.processes, one.history, seed, postgres=postgres, disk=disk, node=one.node)
    async with AsyncExitStack() as stack:
        stack.callback(_kill_all, one.clients)
        stack.callback(one.node.stop)
        await one.enter(stack)
        await one.create_sessions()
        for _ in range(clients):
            one.start_client()
        stack.callback(faults.undo, all_of_it=True)
        await one.run(count, faults)
        await one.calm(faults)
    import ray

    ray.shutdown()
    found = await asyncio.to_thread(one.judged)
    return {
        "faults": sum(one.by_kind.values()),
        "by_kind": dict(one.by_kind),
        "operations": len(one.history.calls),
        "violations": found,
        "recovery": one.recovery,
        "not_recovered": one.not_recovered,
        "outcomes": Counter(call.outcome or "none" for call in one.history.calls.values()),
        "left_out": [] if may_be_filled else ["fill disk: no disk of its own could be mounted"],
    }
