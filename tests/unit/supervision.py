"""A supervisor with workers, a runtime and a store in memory. Time passes only when told."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager

import msgspec

from dspool.config import PoolConfig
from dspool.core.autoscale.inputs import SizingInputs, Window
from dspool.messages import Deployment, VersionNumbers
from dspool.supervisor import Supervisor
from dspool.testing.doubles import FakeClock, FakeRuntime, FakeStore, settle

SPEC = {"signature": "question -> answer", "module": "Predict"}


class Scene:
    def __init__(self, script=None, store=None, observe=None, report=None, **config):
        self.clock = FakeClock()
        self.runtime = FakeRuntime(self.clock, script)
        self.store = store or FakeStore()
        self.config = PoolConfig(**{"programs": {"qa": {"spec": SPEC}}, **config})
        self._hex = itertools.count()
        self._callbacks = {"observe": observe, "report": report}
        self.life = "the first start"
        self.supervisor = self.new_supervisor()

    def new_supervisor(self):
        return Supervisor(
            self.config,
            self.runtime,
            self.store,
            life=self.life,
            random=lambda: 0.5,
            new_hex=lambda: f"{next(self._hex):06x}",
            **self._callbacks,
            **self.clock.as_arguments(),
        )

    async def successor(self):
        """The supervisor dies without a word; the next one starts."""
        old = self.supervisor
        for loop in old._loops:
            loop.cancel()
        await old._workers.close()
        self.supervisor = self.new_supervisor()
        await self.supervisor.start()
        await settle()

    async def members(self):
        return [m.worker_id for m in (await self.supervisor.watch(0, 0)).workers]

    async def status(self):
        return await self.supervisor.status(fresh=False)

    async def end(self):
        await self.supervisor.detach()


@asynccontextmanager
async def pool(script=None, traffic=None, **arguments):
    scene = Scene(script, **arguments)
    await scene.supervisor.start()
    await settle()
    scene.traffic = asyncio.create_task(traffic.run(scene)) if traffic else None
    try:
        yield scene
    finally:
        if scene.traffic:
            scene.traffic.cancel()
        await scene.end()


def only(**faults):
    """Faults for the worker of one ordinal, or, without `ordinal`, of every worker."""
    ordinal = faults.pop("ordinal", None)

    def script(worker):
        if ordinal is None or worker.ordinal == ordinal:
            for name, value in faults.items():
                setattr(worker, name, value)

    return script


def busy(**numbers):
    """Both of two workers full, and operations waiting for a slot."""
    window = Window(span_s=1.0, arrivals=60, finished=16, busy_slot_s=16.0, run_s=16.0, peak_demand=56)
    seen = {"age_s": 0.1, "slots_per_worker": 8, "desired": 0, "actual": 0, "short": window, "long": window}
    return SizingInputs(**{**seen, "running": 16, "queued": 40, "oldest_wait_s": 0.5, **numbers})


NEW = Deployment("qa", 0, spec={"signature": "question -> answer", "module": "ChainOfThought"})


def another(number):
    """A version that differs from every other in what it says."""
    return msgspec.structs.replace(NEW, spec={**NEW.spec, "settings": {"max_tokens": 100 + number}})


class Traffic:
    """What every worker measures, by version: operations, errors and mean run time each quarter of a second.

    A version that is not named does fifty operations, all well.
    """

    def __init__(self, **rows):
        self.rows = {int(key[1:]): value for key, value in rows.items()}

    async def run(self, s):
        while True:
            for worker in s.runtime.alive:
                version = worker.active.get("qa", 0)
                operations, errors, run_s = self.rows.get(version, (50, 0, 0.1))
                mine = worker.measured.setdefault("qa", {})
                before = mine.get(version, VersionNumbers())
                mine[version] = VersionNumbers(before.operations + operations, before.errors + errors, run_s)
            await s.clock.sleep(0.25)


async def deploying(s, deployment=NEW, seconds=30.0):
    task = asyncio.create_task(s.supervisor.deploy(deployment))
    await s.clock.advance(seconds)
    return await task
