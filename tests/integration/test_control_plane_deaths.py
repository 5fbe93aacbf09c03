"""Traffic needs no supervisor and no metrics; a change waits for the store. What their deaths do under load."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter

import pytest
from harness import PATIENCE_S, QUESTION, Load, actors_of, full, kill, pid_of, pids, until

from dspool.errors import PoolError

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


async def test_killing_the_supervisor_under_load_fails_nothing_and_its_successor_keeps_the_workers(pool, log):
    await full(pool)
    workers, first = pids(pool), await pid_of(pool.supervisor)
    session = pool.session("through")
    await session.set_variable("x", 1)
    version = pool.client.membership.version
    await pool.resize(2)
    decided, programs = await resizes(pool), (await pool.status()).programs
    async with Load(pool, log) as load:
        await load.more(100)
        kill(first)
        await load.more(300)
        assert await pid_of(pool.supervisor) != first
        status = await pool.status()
        await load.more(300)
    assert load.failed == {}
    assert max(Counter(log.labels("begin")).values()) == 1
    assert (status.state, status.desired, status.actual) == ("ready", 2, 2)
    assert status.programs == programs == {"qa": 1, "noted": 1, "once": 1}
    assert decided[0].reason == "resized by hand"
    assert await resizes(pool) == decided
    assert {worker.id: worker.pid for worker in status.workers} == workers == pids(pool)
    assert len([name for name in actors_of(pool.name) if ":worker:" in name]) == 2
    assert (await session.get_variable("x"))["value"] == 1
    # Its numbers go on from where they were: a client that knows the old ones hears of the next change.
    await pool.resize(3)
    await full(pool, 3)
    assert pool.client.membership.version > version
    await pool.resize(2)
    await full(pool)


async def resizes(pool):
    """What was decided, without what sizing would have decided meanwhile."""
    return [one for one in await pool.decisions(500) if one.source != "dry run"]


async def test_a_worker_that_dies_while_the_supervisor_is_dead_is_replaced(pool, log):
    await full(pool)
    victim, pid = sorted(pids(pool).items())[0]
    kill(await pid_of(pool.supervisor))
    kill(pid)
    await until(lambda: victim not in pids(pool))
    await full(pool)
    assert (await pool.execute("qa", **QUESTION)).answer == "Paris"


async def test_what_an_operator_asks_of_a_supervisor_that_just_restarted_waits_for_its_start(pool):
    await full(pool)
    workers = pids(pool)
    await pool.pause()
    kill(await pid_of(pool.supervisor))
    await pool.resume()
    status = await pool.status()
    assert (status.state, status.desired) == ("ready", 2)
    assert pids(pool) == workers
    await until(lambda: not pool.client.membership.paused)


async def test_killing_the_metrics_actor_costs_no_operation_and_no_count(start_pool, log):
    pool = await start_pool(metrics_flush_interval_s=0.1)
    await full(pool)
    async with Load(pool, log) as load:
        for _ in range(2):
            await load.more(50)
            kill(await pid_of(pool.metrics))
            await load.more(200)
    assert load.failed == {}
    ended, counted, size = pool.client.totals, None, 0
    until_s = time.monotonic() + PATIENCE_S
    # It began again with nothing: the clients' running totals make up for it.
    while (counted, size) != (ended, 2):
        assert time.monotonic() < until_s, (counted, ended, size)
        await asyncio.sleep(0.05)
        with contextlib.suppress(PoolError):
            snapshot = await pool.metrics_snapshot()
            counted, size = snapshot.counters.by_outcome, snapshot.size
    assert snapshot.telemetry.unattributed <= ended["ok"]


async def test_killing_the_store_lets_operations_go_on_and_acknowledges_no_change_that_is_not_saved(
    pool, log
):
    await full(pool)
    session = pool.session("durable")
    await session.set_variable("n", 0)
    saved = 0
    async with Load(pool, log) as load:
        await load.more(50)
        kill(await pid_of(pool.store))
        for number in range(1, 30):
            try:
                await session.set_variable("n", number)
            except PoolError:
                await asyncio.sleep(0.05)
            else:
                saved = number
        await load.more(200)
    assert load.failed == {}
    assert saved == 29
    # Read from the store itself: by another worker, which must have rebuilt it.
    await pool.drain(
        next(info.owner for info in (await pool.sessions(limit=1000))[0] if info.id == "durable")
    )
    assert (await session.get_variable("n"))["value"] == 29
    await full(pool)
