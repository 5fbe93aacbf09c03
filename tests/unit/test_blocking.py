from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dspool.blocking import BlockingClient
from dspool.config import PoolConfig
from dspool.errors import PoolClosed, ProgramError
from dspool.messages import ExecuteProgram
from dspool.pool import Pool


class Answers(Pool):
    """A pool that answers at once and remembers how many asked at the same time."""

    config = PoolConfig(name="t", max_queue=10)

    def __init__(self) -> None:
        self.now = self.most = self.asked = 0
        self.closed = 0
        self.cancelled = threading.Event()
        self.asking = threading.Event()

    async def execute(self, program: str, *, timeout_s: float | None = None, **inputs: Any) -> Any:
        return await self.run(ExecuteProgram(program, inputs), timeout_s=timeout_s)

    async def run(self, command: ExecuteProgram, *, timeout_s: float | None = None) -> Any:
        program, inputs = command.program, command.inputs
        self.now += 1
        self.asked += 1
        self.most = max(self.most, self.now)
        self.asking.set()
        try:
            await (asyncio.Event().wait() if program == "hangs" else asyncio.sleep(0))
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.now -= 1
        if inputs.get("x") == "bad":
            raise ProgramError("no")
        return inputs["x"]

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def answers():
    return Answers()


@pytest.fixture
def pool(answers):
    pool = BlockingClient(opened(answers))
    yield pool
    pool.close()


@asynccontextmanager
async def opened(answers):
    yield answers
    await answers.close()


def test_an_answer_is_waited_for(pool):
    assert pool.execute("p", x=1) == 1


def test_map_keeps_the_order_of_its_inputs_and_never_fills_the_queue(pool, answers):
    assert pool.map("p", [{"x": n} for n in range(100)]) == list(range(100))
    assert 1 < answers.most <= 5


def test_map_of_nothing_is_nothing(pool):
    assert pool.map("p", []) == []


def test_map_raises_the_first_failure_and_asks_for_no_more(pool, answers):
    with pytest.raises(ProgramError):
        pool.map("p", [{"x": "bad"}, *({"x": n} for n in range(1000))])
    assert answers.asked < 20


def test_after_close_everything_is_refused_and_closing_again_is_nothing(pool, answers):
    pool.close()
    pool.close()
    assert answers.closed == 1
    with pytest.raises(PoolClosed):
        pool.execute("p", x=1)


def test_an_interrupted_caller_cancels_its_operation(pool, answers, monkeypatch):
    import concurrent.futures

    def interrupted(self, timeout=None):
        answers.asking.wait(120)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(concurrent.futures.Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.execute("hangs", x=1)
    assert answers.cancelled.wait(120)


def test_who_waits_in_another_thread_hears_that_the_pool_was_closed(pool, answers):
    heard: list[BaseException] = []

    def wait() -> None:
        try:
            pool.execute("hangs", x=1)
        except PoolClosed as closed:
            heard.append(closed)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert answers.asking.wait(120)
    pool.close()
    waiting.join(120)
    assert len(heard) == 1


def test_an_interrupted_iteration_ends_as_it_was_interrupted(pool, answers, monkeypatch):
    import concurrent.futures

    begun, closed = threading.Event(), threading.Event()

    async def events(command: Any) -> Any:
        try:
            begun.set()
            await asyncio.Event().wait()
            yield 1
        finally:
            await asyncio.sleep(0.01)
            closed.set()

    answers.stream = events
    waiting = concurrent.futures.Future.result
    interruptions = iter([True])

    def interrupted(self, timeout=None):
        if next(interruptions, False):
            begun.wait(120)
            raise KeyboardInterrupt
        return waiting(self, timeout)

    with monkeypatch.context() as patched:
        patched.setattr(concurrent.futures.Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(pool.stream("anything"))
    assert closed.wait(120)


def test_a_call_from_the_pools_own_loop_is_refused_instead_of_hanging(pool):
    async def inside() -> Any:
        with pytest.raises(RuntimeError, match="themselves"):
            pool.execute("p", x=1)
        return True

    assert pool._portal.call(inside())


def test_an_iteration_that_is_left_early_closes_what_it_came_from(pool, answers):
    closed = threading.Event()

    async def events(command: Any) -> Any:
        try:
            for number in range(9):
                yield number
        finally:
            closed.set()

    answers.stream = events
    for number in pool.stream("anything"):
        if number == 2:
            break
    assert closed.wait(60)
    assert list(pool.stream("anything")) == list(range(9))
