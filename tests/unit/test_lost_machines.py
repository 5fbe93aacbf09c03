"""A machine that is gone without a word is found out by both ends of its connections; a busy one never is."""

from __future__ import annotations

import asyncio

import pytest

from dspool.client import links
from dspool.config import PoolConfig
from dspool.core import liveness
from dspool.core.liveness import ASK_AFTER, ASK_AFTER_BUSY, UNACKNOWLEDGED_S, UNANSWERED, judge
from dspool.errors import WorkerLost
from dspool.messages import ExecuteProgram
from dspool.messages.members import CUT_OFF
from dspool.supervisor.workers import CONFIRM_TIMEOUT_S
from dspool.testing.doubles import settle
from dspool.testing.host import LoopbackPool, Script
from dspool.wire import connection
from dspool.wire.frames import Cancel
from dspool.worker import listener
from tests.unit.supervision import pool

SILENT = ASK_AFTER + UNANSWERED
SILENT_BUSY = ASK_AFTER_BUSY + UNANSWERED
LONG = UNACKNOWLEDGED_S


@pytest.mark.parametrize(
    ("looks", "unacknowledged_s", "is_busy", "verdict"),
    [
        (0, 0.0, False, "well"),
        (ASK_AFTER - 1, 0.0, False, "well"),
        (ASK_AFTER, 0.0, False, "ask"),
        (ASK_AFTER_BUSY, 0.0, True, "ask"),
        # Silent for minutes, but its kernel has all that was sent: it is busy, or stopped.
        (1000, 0.0, True, "ask"),
        (1000, LONG - 0.1, True, "ask"),
        # Whoever stood still himself finds old numbers, but has not yet asked.
        (1, 3600.0, False, "well"),
        (SILENT - 1, 3600.0, False, "ask"),
        (SILENT_BUSY - 1, 3600.0, True, "ask"),
        (SILENT, LONG, False, "gone"),
        (SILENT_BUSY, LONG, True, "gone"),
        # This system does not tell: the health checks decide.
        (1000, None, True, "ask"),
    ],
)
def test_only_a_kernel_that_is_silent_is_a_machine_that_is_gone(looks, unacknowledged_s, is_busy, verdict):
    assert judge(looks, unacknowledged_s, is_busy=is_busy) == verdict


def test_a_lost_machine_is_reported_in_time_to_be_confirmed_within_five_seconds():
    """docs/promises.md, with the defaults."""
    confirmed_s = PoolConfig().max_health_failures * CONFIRM_TIMEOUT_S
    assert liveness.REPORTED_AFTER_S + confirmed_s <= 5.0


@pytest.fixture
def silence(monkeypatch):
    """What the kernel says of all connections, in seconds; looks are taken by hand."""
    said = {"unacknowledged_s": 0.0}
    monkeypatch.setattr(connection, "unacknowledged_s", lambda transport: said["unacknowledged_s"])
    for module in (links, listener):
        monkeypatch.setattr(module, "LOOK_S", 3600.0)
    return said


