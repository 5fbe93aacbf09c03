"""What the loss of a machine costs: three nodes with Ray and a service, a fourth with the database, and a load.

The machines are Linux namespaces (`tests/cluster`), which takes root. After each trouble all is well again before the
next. Of each, in seconds and numbers:

- detected_s: until the service itself no longer counts on a worker of the lost machine, or says that its store is
  missing.
- sessions_back_s: until the last of the sessions had an answer again; null: one had none before all was mended. Without
  the store sessions can be read and asked, and not changed: there it counts from the store's return until a change of
  each session was acknowledged.
- traffic_gap_s: the longest time without any answer to those who ask for no session, at the nodes that are left.
- failed: requests that met an error, nobody trying again; `met` says which.
- hanging: requests without an end when their deadline had passed.
- lost_changes: sessions that have no longer what was acknowledged. stale_commits: reads that found something older
  that no change which failed explains (it may still have been made): the first ones are in `stale`,
  lost ones in `lost`.
- control: what of the pool but workers stood on the machine.

`spread` is the number of workers on each node: after the start, after a loss, after the return.

`apply_failed_of_100k` and `rolling_failed_of_100k`: of 100,000 requests (5,000 if quick) to a service on one machine,
which is changed all the while, how many failed; `changes` has the answers by status. `upgrade_failed_of_100k`: the same
while a service is upgraded to and fro between two installations of this version, each in an environment of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks import changes
from benchmarks.common import arguments, finish, header
from tests.cluster.database import Database
from tests.cluster.load import POOL, Load
from tests.cluster.machine import Machine
from tests.cluster.possible import why_not
from tests.cluster.ray_nodes import RayNodes
from tests.cluster.service import Service
from tests.cluster.switch import Switch

TROUBLES = ("power_off", "freeze", "partition", "head_loss", "store_loss")
CHANGES = ("apply_failed_of_100k", "rolling_failed_of_100k", "upgrade_failed_of_100k")
QUICK = ("power_off", "freeze")
CONTROL = ("supervisor", "store", "metrics")
WORKERS = 3
WHOLE_S = 120.0
AFTER_S = 5.0
"""How long the load goes on once all sessions are back."""
SLOW_S = 60.0
"""When nobody expects a session to come back any more."""


class Bench:
    """A service on three machines; `others` are the nodes that are not the head."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        switch = stack.enter_context(Switch())
        self.machines = [Machine(f"node{number}", number, switch, directory) for number in range(1, 5)]
        for machine in self.machines:
            stack.callback(machine.close)
        self.database = Database(self.machines[3])
        self.database.start()
        self.redis = f"{self.machines[3].address}:6380"
        flags = "--port 6380 --bind 0.0.0.0 --protected-mode no --save --appendonly no"
        self._redis = self.machines[3].start(["redis-server", *flags.split()])
        self.nodes = RayNodes(self.machines[:3], redis=self.redis)
        self.nodes.start()
        self.service = Service(
            self.nodes,
            {
                "pool_size": WORKERS,
                "max_pool_size": WORKERS,
                "spares": 1,
                "store_url": self.database.url,
                "ingress": {"per_node": 1},
                "programs": {"qa": {"spec": {"signature": "context, question -> answer"}}},
            },
        )

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(headers=self.service.headers, timeout=2.0, trust_env=False)

    async def pool(self, machine: Machine, http: httpx.AsyncClient | None = None) -> dict[str, Any] | None:
        """The pool, as the ingress on `machine` shows it; None: it does not."""
        async with contextlib.nullcontext(http) if http is not None else self.client() as http:
            try:
                answer = await http.get(f"{self.service.url_on(machine)}{POOL}")
            except httpx.HTTPError:
                return None
        return answer.json() if answer.status_code == 200 else None

    async def spread(self, at: Machine) -> list[int]:
        """Workers that take traffic, by node, most first; nodes without one are not in it."""
        pool = await self.pool(at) or {"workers": []}
        counts = Counter(worker["node"] for worker in pool["workers"] if worker["state"] == "ready")
        return sorted(counts.values(), reverse=True)

    async def whole(self, *, nodes: int = 3) -> None:
        """All workers and the spare are warm, and each of the machines' ingresses says so."""
        until = time.monotonic() + WHOLE_S
        waiting = list(self.machines[:nodes])
        while waiting and time.monotonic() < until:
            pool = await self.pool(waiting[0])
            if pool is not None and (pool["actual"], pool["spares"]) == (WORKERS, 1):
                waiting.pop(0)
            else:
                await asyncio.sleep(0.2)
        if waiting:
            raise TimeoutError(f"the service is not whole after {WHOLE_S:g} s at {waiting[0].name}")

    async def balanced(self) -> list[int]:
        """The spread once each node has a worker, or after two and a half minutes as it is then."""
        until = time.monotonic() + 150.0
        while (  # noqa: ASYNC110
            spread := await self.spread(self.nodes.head)
        ) != [1, 1, 1] and time.monotonic() < until:
            await asyncio.sleep(1.0)
        return spread

    def node_of(self, machine: Machine) -> tuple[str, list[str]]:
        """Its id in Ray, and which actors of the pool but workers stand there."""
        seen = self.nodes.seen()
        roles = {
            actor["name"].rpartition(":")[2]: actor for actor in seen["actors"] if actor["state"] == "ALIVE"
        }
        there = [role for role in CONTROL if role in roles and roles[role]["address"] == machine.address]
        return seen["by_address"][machine.address], there


