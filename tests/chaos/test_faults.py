"""Faults at bad moments: during warm-up, drain and promotion, several at once, and at random under load."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter

import psutil
import pytest
import pytest_asyncio
from harness import PATIENCE_S, QUESTION, Load, actors_of, full, kill, owner_of, pid_of, pids, until

from dspool.errors import DeadlineExceeded, PoolError, StoreFailed, WorkerLost

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def spared(start_module_pool):
    """A pool with a spare."""
    return await start_module_pool(spares=1)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def strict(start_module_pool):
    """A pool of one worker that gives up on what does not answer; not too soon for a busy machine."""
    return await start_module_pool(
        pool_size=1,
        slots_per_worker=2,
        health_check_interval_s=1.0,
        health_check_timeout_s=1.0,
        recycle={"stuck_s": 0.5},
        programs={
            "stuck": {"import_path": "noted:Stuck", "idempotent": False},
            "deaf": {"import_path": "noted:Deaf", "idempotent": False},
            "blocking": {"import_path": "noted:Blocking", "idempotent": False},
            "noted": {"import_path": "noted:Noted", "idempotent": True},
        },
    )


async def warm_spare(pool):
    """The pool's spare, as soon as it is warm."""
    until_s = time.monotonic() + PATIENCE_S
    while not (spares := [w for w in (await pool.status()).workers if w.state == "spare"]):
        assert time.monotonic() < until_s
        await asyncio.sleep(0.05)
    return spares[0]


async def test_a_worker_killed_while_it_warms_up_is_started_again_and_never_served(start_pool, notes):
    pool = await start_pool(
        pool_size=1, warmup={"steps": [{"step": "custom_code", "import_path": "noted:slow"}]}
    )
    await full(pool, 1)
    first = pids(pool)
    seen = (notes / "warming").read_text().split()
    await pool.resize(2)
    pid = await until(lambda: next(iter(set((notes / "warming").read_text().split()) - set(seen)), None), 30)
    kill(int(pid))
    served = set()
    while len(pids(pool)) < 2:
        served |= set(pids(pool).values())
        await asyncio.sleep(0.01)
    assert int(pid) not in served | set(pids(pool).values())
    assert first.items() <= pids(pool).items()
    assert len([name for name in actors_of(pool.name) if ":worker:" in name]) == 2


async def test_a_worker_killed_while_it_drains_loses_only_what_it_still_ran(pool, log):
    await full(pool)
    session = pool.session("drained")
    await session.set_variable("x", 1)
    victim = await owner_of(pool, session.id)
    pid = pids(pool)[victim]
    running = [asyncio.create_task(pool.execute("once", **log.inputs(f"k{n}", 1.0))) for n in range(16)]
    await until(lambda: len(log.labels("begin")) == 16)
    theirs = {entry.label for entry in log.entries() if entry.pid == pid}
    drained = asyncio.create_task(pool.drain(victim))
    await until(lambda: victim not in pids(pool))
    kill(pid)
    outcomes = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), PATIENCE_S)
    lost = {f"k{n}" for n, outcome in enumerate(outcomes) if isinstance(outcome, WorkerLost)}
    assert lost == theirs
    await asyncio.wait_for(drained, PATIENCE_S)
    assert (await session.get_variable("x"))["value"] == 1
    await full(pool)


async def test_all_workers_and_the_spare_killed_at_once_come_back(spared, log):
    pool = spared
    await full(pool)
    spare = await warm_spare(pool)
    session = pool.session("alone")
    await session.set_variable("x", 1)
    before = pids(pool)
    for pid in [*before.values(), spare.pid]:
        kill(pid)
    result = await pool.execute("qa", **QUESTION)
    assert result.answer == "Paris"
    assert result.worker not in before
    assert (await session.get_variable("x"))["value"] == 1
    await full(pool)


