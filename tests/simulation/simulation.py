"""One seed: a pool, callers, faults for a while, then peace, and the history of it all."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dspool.config import PoolConfig
from dspool.errors import PoolError
from tests.simulation import metrics
from tests.simulation import world as worlds
from tests.simulation.faults import Faults, PlannedFault, plan
from tests.simulation.history import History
from tests.simulation.loop import SimulatedLoop, Stuck
from tests.simulation.pace import set_pace
from tests.simulation.program import FIRST_CODE, PROGRAM
from tests.simulation.system import HEAD, POOL, System
from tests.simulation.workload import Callers

START_LIMIT_S = 60.0
LONG_CALLBACKS, SHORT_CALLBACKS = 6_000_000, 300_000
LONG_S, SHORT_S = 86_400.0, 60.0
METRICS_SHARE = 0.3
PEACE_S = 90.0
LONG_PEACE_S = 300.0
"""After the faults stop: the longest deadline, and what a pool may need to be whole again."""


class ErrorLog(logging.Handler):
    """What the engine logs as an error is one: it says so of its own defects."""

    def __init__(self, history: History) -> None:
        super().__init__(logging.ERROR)
        self._history = history

    def emit(self, record: logging.LogRecord) -> None:
        expected = record.name == "dspool.worker.failures" or "is degraded" in record.msg
        if not expected and not self._history.over:
            self._history.errors.append(f"{record.name}: {record.getMessage()[:500]}")


def simulate(seed: int, faults: Sequence[PlannedFault] | None = None) -> History:
    """The history of one seed, which decides everything; with `faults`, these in the place of its own."""
    world = worlds.enter(seed)
    loop = SimulatedLoop(world, LONG_CALLBACKS if worlds.is_long(seed) else SHORT_CALLBACKS)
    history = History(loop.time)
    handler = ErrorLog(history)
    logger = logging.getLogger("dspool")
    logger.addHandler(handler)
    gc.disable()
    try:
        with tempfile.TemporaryDirectory(prefix="dsim-") as directory:
            loop.run_until(_run(seed, loop, history, Path(directory), faults))
    except Stuck as stuck:
        history.errors.append(str(stuck))
    finally:
        history.over = True
        logger.removeHandler(handler)
        gc.enable()
    history.simulated_s = world.simulated_s
    history.callbacks = loop.callbacks
    return history


def pool_config(dice: random.Random, directory: Path, *, is_long: bool) -> PoolConfig:
    """What the dice make of a pool; a long seed beats as seldom as its pool may."""
    slots = dice.choice((1, 2, 4))
    size = dice.randint(1, 3)
    return PoolConfig(
        name=POOL,
        pool_size=size,
        min_pool_size=1,
        max_pool_size=4,
        slots_per_worker=slots,
        spares=dice.choice((0, 0, 1)),
        strategy=dice.choice(("lifo", "fifo", "least_loaded")),
        affinity=dice.choice(("strict", "prefer")),
        max_queue=dice.choice((4, 50)),
        # Not less than a session that moves in peace may keep its operations waiting.
        checkout_timeout_s=dice.choice((5.0, 10.0)),
        state_dir=directory,
        enable_metrics=dice.random() < METRICS_SHARE,
        metrics_interval_s=60.0 if is_long else 1.0,
        metrics_flush_interval_s=60.0 if is_long else 0.5,
        history={"fine_interval_s": 60.0, "coarse_interval_s": 3600.0} if is_long else {},
        operations={"max_rows": 0},
        session_ttl_s=86_400.0,
        health_check_interval_s=10.0 if is_long else dice.choice((0.5, 2.0, 5.0)),
        optimization_interval_s=10.0 if is_long else 0.5,
        health_check_timeout_s=0.5,
        max_health_failures=dice.choice((2, 3)),
        programs={PROGRAM: {"spec": {"code": FIRST_CODE}}},
        # A question that many workers died of is not asked again for five minutes: that has tests of its own.
        retry={"refuse_poison_s": 0.0},
        telemetry={"sampling": 0.0},
        store_url="sqlite:////dev/null/never",
    )


async def _run(
    seed: int,
    loop: SimulatedLoop,
    history: History,
    directory: Path,
    planned: Sequence[PlannedFault] | None,
) -> None:
    dice = random.Random(seed)
    is_long = dice.random() < worlds.LONG_SHARE  # the first throw, as in `worlds.is_long`
    busy_s = LONG_S if is_long else SHORT_S
    config = pool_config(dice, directory, is_long=is_long)
    set_pace(is_long=is_long)
    history.slots = config.slots_per_worker
    history.health_s = tuple(
        config.health_check_timeout_s + number * config.health_check_interval_s
        for number in range(config.max_health_failures)
    )
    every_s = 600.0 if is_long else dice.choice((0.5, 2.0, 8.0, 20.0))
    own = plan(dice, busy_s, every_s)
    history.plan = list(own if planned is None else planned)
    loses_power = any(fault[1] == "power_off_head" for fault in history.plan)
    system = System(loop, config, history, directory, nodes=dice.choice((1, 2, 3)), loses_power=loses_power)
    try:
        with contextlib.suppress(PoolError):
            await system.ask_supervisor("wait_ready", START_LIMIT_S)
        callers = Callers(
            system,
            history,
            random.Random(dice.getrandbits(64)),
            pause_s=300.0 if is_long else dice.choice((0.05, 0.5, 3.0)),
        )
        for number in range(dice.randint(1, 3)):
            name = f"client{number}"
            system.start_client(name, dice.choice(system.nodes))
            callers.start(name, dice.randint(1, 4))
        await Faults(system, history).run(history.plan, busy_s)
        history.quiet_from = loop.time()
        callers.stopped = True
        await _peace(system, history, callers, dice, LONG_PEACE_S if is_long else PEACE_S)
    finally:
        for context in loop.unhandled:
            history.errors.append(f"unhandled: {context.get('message')}: {context.get('exception')!r}"[:500])
        history.over = True
        system.close()


async def _peace(
    system: System, history: History, callers: Callers, dice: random.Random, peace_s: float
) -> None:
    """Everything ends, the pool becomes whole, and each session is looked at, as its worker has it and the store."""
    loop = system.loop
    until = loop.time() + peace_s
    await asyncio.sleep(35.0)
    if await _is_whole(system, history, until):
        history.ready_again_at = loop.time()
    for name, process in system.client_processes.items():
        if process.alive and name in system.clients:
            callers.start_calm(name)
    await _one_change(system, history, dice)
    await callers.calm()
    name = "last"
    system.start_client(name, HEAD)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30.0):
            await system.client_ready[name].wait()
        for call in callers.last_calls(name):
            await system.client_processes[name].spawn(call)
        await system.client_processes[name].spawn(callers.crowd(name))
        for worker_id in system.living_workers():
            process = system.worker_actors[worker_id].process
            assert process is not None
            history.fault("kill", process=process.name)
            process.kill()
        await asyncio.sleep(0.5)
        if await _is_whole(system, history, loop.time() + 30.0):
            for call in callers.last_calls(name):
                await system.client_processes[name].spawn(call)
        else:
            history.ready_again_at = None
    history.leftovers = await _leftovers(system)
    if system.metrics is not None:
        await asyncio.sleep(2 * system.config.metrics_flush_interval_s)
        history.counted = await _counted(system)


async def _is_whole(system: System, history: History, until: float) -> bool:
    """Wait for that."""
    while system.loop.time() < until:
        with contextlib.suppress(PoolError):
            await system.ask_supervisor("resume")
            status = await system.ask_supervisor("status")
            history.last_status = f"{status.state} {status.actual} of {status.desired}: {status.reason}"
            if status.state == "ready" and status.actual >= status.desired:
                return True
        await asyncio.sleep(1.0)
    return False


async def _one_change(system: System, history: History, dice: random.Random) -> None:
    """While all is well a connection that is reset costs what it interrupts; where others can take over, a death that
    as well, and a replacement nothing."""
    await asyncio.sleep(dice.uniform(0.05, 0.5))
    workers = system.living_workers()
    if len(workers) < 2:
        Faults(system, history).reset(dice)
    elif dice.random() < 0.5:
        history.fault("restart", args=workers[:1])
        with contextlib.suppress(PoolError):
            await system.ask_supervisor("restart", workers[0])
    else:
        process = system.worker_actors[dice.choice(workers)].process
        assert process is not None
        history.fault("kill", process=process.name)
        process.kill()


async def _counted(system: System) -> int | None:
    """Ended operations, as the pool's metrics have them."""
    try:
        snapshot = await metrics.RemoteMetrics(system).ask("metrics_snapshot")
    except PoolError:
        return None
    return sum(snapshot.counters.by_outcome.values())


async def _leftovers(system: System) -> list[str]:
    """What clients and workers still hold when every operation has ended."""
    found = []
    for name, client in system.clients.items():
        if system.client_processes[name].alive and (client.queued or client.running):
            found.append(f"{name} has {client.queued} queued and {client.running} running")
    for worker_id in system.living_workers():
        worker = system.worker_actors[worker_id].instance
        if worker is not None and (running := await worker.running()):
            found.append(f"{worker_id} has {len(running)} slots in use")
    return found


__all__ = ["HEAD", "simulate"]