class Observer:
    """When the service no longer counts on a worker of the node `lost`, as the ingress on `at` tells it; without a
    node, when it says that the store is missing."""

    def __init__(self, bench: Bench, at: Machine, lost: str | None) -> None:
        self._bench, self._at, self._lost = bench, at, lost
        self.detected_at: float | None = None

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self._watch())
        try:
            yield
        finally:
            task.cancel()

    async def _watch(self) -> None:
        # One client for all: to make one costs as much as the rest of a request, on the processors of the machines.
        async with self._bench.client() as http:
            while self.detected_at is None:
                if await (self._store_is_missing(http) if self._lost is None else self._is_without(http)):
                    self.detected_at = time.monotonic()
                await asyncio.sleep(0.1)

    async def _is_without(self, http: httpx.AsyncClient) -> bool:
        pool = await self._bench.pool(self._at, http)
        return pool is not None and not any(
            worker["node"] == self._lost and worker["state"] == "ready" for worker in pool["workers"]
        )

    async def _store_is_missing(self, http: httpx.AsyncClient) -> bool:
        try:
            answer = await http.get(f"{self._bench.service.url_on(self._at)}/readyz")
        except httpx.HTTPError:
            return False
        return answer.status_code == 503 and ": store:" in answer.text


async def measure(
    bench: Bench,
    *,
    trouble: Callable[[], None],
    mend: Callable[[], Awaitable[None]],
    lost: Machine | None,
    held_s: float = 0.0,
    entries: list[Machine] | None = None,
) -> dict[str, Any]:
    """The figures of one trouble. `lost` is the machine that it hits, if that is one of the cluster's; else it is the
    store's."""
    await bench.whole()
    await bench.balanced()
    left = entries or [machine for machine in bench.machines[:3] if machine is not lost]
    node, control = bench.node_of(lost) if lost is not None else (None, [])
    observer = Observer(bench, left[0], node)
    async with Load([bench.service.url_on(machine) for machine in left], bench.service.headers) as load:
        await load.flowing()
        trouble()
        began = time.monotonic()
        async with observer.watching():
            until = began + SLOW_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(load.flowing(), SLOW_S)
            await asyncio.sleep(max(AFTER_S, held_s - (time.monotonic() - began)))
            if observer.detected_at is None and time.monotonic() < until:
                await asyncio.sleep(AFTER_S)
        during = await bench.spread(left[0])
        failed = load.failed(began)
        figures = {
            "detected_s": None if observer.detected_at is None else round(observer.detected_at - began, 2),
            "sessions_back_s": None if (back_s := load.sessions_back_s(began)) is None else round(back_s, 2),
            "traffic_gap_s": round(load.traffic_gap_s(began), 2),
            "failed": sum(failed.values()),
            "met": dict(failed),
            "spread": during,
            "control": control,
        }
        await mend()
        mended = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(load.flowing(), SLOW_S)
        if lost is None:
            figures["sessions_back_s"] = await changes_back_s(load, mended)
        await load.end()
        lost_changes = await load.lost_changes()
    return {
        **figures,
        "hanging": load.hanging,
        "lost_changes": len(lost_changes),
        "lost": lost_changes[:5],
        "stale_commits": len(load.stale),
        "stale": load.stale[:5],
        "asked": len(load.asked),
    }