async def test_a_spare_killed_at_its_promotion_is_replaced_too(spared):
    pool = spared
    await full(pool)
    spare = await warm_spare(pool)
    victim, pid = next(iter(pids(pool).items()))
    kill(pid)
    await until(lambda: spare.id in pids(pool))
    kill(spare.pid)
    await until(lambda: not {victim, spare.id} & set(pids(pool)) and len(pids(pool)) == 2)
    assert (await pool.execute("qa", **QUESTION)).answer == "Paris"


async def test_supervisor_store_and_a_worker_killed_at_once_lose_nothing_acknowledged(pool):
    await full(pool)
    session = pool.session("triple")
    await session.create_program("reader", "context, question -> answer")
    victim = await owner_of(pool, session.id)
    for pid in (await pid_of(pool.store), await pid_of(pool.supervisor), pids(pool)[victim]):
        kill(pid)
    until_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            assert (await session.execute("reader", **QUESTION)).answer == "Paris"
            break
        except (WorkerLost, StoreFailed):
            assert time.monotonic() < until_s
            await asyncio.sleep(0.1)
    await until(lambda: victim not in pids(pool))
    await full(pool)
    status = await pool.status()
    assert (status.state, status.actual) == ("ready", 2)


async def test_a_stuck_worker_is_replaced_and_its_slots_come_back(strict, log):
    pool = strict
    await full(pool, 1)
    victim = next(iter(pids(pool)))
    stuck = asyncio.create_task(pool.execute("stuck", **log.inputs("stuck", 600)))
    waiting = asyncio.create_task(pool.execute("noted", **log.inputs("next")))
    with pytest.raises(WorkerLost):
        await stuck
    assert (await waiting).label == "next"
    assert victim not in pids(pool)


@pytest.mark.parametrize("deaf", ["deaf", "blocking"])
async def test_an_operation_that_ignores_its_deadline_costs_its_worker_and_nobody_else(strict, log, deaf):
    """A coroutine that swallows its cancellation, and a thread, which cannot be stopped at all."""
    pool = strict
    await full(pool, 1)
    victim, pid = next(iter(pids(pool).items()))
    stuck = asyncio.create_task(pool.execute(deaf, timeout_s=1.0, **log.inputs("deaf", 600)))
    async with Load(pool, log, "noted", callers=2) as load:
        with pytest.raises(DeadlineExceeded):
            await stuck
        await until(lambda: victim not in pids(pool))
        await full(pool, 1)
        await load.more(20)
    assert load.failed == {}
    await until(lambda: not psutil.pid_exists(pid))
    # Events are handed on every half second.
    why: list[str] = []
    until_s = time.monotonic() + PATIENCE_S
    while not any("after its deadline" in one for one in why):
        assert time.monotonic() < until_s, why
        events = (await pool.events(0, 1000)).events
        why = [str(one.metadata.get("reason")) for one in events if one.metadata.get("worker") == victim]
        await asyncio.sleep(0.2)


async def test_more_deaths_than_the_restart_intensity_degrade_the_pool_which_serves_with_what_is_left(
    start_pool, log
):
    pool = await start_pool(
        pool_size=3, restart={"intensity": 1, "period_s": 8.0, "backoff_s": 0.1, "backoff_max_s": 1.0}
    )
    await full(pool, 3)
    (survivor, _), *others = sorted(pids(pool).items())
    for _, pid in others:
        kill(pid)
    await until(lambda: set(pids(pool)) == {survivor})
    status = await pool.status()
    assert (status.state, status.ready) == ("degraded", True)
    assert "2 workers failed within 8 s (more than 1)" in status.reason
    assert (await pool.execute("noted", **log.inputs("meanwhile"))).worker == survivor
    await full(pool, 3)
    until_s = time.monotonic() + PATIENCE_S
    while (status := await pool.status()).state != "ready":
        assert time.monotonic() < until_s, status
        await asyncio.sleep(0.2)