def hold(workers: LoopbackPool) -> asyncio.Event:
    gate = asyncio.Event()

    async def run(inputs, session, emit):
        await gate.wait()
        return {"x": 1}

    workers.programs["hold"] = Script("async", run)
    return gate


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition) -> None:
    for _ in range(200_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


async def test_an_idle_link_is_asked_for_a_sign_of_life_and_each_answer_is_one(silence):
    async with LoopbackPool(PoolConfig(name="t")) as workers:
        await workers.start_worker()
        client = await workers.start_client()
        silence["unacknowledged_s"] = 3600.0
        for _ in range(10 * SILENT):
            client._links._look()
            await until(lambda: client._links.get("w0").silent_looks < ASK_AFTER)
        assert "w0" in client._links
        assert workers.reported_dead == []


async def test_a_worker_whose_machine_is_gone_is_dead_for_its_client_and_reported_as_such(silence):
    async with LoopbackPool(PoolConfig(name="t")) as workers:
        gate = hold(workers)
        await workers.start_worker()
        client = await workers.start_client()
        running = asyncio.ensure_future(client.run(ExecuteProgram("hold", {}), idempotent=False))
        await until(lambda: client.running == 1)
        await turns()
        for peer in workers.workers["w0"]._listener.ends:
            peer.transport.pause_reading()
        for _ in range(10 * SILENT):
            client._links._look()
            await turns()
        assert not running.done(), "its process is silent, not its kernel"
        silence["unacknowledged_s"] = LONG
        client._links._look()
        with pytest.raises(WorkerLost, match=CUT_OFF):
            await running
        await until(lambda: workers.reported_dead == ["w0"])
        gate.set()


async def test_a_worker_of_which_nothing_is_heard_gets_nothing_new_until_something_is(silence):
    async with LoopbackPool(PoolConfig(name="t", slots_per_worker=1)) as workers:
        gate = hold(workers)
        for _ in range(2):
            await workers.start_worker()
        client = await workers.start_client()
        assert client.connected == {"w0", "w1"}
        (peer,) = workers.workers["w0"]._listener.ends
        peer.transport.pause_reading()
        for _ in range(SILENT + 1):
            client._links._look()
            await turns()
        assert client.connected == {"w1"}
        running = [asyncio.ensure_future(client.run(ExecuteProgram("hold", {}))) for _ in range(2)]
        await until(lambda: workers.workers["w1"]._operations.running == 1)
        await turns()
        assert (client.queued, workers.workers["w0"]._operations.running) == (1, 0)
        peer.transport.resume_reading()
        await until(lambda: workers.workers["w0"]._operations.running == 1)
        assert client.connected == {"w0", "w1"}
        gate.set()
        assert {result.worker for result in await asyncio.gather(*running)} == {"w0", "w1"}


async def test_a_client_whose_machine_is_gone_keeps_no_slot(silence):
    async with LoopbackPool(PoolConfig(name="t")) as workers:
        hold(workers)
        worker = await workers.start_worker()
        client = await workers.start_client()
        running = asyncio.ensure_future(client.run(ExecuteProgram("hold", {})))
        await until(lambda: worker._operations.running == 1)
        client._links.get("w0").transport.pause_reading()
        silence["unacknowledged_s"] = LONG
        for _ in range(SILENT):
            assert worker._operations.running == 1
            worker._listener._look()
            await turns()
        await until(lambda: worker._operations.running == 0)
        client._links.get("w0").transport.resume_reading()
        with pytest.raises(WorkerLost):
            await running


async def test_an_idle_client_is_left_alone(silence):
    async with LoopbackPool(PoolConfig(name="t")) as workers:
        worker = await workers.start_worker()
        await workers.start_client()
        silence["unacknowledged_s"] = 3600.0
        for _ in range(10 * SILENT):
            worker._listener._look()
        assert len(worker._listener.clients) == 1


async def test_a_worker_of_an_older_version_is_asked_in_words_that_it_knows():
    assert Cancel([]).ids == []
    assert Cancel([]) == links._SIGN_OF_LIFE
    assert listener._SIGN_OF_LIFE.id == ""


async def test_a_supervisor_that_gets_no_answer_either_declares_it_dead_at_once():
    async with pool(pool_size=2, spares=1) as s:
        lost = s.runtime.worker(ordinal=0)
        lost.healthy = False
        await s.supervisor.report_dead(lost.worker_id, CUT_OFF)
        await s.supervisor.report_dead(lost.worker_id, CUT_OFF)
        await s.clock.advance(s.config.max_health_failures * CONFIRM_TIMEOUT_S - 0.1)
        assert lost.worker_id in await s.members()
        await s.clock.advance(0.2)
        assert lost.worker_id not in await s.members()
        assert lost.worker_id in s.store.dead
        assert len(await s.members()) == 2


async def test_a_worker_that_answers_its_supervisor_is_not_dead_because_a_client_is_cut_off():
    async with pool(pool_size=2) as s:
        fine = s.runtime.worker(ordinal=0)
        for _ in range(5):
            await s.supervisor.report_dead(fine.worker_id, CUT_OFF)
            await settle()
        fine.healthy = False
        await s.supervisor.report_dead(fine.worker_id, CUT_OFF)
        await s.clock.advance(CONFIRM_TIMEOUT_S + 0.1)
        fine.healthy = True
        await s.clock.advance(CONFIRM_TIMEOUT_S)
        assert fine.worker_id in await s.members()
