"""Workers that hang with all their connections open, as on a host that stands still: SIGSTOP, and SIGCONT later."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest
import pytest_asyncio
from harness import PATIENCE_S, Load, full, owner_of, pid_of, pids, until

from dspool.errors import WorkerLost
from dspool.messages import GetVariable, Result, SetVariable, StreamProgram

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def strict(start_module_pool):
    """A pool that soon gives up on workers that do not answer; not too soon for a busy machine."""
    return await start_module_pool(health_check_interval_s=1.0, health_check_timeout_s=1.0)


def frozen(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() == psutil.STATUS_STOPPED


async def read(stream):
    return [event async for event in stream]


async def test_a_frozen_worker_keeps_no_operation_and_nothing_of_it_is_heard_when_it_thaws(strict, log):
    pool = strict
    await full(pool)
    session = pool.session("moving")
    await session.set_variable("n", 1)
    victim = await owner_of(pool, session.id)
    pid = pids(pool)[victim]
    other = next(worker for worker in pids(pool) if worker != victim)

    async with Load(pool, log, "noted") as load:
        # Of these some run on the victim, started or not, and more than one of each kind.
        once = [asyncio.create_task(pool.execute("once", **log.inputs(f"once{n}", 1.0))) for n in range(6)]
        await until(lambda: len([label for label in log.labels("begin") if label.startswith("once")]) == 6)
        theirs = {e.label for e in log.entries() if e.pid == pid and e.label.startswith("once")}
        assert theirs
        os.kill(pid, signal.SIGSTOP)
        # It lies in the socket of a process that does not read, and would be done when that thaws.
        unread = asyncio.create_task(pool.client.run(SetVariable("n", 99), session=session.id))
        behind = asyncio.create_task(pool.client.run(GetVariable("n"), session=session.id))
        await until(lambda: not pool.client.membership.lives(victim))
        outcomes = await asyncio.wait_for(asyncio.gather(*once, unread, return_exceptions=True), PATIENCE_S)
        assert (await asyncio.wait_for(behind, PATIENCE_S)).value["value"] == 1
        assert frozen(pid), "all of this has to happen while it hangs"
        lost = {f"once{n}" for n, outcome in enumerate(outcomes[:-1]) if isinstance(outcome, WorkerLost)}
        assert lost == theirs
        assert all(isinstance(outcome, Result | WorkerLost) for outcome in outcomes)
        assert isinstance(outcomes[-1], WorkerLost)
        await load.more(20)
        moved = await pool.client.run(SetVariable("n", 2), session=session.id)
        assert moved.worker != victim

        totals = dict(pool.client.totals)
        os.kill(pid, signal.SIGCONT)
        await until(lambda: not psutil.pid_exists(pid))
        assert (await session.get_variable("n"))["value"] == 2
        await full(pool)
        assert pool.client.totals["error"] == totals["error"]
        assert (victim in pids(pool), other in pids(pool)) == (False, True)
    # Also what it had begun for the load was done by another.
    assert load.failed == {}


async def test_a_stream_of_a_frozen_worker_ends(strict, log):
    pool = strict
    await full(pool)
    reading = asyncio.create_task(read(pool.stream(StreamProgram("once", log.inputs("stream", 600)))))
    pid = (await until(log.entries))[0].pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(reading, PATIENCE_S)
    assert frozen(pid)
    os.kill(pid, signal.SIGCONT)
    await full(pool)


async def test_a_worker_that_froze_before_the_supervisor_died_is_given_up_by_its_successor(start_pool, log):
    pool = await start_pool(health_check_interval_s=600.0, health_check_timeout_s=0.5)
    await full(pool)
    running = [asyncio.create_task(pool.execute("once", **log.inputs(f"k{n}", 1.0))) for n in range(8)]
    await until(lambda: len(log.labels("begin")) == 8)
    victim, pid = next(iter(pids(pool).items()))
    theirs = {entry.label for entry in log.entries() if entry.pid == pid}
    os.kill(pid, signal.SIGSTOP)
    os.kill(await pid_of(pool.supervisor), signal.SIGKILL)
    outcomes = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), PATIENCE_S)
    assert frozen(pid)
    assert {f"k{n}" for n, end in enumerate(outcomes) if isinstance(end, WorkerLost)} == theirs
    os.kill(pid, signal.SIGCONT)
    await full(pool)
    assert victim not in pids(pool)
