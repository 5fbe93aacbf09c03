"""Whatever a program returns or raises is the answer to its operation alone, and so is what the host refuses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dspool.errors import InternalError, ProgramError, UnknownProgram
from dspool.messages import ExecuteProgram, Ping, SetVariable
from dspool.programs.sessions.host import CommandResult
from dspool.testing.host import LoopbackPool, Script, failing
from tests.unit.worker_bench import Gate, config, echo, until

# --- answers ---


async def test_what_a_program_returns_is_what_the_caller_gets():
    async with LoopbackPool(config()) as pool:
        pool.programs["echo"] = Script("inline", echo)
        await pool.start_worker()
        client = await pool.start_client()
        result = await client.run(ExecuteProgram("echo", {"x": [1, {"y": None}]}))
        assert result.outputs == {"x": [1, {"y": None}]}
        assert result.worker == "w0"


@pytest.mark.parametrize("way", ["inline", "async", "thread"])
@pytest.mark.parametrize("raised", [ValueError("secret"), StopIteration(), MemoryError()])
async def test_whatever_a_program_raises_ends_that_operation_and_nothing_else(way, raised, caplog):
    async with LoopbackPool(config()) as pool:
        pool.programs["bad"] = Script(way, failing(raised).do)
        pool.programs["echo"] = Script("inline", echo)
        worker = await pool.start_worker()
        client = await pool.start_client()
        with pytest.raises(InternalError) as failed:
            await client.run(ExecuteProgram("bad", {}))
        assert failed.value.kind in (
            type(raised).__name__,
            "RuntimeError",
        )  # Python turns StopIteration of a task into that
        assert "secret" not in str(failed.value)
        assert "secret" not in caplog.text
        assert "an operation failed: the worker failed on this operation" in caplog.text
        assert (await client.run(ExecuteProgram("echo", {"x": 1}))).outputs == {"x": 1}
        assert worker._operations.running == 0
        assert pool.reported_dead == []


@pytest.mark.parametrize("way", ["inline", "async", "thread"])
@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
async def test_what_stops_processes_loops_or_tasks_elsewhere_ends_the_operation_of_a_program_that_raises_it(
    way, raised, caplog
):
    async with LoopbackPool(config()) as pool:
        gate = Gate("async")
        pool.programs |= {"bad": Script(way, failing(raised("secret")).do), "neighbour": gate.script}
        worker = await pool.start_worker()
        client = await pool.start_client()
        neighbour = asyncio.ensure_future(client.run(ExecuteProgram("neighbour", {})))
        await until(lambda: gate.started)
        with pytest.raises(ProgramError, match=f"raised {raised.__name__} at ") as failed:
            await client.run(ExecuteProgram("bad", {}))
        assert "secret" not in str(failed.value) + caplog.text
        gate.open.set()
        assert (await neighbour).answer == "done"
        assert worker._operations.running == 0


async def test_a_program_that_raises_a_pool_error_is_reported_as_that(caplog):
    async with LoopbackPool(config()) as pool:
        pool.programs["bad"] = failing(ProgramError("the user wrote: my secret"))
        await pool.start_worker()
        client = await pool.start_client()
        with pytest.raises(ProgramError, match="my secret"):
            await client.run(ExecuteProgram("bad", {}))
        assert "my secret" not in caplog.text


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"answer": object()}, "object"),
        ({"answer": "\ud800"}, "Unicode"),
    ],
)
async def test_a_result_that_cannot_be_sent_fails_alone(value, why):
    async with LoopbackPool(config()) as pool:
        gate = Gate("async")
        pool.programs["gate"] = gate.script
        pool.programs["bad"] = Script("inline", lambda *_: value)
        await pool.start_worker()
        client = await pool.start_client()
        beside = asyncio.ensure_future(client.run(ExecuteProgram("gate", {})))
        await until(lambda: gate.started)
        with pytest.raises(InternalError, match=why):
            await client.run(ExecuteProgram("bad", {}))
        gate.open.set()
        assert (await beside).answer == "done"
        assert pool.reported_dead == []


async def test_a_result_nested_deeper_than_a_client_can_decode_fails_alone():
    deep: list[Any] = []
    for _ in range(150):
        deep = [deep]
    async with LoopbackPool(config()) as pool:
        pool.programs["deep"] = Script("inline", lambda *_: {"answer": deep})
        await pool.start_worker()
        client = await pool.start_client()
        with pytest.raises(InternalError, match="levels of nesting"):
            await client.run(ExecuteProgram("deep", {}))
        assert (await client.run(Ping())).value == "pong"
        assert pool.reported_dead == []


async def test_malformed_usage_of_a_program_does_not_cost_the_connection():
    async with LoopbackPool(config()) as pool:
        pool.programs["bad"] = Script(
            "inline", lambda *_: CommandResult({"outputs": {}}, usage={"m": {"total": None}})
        )
        await pool.start_worker()
        client = await pool.start_client()
        with pytest.raises(InternalError, match="usage"):
            await client.run(ExecuteProgram("bad", {}))
        assert pool.reported_dead == []


async def test_an_error_whose_details_cannot_be_sent_is_still_an_error():
    async with LoopbackPool(config()) as pool:
        pool.programs["bad"] = failing(ProgramError("no", what=object()))
        await pool.start_worker()
        client = await pool.start_client()
        with pytest.raises(InternalError, match="cannot be sent"):
            await client.run(ExecuteProgram("bad", {}))


# --- the host refuses ---


async def test_an_unknown_program_is_the_callers_error():
    async with LoopbackPool(config()) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        with pytest.raises(UnknownProgram):
            await client.run(ExecuteProgram("nope", {}))


async def test_a_defect_in_planning_ends_that_operation_only(monkeypatch):
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()

        def broken(command, session):
            raise KeyError("secret")

        monkeypatch.setattr(pool.hosts["w0"], "plan", broken)
        with pytest.raises(InternalError) as failed:
            await client.run(Ping())
        assert "secret" not in str(failed.value)
        with pytest.raises(InternalError):
            await client.run(SetVariable("a", 1), session="s")
        monkeypatch.undo()
        assert (await client.run(SetVariable("a", 1), session="s")).value is None
        assert worker._operations.running == 0
        assert pool.reported_dead == []