async def changes_back_s(load: Load, since: float) -> float | None:
    until = time.monotonic() + SLOW_S
    while (  # noqa: ASYNC110
        back_s := load.changes_back_s(since)
    ) is None and time.monotonic() < until:
        await asyncio.sleep(0.1)
    return None if back_s is None else round(back_s, 2)


async def power_off(bench: Bench) -> dict[str, Any]:
    victim = bench.machines[2]

    async def mend() -> None:
        await asyncio.to_thread(bench.nodes.start_on, victim)

    return await measure(bench, trouble=victim.power_off, mend=mend, lost=victim)


async def freeze(bench: Bench) -> dict[str, Any]:
    victim = bench.machines[1]

    async def mend() -> None:
        victim.thaw()
        await again(bench, victim)

    return await measure(bench, trouble=victim.freeze, mend=mend, lost=victim, held_s=20.0)


async def partition(bench: Bench) -> dict[str, Any]:
    victim = bench.machines[2]

    async def mend() -> None:
        victim.mend()
        await again(bench, victim)

    return await measure(bench, trouble=victim.cut, mend=mend, lost=victim, held_s=45.0)


async def again(bench: Bench, machine: Machine) -> None:
    """Ray ends a node that it has given up. It is started again, as an operator's systemd does."""
    until = time.monotonic() + WHOLE_S
    while machine.run(["pgrep", "raylet"], check=False).returncode == 0 and time.monotonic() < until:
        if machine.address in bench.nodes.seen()["nodes"]:
            return
        await asyncio.sleep(0.5)
    machine.power_off()
    await asyncio.to_thread(bench.nodes.start_on, machine)


async def head_loss(bench: Bench) -> dict[str, Any]:
    head = bench.nodes.head

    async def mend() -> None:
        await asyncio.to_thread(bench.nodes.start_on, head)

    return await measure(bench, trouble=head.power_off, mend=mend, lost=head)


async def store_loss(bench: Bench) -> dict[str, Any]:
    machine = bench.database.machine

    def stop() -> None:
        bench.database.stop()

    async def mend() -> None:
        await asyncio.to_thread(bench.database.start)

    assert machine.is_on
    return await measure(bench, trouble=stop, mend=mend, lost=None, held_s=10.0)


MEASURE = {
    "power_off": power_off,
    "freeze": freeze,
    "partition": partition,
    "head_loss": head_loss,
    "store_loss": store_loss,
}


@contextlib.contextmanager
def machines() -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory(prefix="dspb-", dir="/var/tmp") as directory,
        contextlib.ExitStack() as stack,
    ):
        Path(directory).chmod(0o711)
        yield Bench(Path(directory), stack)


async def run(chosen: list[str]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    spread: dict[str, list[int]] = {}
    if not chosen:
        return {"spread": spread}
    with machines() as bench:
        await bench.whole()
        spread["after_boot"] = await bench.spread(bench.nodes.head)
        for name in chosen:
            print(f"-- {name}", flush=True)
            try:
                figures[name] = await MEASURE[name](bench)
            except Exception as failed:
                figures[name] = {"broken": f"{type(failed).__name__}: {failed}"[:500]}
                break
            print(figures[name], flush=True)
            if name == "power_off":
                spread["after_loss"] = figures[name]["spread"]
                spread["after_return"] = await bench.balanced()
    return {**figures, "spread": spread}


def main() -> int:
    parser = arguments(__doc__ or "", [*TROUBLES, *CHANGES])
    options = parser.parse_args()
    header("cluster")
    chosen = options.only
    if options.quick and len(chosen) == len(TROUBLES) + len(CHANGES):
        chosen = [*QUICK, *CHANGES]
    troubles = [name for name in chosen if name in TROUBLES]
    if troubles and (why := why_not() or Database.why_not()):
        print(f"not measured: {why}", file=sys.stderr)
        return 1
    figures = asyncio.run(run(troubles))
    changed = {}
    for name in (name for name in chosen if name in CHANGES):
        kind = name.partition("_")[0]
        if kind in changes.KINDS:
            print(f"-- {name}", flush=True)
            changed[kind] = changes.failed(
                kind, changes.QUICK_REQUESTS if options.quick else changes.REQUESTS
            )
            print(changed[kind], flush=True)
    figures |= {name: changed.get(name.partition("_")[0], {}).get("failed") for name in CHANGES}
    figures["changes"] = changed
    finish(figures, as_json=options.json)
    return int(any("broken" in figure for figure in figures.values() if isinstance(figure, dict)))


if __name__ == "__main__":
    sys.exit(main())
