"""A forked worker that does not come: noticed, and the next one is started by exec."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from dspool.config import PoolConfig
from dspool.errors import WorkerLost, WorkerStartFailed
from dspool.runtime import forkserver, workers
from dspool.runtime.workers import EXEC_FOR_S, ForkStarts
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


async def test_who_gives_the_pool_more_time_to_start_gives_a_forked_worker_more(clock):
    answer, started = start(ForkStarts(300.0, clock=clock.now, sleep=clock.sleep))
    await clock.advance(199.0)
    answer.set_result("here")
    assert await started == "here"


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


class Actors:
    """Takes the place of the worker's actor class; keeps the options of each start."""

    def __init__(self):
        self.started = []

    def options(self, **options):
        self.started.append(options)
        return self

    def remote(self, *args):
        return None


async def test_after_a_start_that_did_not_come_the_next_worker_is_told_to_say_why_it_was_not_forked(clock):
    runtime = workers.RayRuntime(PoolConfig(worker_start="fork"), b"")
    actors = runtime._actor = Actors()
    runtime._start_method = forkserver.StartMethod("python shim.py ''")
    runtime._forks = forks = ForkStarts(30.0, clock=clock.now, sleep=clock.sleep)
    await runtime.start_worker("p-w0-a", 0)
    answer, started = start(forks, "p-w0-a")
    await clock.advance(20.0)
    with pytest.raises(WorkerStartFailed):
        await started
    assert answer.cancelled()
    await runtime.start_worker("p-w0-b", 0)
    await clock.advance(EXEC_FOR_S)
    await runtime.start_worker("p-w0-c", 0)
    forked, executed, again = (options["runtime_env"] for options in actors.started)
    assert forked == again == {"py_executable": "python shim.py ''"}
    (how,) = executed["env_vars"].values()
    # As the worker itself reads it: for its status, the event `worker.fallback` and the metric.
    assert forkserver.how_started(executed["env_vars"]) == how
    assert how == "exec: the forked worker p-w0-a failed to start: it did not come in 20 s"


async def test_without_forking_a_worker_has_an_environment_of_its_own_that_says_so_without_a_reason(clock):
    runtime = workers.RayRuntime(PoolConfig(worker_start="exec"), b"")
    actors = runtime._actor = Actors()
    runtime._start_method = forkserver.StartMethod(None)
    await runtime.start_worker("p-w0-a", 0)
    assert actors.started[0]["runtime_env"] == {"env_vars": {forkserver.HOW_VARIABLE: "exec"}}


async def test_a_job_with_a_python_of_its_own_has_workers_that_say_why_they_were_not_forked(monkeypatch):
    class Context:
        runtime_env: ClassVar = {"pip": ["x"]}

    monkeypatch.setattr(workers.ray, "get_runtime_context", Context)
    runtime = workers.RayRuntime(PoolConfig(worker_start="fork"), b"")
    actors = runtime._actor = Actors()
    await runtime.start_worker("p-w0-a", 0)
    (how,) = actors.started[0]["runtime_env"]["env_vars"].values()
    assert how == "exec: the job's runtime_env has its own Python: pip"
