"""How operations share a worker, its slots, its loop and the window of a stream, and what it tells of what ran."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from dspool.config import LoadPrograms, PoolConfig
from dspool.errors import InternalError, ProgramError
from dspool.messages import ExecuteProgram, GetVariable, SetVariable, StreamEvent, StreamProgram
from dspool.testing.host import LoopbackPool, Script, failing
from tests.unit.worker_bench import SLOTS, Gate, config, echo, until

# --- what is told of them ---


async def test_a_worker_tells_what_each_version_of_a_program_did_and_does():
    async with LoopbackPool(config()) as pool:
        gate = Gate("async")
        pool.programs |= {
            "p": Script("inline", echo),
            "bad": failing(ProgramError("no")),
            "slow": gate.script,
        }
        worker = await pool.start_worker()
        client = await pool.start_client()
        await client.run(ExecuteProgram("p", {}))
        pool.hosts["w0"].versions["p"] = 2
        for _ in range(2):
            await client.run(ExecuteProgram("p", {}))
        with pytest.raises(ProgramError):
            await client.run(ExecuteProgram("bad", {}))
        numbers = await worker.versions("p")
        assert {version: seen.operations for version, seen in numbers.items()} == {1: 1, 2: 2}
        assert (await worker.versions("bad"))[1].errors == 1
        task = asyncio.create_task(client.run(ExecuteProgram("slow", {})))
        await until(lambda: gate.started)
        # The version it began with, whichever is current by now.
        pool.hosts["w0"].versions["slow"] = 5
        assert {v: seen.running for v, seen in (await worker.versions("slow")).items()} == {1: 1}
        gate.open.set()
        await task
        assert {v: seen.operations for v, seen in (await worker.versions("slow")).items()} == {1: 1}


async def test_a_worker_logs_each_step_of_its_warm_up_and_how_long_it_took(caplog):
    caplog.set_level("INFO", "dspool.worker")
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        await worker.warm(LoadPrograms(), [])
    assert re.fullmatch(r"worker \S+: warm-up step load_programs took \d+\.\d{3} s", caplog.messages[-1])


# --- slots ---


async def test_two_clients_share_the_slots_and_both_get_on():
    async with LoopbackPool(config()) as pool:
        pool.programs["echo"] = Script("async", echo)
        worker = await pool.start_worker()
        clients = [await pool.start_client(), await pool.start_client()]
        calls = [client.run(ExecuteProgram("echo", {"n": n})) for n in range(200) for client in clients]
        results = await asyncio.gather(*calls)
        assert sorted(r.n for r in results) == sorted(2 * list(range(200)))
        assert pool.hosts["w0"].most_running <= SLOTS
        assert worker._operations.running == 0


async def test_a_client_told_busy_hears_when_the_other_lets_go():
    async with LoopbackPool(config()) as pool:
        gate = Gate("async")
        pool.programs |= {"gate": gate.script, "echo": Script("inline", echo)}
        worker = await pool.start_worker()
        greedy, late = await pool.start_client(), await pool.start_client()
        calls = [asyncio.ensure_future(greedy.run(ExecuteProgram("gate", {}))) for _ in range(SLOTS)]
        await until(lambda: gate.started == SLOTS)
        waiting = asyncio.ensure_future(late.run(ExecuteProgram("echo", {"x": 1})))
        await until(lambda: late.queued == 1)
        gate.open.set()
        assert (await waiting).x == 1
        await asyncio.gather(*calls)
        assert worker._operations.running == 0


async def test_thousands_of_inline_operations_leave_the_loop_to_others_every_few_milliseconds():
    async with LoopbackPool(PoolConfig(name="t", slots_per_worker=2000, max_queue=2000)) as pool:
        seen: list[int] = []

        def work(inputs, session, emit):
            seen.append(inputs["n"])
            return {"sum": sum(range(10_000))}

        pool.programs["work"] = Script("inline", work)
        worker = await pool.start_worker()
        client = await pool.start_client()
        calls = [asyncio.ensure_future(client.run(ExecuteProgram("work", {"n": n}))) for n in range(1500)]
        await calls[0]
        assert len(seen) < 1500, "the first answer leaves before the last operation has run"
        late = asyncio.ensure_future(client.run(ExecuteProgram("work", {"n": -1})))
        await until(lambda: worker._operations.running > 1500 - len(seen))
        late.cancel()
        await asyncio.gather(*calls)
        assert seen == list(range(1500))
        await until(lambda: worker._operations.running == 0)


async def test_of_many_tasks_that_arrive_together_the_first_reaches_its_model_before_the_last_has_begun():
    log: list[tuple[str, int]] = []

    async def calling(number: int) -> dict[str, Any]:
        log.append(("begun", number))
        for _ in range(5):
            await asyncio.sleep(0)
        log.append(("called", number))
        return {}

    async with LoopbackPool(config(slots_per_worker=64)) as pool:
        pool.programs["p"] = Script("async", lambda inputs, session, emit: calling(inputs["id"]))
        await pool.start_worker()
        client = await pool.start_client()
        await asyncio.gather(*(client.run(ExecuteProgram("p", {"id": number})) for number in range(64)))
    begun = [number for what, number in log if what == "begun"]
    assert begun == list(range(64))
    assert [what for what, _ in log[: log.index(("called", 0))]].count("begun") < 32


async def test_one_cancelled_before_its_task_was_started_never_runs_and_frees_its_slot():
    async with LoopbackPool(config(slots_per_worker=64)) as pool:
        gate = Gate("async")
        pool.programs["p"] = gate.script
        worker = await pool.start_worker()
        client = await pool.start_client()
        tasks = [asyncio.create_task(client.run(ExecuteProgram("p", {}))) for _ in range(64)]
        await until(lambda: gate.started)
        for task in tasks:
            task.cancel()
        await until(lambda: worker._operations.running == 0)
        assert gate.started < 64
        gate.open.set()
        assert await client.run(ExecuteProgram("p", {}))


async def test_a_draining_worker_takes_nothing_new_finishes_what_it_has_and_gives_its_sessions_back():
    async with LoopbackPool(config()) as pool:
        gate = Gate("async")
        pool.programs["gate"] = gate.script
        first = await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        running = asyncio.ensure_future(client.run(ExecuteProgram("gate", {}), session="s"))
        await until(lambda: gate.started)
        draining = asyncio.ensure_future(first.drain(30.0))
        await until(lambda: first._operations.draining)
        following = asyncio.ensure_future(client.run(GetVariable("a"), session="s"))
        await pool.start_worker()
        pool.leave("w0")
        gate.open.set()
        assert (await running).answer == "done"
        await draining
        got = await following
        assert (got.value, got.worker) == (1, "w1")


# --- streams ---


@pytest.mark.parametrize("reader", ["stream", "run"])
async def test_a_stream_longer_than_its_window_arrives_whole(reader):
    async def stream(inputs, session, emit):
        for number in range(50):
            await emit(StreamEvent("token", "answer", number))
        return {"answer": 50}

    async with LoopbackPool(config()) as pool:
        pool.programs["stream"] = Script("async", stream)
        await pool.start_worker()
        client = await pool.start_client()
        if reader == "run":
            assert (await client.run(StreamProgram("stream", {}))).answer == 50
        else:
            events = [event async for event in client.stream(StreamProgram("stream", {}))]
            assert [event.value for event in events[:-1]] == list(range(50))
            assert events[-1].answer == 50


async def test_an_event_that_cannot_be_sent_ends_its_stream_with_an_error():
    async def stream(inputs, session, emit):
        await emit(StreamEvent("field", "answer", object()))

    async with LoopbackPool(config()) as pool:
        pool.programs["stream"] = Script("async", stream)
        await pool.start_worker()
        client = await pool.start_client()
        with pytest.raises(InternalError, match="object"):
            async for _ in client.stream(StreamProgram("stream", {})):
                pass
        assert pool.reported_dead == []


async def test_leaving_a_stream_early_cancels_its_operation():
    stopped = asyncio.Event()

    async def stream(inputs, session, emit):
        try:
            while True:
                await emit(StreamEvent("token", "answer", "x"))
        finally:
            stopped.set()

    async with LoopbackPool(config()) as pool:
        pool.programs["stream"] = Script("async", stream)
        worker = await pool.start_worker()
        client = await pool.start_client()
        events = client.stream(StreamProgram("stream", {}))
        await anext(events)
        await events.aclose()
        await stopped.wait()
        await until(lambda: worker._operations.running == 0)