async def test_workers_are_recycled_without_losing_an_operation(start_pool, log):
    pool = await start_pool(
        recycle={"max_operations": 500}, health_check_interval_s=1.0, health_check_timeout_s=1.0
    )
    await full(pool)
    before = set(pids(pool))
    async with Load(pool, log) as load:
        await until(lambda: not before & set(pids(pool)))
    assert load.failed == {}
    assert max(Counter(log.labels("begin")).values()) == 1


async def test_workers_are_recycled_for_their_memory_and_their_age_without_losing_anything(
    pool, start_pool, log
):
    usual_mb = max(worker.own_mb for worker in (await pool.status()).workers)
    pool = await start_pool(
        recycle={"max_memory_mb": usual_mb + 80, "max_age_s": 8.0},
        health_check_interval_s=0.3,
        health_check_timeout_s=0.3,
        max_health_failures=20,
        programs={
            "growing": {"import_path": "noted:Growing", "idempotent": False},
            "once": {"import_path": "noted:Noted", "idempotent": False},
        },
    )
    await full(pool)
    before = set(pids(pool))
    sessions = [pool.session(f"kept-{number}") for number in range(6)]
    for number, session in enumerate(sessions):
        await session.set_variable("n", number)
    async with Load(pool, log) as load:
        grown = (await pool.execute("growing", **log.inputs("growing"))).worker
        await until(lambda: grown not in pids(pool))
        await until(lambda: not before & set(pids(pool)))
        for number, session in enumerate(sessions):
            assert (await session.get_variable("n"))["value"] == number
    assert load.failed == {}
    assert max(Counter(log.labels("begin")).values()) == 1
    why: dict[str, str] = {}
    until_s = time.monotonic() + PATIENCE_S
    while not before <= why.keys():
        assert time.monotonic() < until_s, why
        await asyncio.sleep(0.2)
        ended = [e.metadata for e in (await pool.events()).events if e.event == "worker.terminate"]
        why = {str(one["worker"]): str(one["reason"]) for one in ended}
    assert re.fullmatch(r"recycled at \d+ MB", why[grown])
    assert {why[other] for other in before - {grown}} == {"recycled after 8 s"}


async def test_random_kills_of_everything_leave_a_whole_pool_and_true_books(spared, log):
    """Workers, supervisor, store and metrics, in random order at random moments, with operations and changes."""
    pool = spared
    await full(pool)
    chance = random.Random(7)
    acknowledged, saved = {}, {}

    async def change(name):
        session, value = pool.session(name), 0
        while not load.stopping:
            value += 1
            try:
                await session.set_variable("n", value)
            except PoolError:
                saved[name] = value
            else:
                acknowledged[name] = value
            await asyncio.sleep(0.01)

    async with (
        Load(pool, log, "once") as load,
        Load(pool, log, "noted") as again,
    ):
        changing = [asyncio.create_task(change(f"s{number}")) for number in range(4)]
        await load.more(50)
        for what in ["worker", "supervisor", "worker", "store", "metrics", "worker", "supervisor", "worker"]:
            if what == "worker":
                # While the supervisor is dead the membership may still name workers that are gone.
                living = await until(lambda: sorted(filter(psutil.pid_exists, pids(pool).values())))
                kill(chance.choice(living))
            else:
                kill(await pid_of(getattr(pool, what)))
            await asyncio.sleep(chance.uniform(0.1, 1.0))
        await full(pool)
        load.stopping = again.stopping = True
        await asyncio.wait_for(asyncio.gather(*changing), PATIENCE_S)
    assert again.failed == {}
    assert {type(failed) for failed in load.failed.values()} <= {WorkerLost}
    begun = Counter(log.labels("begin"))
    assert max(count for label, count in begun.items() if label.startswith("once")) == 1
    for name, value in acknowledged.items():
        assert (await pool.session(name).get_variable("n"))["value"] >= value
    status = await pool.status()
    assert (status.state, status.actual) == ("ready", 2)
    assert len({worker.ordinal for worker in status.workers}) == len(status.workers)
