"""The event loop of one program: what begins there when, and what the first step of an execution may do."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dspool.messages import ExecuteProgram, Operation
from dspool.programs.sessions.host import CommandResult
from dspool.worker.execution import ClientPeer, Execution
from dspool.worker.program_loop import ProgramLoop

Run = Callable[[Execution], Awaitable[CommandResult]]
HELD = "held"
seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="")


def an_execution(name: str) -> Execution:
    operation = Operation(id=name, command=ExecuteProgram("own", {}), timeout_s=60.0)
    peer: Any = object.__new__(ClientPeer)
    return Execution(operation, peer, 0.0, 0)


async def outcomes_of(
    run: Run, count: int, then: Callable[[Execution], None] = lambda one: None
) -> list[Any]:
    """What becomes of `count` executions, all given to the loop before the first of them begins."""
    ended: asyncio.Queue[Any] = asyncio.Queue()
    given, began = threading.Event(), asyncio.Event()
    here = asyncio.get_running_loop()

    async def held_or_run(execution: Execution) -> CommandResult:
        if execution.operation.id == HELD:
            here.call_soon_threadsafe(began.set)
            given.wait()
            return CommandResult(None)
        return await run(execution)

    loop = ProgramLoop("own", held_or_run, lambda one, outcome: ended.put_nowait(outcome), clock=lambda: 0.0)
    try:
        loop.start(an_execution(HELD))
        loop.wake()
        await began.wait()
        executions = [an_execution(str(number)) for number in range(count)]
        for execution in executions:
            loop.start(execution)
        loop.wake()
        given.set()
        await ended.get()
        for execution in executions:
            then(execution)
        return [await ended.get() for _ in executions]
    finally:
        given.set()
        loop.close()


async def test_programs_that_end_in_their_first_step_take_no_turns_of_the_loop_from_each_other():
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1

    async def run(execution: Execution) -> CommandResult:
        asyncio.get_running_loop().call_soon(turn)
        return CommandResult(turns)

    assert len({outcome.value for outcome in await outcomes_of(run, 64)}) == 1


async def test_of_programs_that_wait_only_a_share_begins_in_each_turn():
    began: list[str] = []

    async def run(execution: Execution) -> CommandResult:
        began.append(execution.operation.id)
        await asyncio.sleep(0)
        return CommandResult(len(began))

    assert (await outcomes_of(run, 64))[0].value < 64


async def test_the_first_step_runs_in_a_task_and_in_a_context_of_its_own():
    async def run(execution: Execution) -> CommandResult:
        before = seen.get()
        seen.set(execution.operation.id)
        async with asyncio.timeout(60.0):  # only a task can have one
            await asyncio.sleep(0)
        return CommandResult(before)

    assert [outcome.value for outcome in await outcomes_of(run, 3)] == ["", "", ""]


async def test_one_that_waits_after_its_first_step_can_be_cancelled():
    waits = threading.Event()

    async def run(execution: Execution) -> CommandResult:
        waits.set()
        await asyncio.Event().wait()
        return CommandResult(None)

    def cancel(execution: Execution) -> None:
        assert waits.wait(60.0)
        assert execution.task is not None
        execution.task.cancel()

    (outcome,) = await outcomes_of(run, 1, cancel)
    assert isinstance(outcome, asyncio.CancelledError)


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), ValueError("odd")])
async def test_what_a_first_step_raises_ends_its_execution_and_no_other(raised: BaseException):
    async def run(execution: Execution) -> CommandResult:
        if execution.operation.id == "0":
            raise raised
        return CommandResult("well")

    first, second = await outcomes_of(run, 2)
    assert first is raised
    assert second.value == "well"


async def test_what_ended_before_a_step_that_blocks_is_reported_while_that_step_goes_on():
    ended: list[str] = []
    here, blocks, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    async def run(execution: Execution) -> CommandResult:
        if execution.operation.id == HELD:
            here.call_soon_threadsafe(blocks.set)
            go_on.wait()
        return CommandResult(None)

    loop = ProgramLoop("own", run, lambda one, outcome: ended.append(one.operation.id), clock=lambda: 0.0)
    try:
        for name in ("quick", HELD):
            loop.start(an_execution(name))
        loop.wake()
        await blocks.wait()
        loop.take_outcomes()
        assert ended == ["quick"]
        assert {one.operation.id for one in loop.under_way} == {HELD}
    finally:
        go_on.set()
        loop.close()


async def test_what_ends_in_one_turn_wakes_the_loop_of_its_worker_once(monkeypatch: pytest.MonkeyPatch):
    taken = 0
    take = ProgramLoop.take_outcomes

    def counted(self: ProgramLoop) -> None:
        nonlocal taken
        taken += 1
        take(self)

    async def run(execution: Execution) -> CommandResult:
        return CommandResult(None)

    monkeypatch.setattr(ProgramLoop, "take_outcomes", counted)
    await outcomes_of(run, 64)
    assert taken <= 2  # that of the first one, which was held, may have come alone
