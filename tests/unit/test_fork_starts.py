"""A forked worker that does not come: noticed, and the next one is started by exec."""

from __future__ import annotations

import asyncio

import pytest

from dspool.errors import WorkerLost, WorkerStartFailed
from dspool.runtime.fork_starts import EXEC_FOR_S, ForkStarts
from dspool.testing import FakeClock
from dspool.testing.doubles import settle

pytestmark = pytest.mark.asyncio


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def forks(clock):
    return ForkStarts(30.0, clock=clock.now, sleep=clock.sleep)


def start(forks, worker_id="w1", **more):
    answer = asyncio.get_running_loop().create_future()
    return answer, asyncio.create_task(forks.answer_of(worker_id, answer, **more))


async def test_one_that_comes_is_as_good_as_any_and_the_next_is_forked_too(forks, clock):
    answer, started = start(forks)
    await clock.advance(19.0)
    answer.set_result("here")
    assert await started == "here"
    assert forks.why_not() is None


async def test_one_that_never_comes_fails_before_the_pool_gives_it_up_and_the_next_are_started_by_exec(
    forks, clock
):
    answer, started = start(forks)
    await clock.advance(20.0)
    with pytest.raises(WorkerStartFailed, match="did not come in 20 s"):
        await started
    assert answer.cancelled()
    assert "w1" in forks.why_not()
    await clock.advance(EXEC_FOR_S)
    assert forks.why_not() is None


async def test_one_that_waits_for_its_turn_is_not_late_while_others_come(forks, clock):
    _, last = start(forks, "last")
    for _ in range(3):
        answer, started = start(forks)
        await clock.advance(15.0)
        answer.set_result("here")
        await started
    assert not last.done()
    await clock.advance(20.0)
    with pytest.raises(WorkerStartFailed):
        await last


async def test_one_that_dies_on_its_way_has_the_next_started_by_exec(forks):
    answer, started = start(forks)
    await settle()
    answer.set_exception(WorkerLost("its process is gone"))
    with pytest.raises(WorkerLost):
        await started
    assert "its process is gone" in forks.why_not()


async def test_one_that_is_not_wanted_any_more_says_nothing_about_forking(forks):
    answer, started = start(forks, unwanted=lambda: True)
    await settle()
    answer.set_exception(WorkerLost("killed"))
    with pytest.raises(WorkerLost):
        await started
    assert forks.why_not() is None


async def test_nothing_is_left_of_a_start_that_nobody_waits_for(forks):
    answer, started = start(forks)
    await settle()
    started.cancel()
    await settle()
    assert answer.cancelled()
    assert forks.why_not() is None
