from __future__ import annotations

import asyncio
import re
import threading
import time
from typing import Any

import pytest

from dspool.config import LoadPrograms, PoolConfig
from dspool.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    ProgramError,
    UnknownProgram,
)
from dspool.messages import (
    ExecuteProgram,
    GetVariable,
    Operation,
    Ping,
    SetVariable,
    StreamEvent,
    StreamProgram,
)
from dspool.programs.sessions.host import CommandResult
from dspool.testing.host import LoopbackPool, Script, failing
from dspool.wire.frames import Cancel, Submit
from dspool.worker.execution import stuck
from dspool.worker.worker import Worker

SLOTS = 3


def config(**more: Any) -> PoolConfig:
    return PoolConfig(name="t", **{"slots_per_worker": SLOTS, "stream_window": 4, **more})


def late(worker: Worker, grace_s: float) -> str:
    return stuck(worker._operations.executions, time.monotonic(), grace_s)


async def until(condition, turns: int = 20_000) -> None:
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


class Gate:
    """A program that waits until told, in a task or in a thread."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.open = threading.Event()
        self.started = 0
        self.stopped = 0

    async def _async(self) -> dict[str, Any]:
        try:
            while not self.open.is_set():  # noqa: ASYNC110  (a thread may open it)
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return {"answer": "done"}

    def do(self, inputs, session, emit):
        self.started += 1
        if self.way == "async":
            return self._async()
        stop = inputs["stop"]
        while not self.open.wait(0.001):
            if stop.is_set():
                self.stopped += 1
                raise Cancelled("stopped")
        return {"answer": "done"}

    @property
    def script(self) -> Script:
        return Script(self.way, self.do)  # type: ignore[arg-type]


def echo(inputs, session, emit):
    return dict(inputs)


# --- what was measured, what is stuck ---


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


class Deaf:
    """A program that goes on whatever it is told, until `open`."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.started = 0

    async def _run(self) -> dict[str, Any]:
        while not self.open.is_set():
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                continue
        return {}

    def do(self, inputs, session, emit):
        self.started += 1
        if inputs["way"] == "async":
            return self._run()
        self.open.wait(60)
        return {}


@pytest.mark.parametrize("way", ["async", "thread"])
async def test_a_worker_with_an_operation_that_cannot_be_stopped_says_that_it_has_failed(way):
    async with LoopbackPool(config(recycle={"stuck_s": 0.01})) as pool:
        deaf = Deaf()
        pool.programs |= {"deaf": Script(way, deaf.do), "p": Script("inline", echo)}
        worker = await pool.start_worker()
        await worker.warm(LoadPrograms(), [])
        client = await pool.start_client()
        try:
            with pytest.raises(DeadlineExceeded):
                await client.run(ExecuteProgram("deaf", {"way": way}), timeout_s=0.05)
            await until(lambda: late(worker, 0.01))
            status = await worker.health()
            assert (status.state, status.running) == ("failed", 1)
            assert "after its deadline" in status.reason
            # The rest goes on, and nobody waits for what may never end.
            assert (await client.run(ExecuteProgram("p", {"x": 1}))).outputs == {"x": 1}
            await asyncio.wait_for(worker.drain(600.0), 60.0)
            assert (await worker.health()).state == "draining"
        finally:
            deaf.open.set()


async def test_a_drain_waits_for_what_can_end_and_then_no_longer_for_what_is_stuck():
    async with LoopbackPool(config(recycle={"stuck_s": 0.01})) as pool:
        deaf, gate = Deaf(), Gate("async")
        pool.programs |= {"deaf": Script("async", deaf.do), "gate": gate.script}
        worker = await pool.start_worker()
        client = await pool.start_client()
        # A client that never says "cancel".
        client._links.get("w0").send(Submit([Operation("x", ExecuteProgram("deaf", {"way": "async"}), 0.01)]))
        running = asyncio.ensure_future(client.run(ExecuteProgram("gate", {}), timeout_s=600.0))
        await until(lambda: gate.started and late(worker, 0.01), turns=1_000_000)
        idle = asyncio.ensure_future(worker._operations.idle(600.0, 0.01))
        await asyncio.sleep(0)
        assert not idle.done()
        gate.open.set()
        await running
        # Long before the deadline that the other one had.
        assert await asyncio.wait_for(idle, 5.0) is False
        deaf.open.set()


async def test_an_operation_within_its_deadline_or_waiting_for_the_store_is_not_stuck():
    async with LoopbackPool(config(recycle={"stuck_s": 0.001})) as pool:
        gate = Gate("async")
        pool.programs["slow"] = gate.script
        worker = await pool.start_worker()
        client = await pool.start_client()
        running = asyncio.create_task(client.run(ExecuteProgram("slow", {})))
        await until(lambda: gate.started)
        assert late(worker, 0.0) == ""
        await client.run(SetVariable("x", 0), session="s")
        pool.store.gate = asyncio.Event()
        with pytest.raises(DeadlineExceeded):
            await client.run(SetVariable("x", 1), session="s", timeout_s=0.02)
        assert worker._operations.running == 2
        assert late(worker, 0.0) == ""
        pool.store.gate.set()
        gate.open.set()
        await running


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


# --- cancelling, and clients that vanish ---


@pytest.mark.parametrize("way", ["async", "thread"])
async def test_cancelling_what_runs_stops_it_and_frees_its_slot_once_it_has_stopped(way):
    async with LoopbackPool(config()) as pool:
        gate = Gate(way)
        pool.programs["gate"] = gate.script
        worker = await pool.start_worker()
        client = await pool.start_client()
        call = asyncio.ensure_future(client.run(ExecuteProgram("gate", {})))
        await until(lambda: gate.started)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: worker._operations.running == 0)
        assert gate.stopped == 1
        await until(lambda: client.running == 0)


async def test_an_operation_cancelled_before_its_task_took_a_step_frees_its_slot():
    async with LoopbackPool(config()) as pool:
        gate = Gate("async")
        pool.programs["gate"] = gate.script
        worker = await pool.start_worker()
        client = await pool.start_client()
        link = client._links.get("w0")
        # Both in one packet, as when a caller changes its mind at once.
        for number in range(2 * SLOTS):
            operation = Operation(f"x{number}", ExecuteProgram("gate", {}), 30.0)
            link.send(Submit([operation]))
            link.send(Cancel([operation.id]))
        await client.run(Ping())
        await until(lambda: worker._operations.running == 0)
        assert gate.started == 0


@pytest.mark.parametrize("way", ["inline", "async", "thread"])
async def test_cancelling_one_that_waits_behind_another_of_its_session_frees_its_slot_at_once(way):
    async with LoopbackPool(config()) as pool:
        gate = Gate("async")
        pool.programs |= {"gate": gate.script, "next": Script(way, echo)}
        worker = await pool.start_worker()
        first, second = await pool.start_client(), await pool.start_client()
        await first.run(SetVariable("a", 1), session="s")
        running = asyncio.ensure_future(first.run(ExecuteProgram("gate", {}), session="s"))
        await until(lambda: gate.started)
        waiting = asyncio.ensure_future(second.run(ExecuteProgram("next", {"id": "n"}), session="s"))
        await until(lambda: worker._operations.running == 2)
        waiting.cancel()
        await until(lambda: worker._operations.running == 1)
        gate.open.set()
        assert (await running).answer == "done"
        assert pool.hosts["w0"].started["n"] == 0


async def test_cancelling_while_its_session_is_being_activated_frees_the_slot_at_once():
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        pool.store.gate = asyncio.Event()
        waiting = asyncio.ensure_future(client.run(SetVariable("a", 1), session="s"))
        await until(lambda: pool.store.calls["acquire"])
        waiting.cancel()
        await until(lambda: worker._operations.running == 0)
        pool.store.gate.set()
        pool.store.gate = None
        await client.run(SetVariable("a", 2), session="s")
        assert (await client.run(GetVariable("a"), session="s")).value == 2


async def test_cancelling_while_its_change_is_being_committed_waits_for_the_commit():
    async with LoopbackPool(config()) as pool:
        worker = await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        pool.store.gate = asyncio.Event()
        waiting = asyncio.ensure_future(client.run(SetVariable("a", 2), session="s"))
        await until(lambda: pool.store.calls["commit"] == 2)
        waiting.cancel()
        following = asyncio.ensure_future(client.run(GetVariable("a"), session="s"))
        for _ in range(50):
            await asyncio.sleep(0)
        assert worker._operations.running == 1
        pool.store.gate.set()
        assert (await following).value == 2
        assert worker._operations.running == 0


@pytest.mark.parametrize("way", ["async", "thread"])
async def test_a_stream_without_credit_ends_when_its_client_is_gone(way):
    sent = []

    async def stream(inputs, session, emit):
        for number in range(100):
            await emit(StreamEvent("token", "answer", str(number)))
            sent.append(number)
        return {}

    def stream_in_thread(inputs, session, emit):
        for number in range(100):
            emit(StreamEvent("token", "answer", str(number)))
            sent.append(number)
        return {}

    async with LoopbackPool(config()) as pool:
        pool.programs["stream"] = Script(way, stream if way == "async" else stream_in_thread)
        worker = await pool.start_worker()
        client = await pool.start_client()
        events = client.stream(StreamProgram("stream", {}))
        assert (await anext(events)).value == "0"
        await until(lambda: len(sent) == 4)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(sent) == 4, "no more than the window goes ahead of the reader"
        client._links.get("w0").abort()
        await until(lambda: worker._operations.running == 0)
        assert len(sent) == 4


@pytest.mark.parametrize("way", ["async", "thread"])
async def test_a_client_that_vanishes_stops_what_it_started(way):
    async with LoopbackPool(config()) as pool:
        gate = Gate(way)
        pool.programs["gate"] = gate.script
        worker = await pool.start_worker()
        gone, stays = await pool.start_client(), await pool.start_client()
        calls = [asyncio.ensure_future(gone.run(ExecuteProgram("gate", {}))) for _ in range(SLOTS)]
        await until(lambda: gate.started == SLOTS)
        gone._closed = True  # no farewell
        gone._links.get("w0").abort()
        assert (await stays.run(Ping())).value == "pong"
        await until(lambda: gate.stopped == SLOTS)
        await until(lambda: worker._operations.running == 0)
        for call in calls:
            call.cancel()


async def test_a_client_cannot_cancel_the_operation_of_another_that_has_the_same_id():
    async with LoopbackPool(config()) as pool:
        gate = Gate("async")
        pool.programs["gate"] = gate.script
        await pool.start_worker()
        mine, other = await pool.start_client(), await pool.start_client()
        call = asyncio.ensure_future(mine.run(ExecuteProgram("gate", {}), operation_id="x"))
        await until(lambda: gate.started)
        other._links.get("w0").send(Cancel(["x"]))
        await other.run(Ping(), operation_id="x")
        gate.open.set()
        assert (await call).answer == "done"


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


# --- deadlines ---


@pytest.mark.parametrize("way", ["async", "thread"])
async def test_the_worker_itself_stops_what_is_past_its_deadline(way):
    async with LoopbackPool(config()) as pool:
        gate = Gate(way)
        pool.programs["gate"] = gate.script
        worker = await pool.start_worker()
        client = await pool.start_client()
        # A client that never says "cancel".
        client._links.get("w0").send(Submit([Operation("x", ExecuteProgram("gate", {}), 0.01)]))
        await until(lambda: gate.stopped == 1, turns=1_000_000)
        await until(lambda: worker._operations.running == 0)


async def test_a_deadline_passes_in_line_too():
    async with LoopbackPool(config()) as pool:
        gate = Gate("async")
        pool.programs["gate"] = gate.script
        worker = await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("a", 1), session="s")
        running = asyncio.ensure_future(client.run(ExecuteProgram("gate", {}), session="s"))
        await until(lambda: gate.started)
        client._links.get("w0").send(Submit([Operation("x", GetVariable("a"), 0.01, "s")]))
        await until(lambda: worker._operations.running == 2)
        await until(lambda: worker._operations.running == 1, turns=1_000_000)
        gate.open.set()
        await running


async def test_a_caller_gets_its_deadline_while_a_thread_that_does_not_stop_keeps_its_slot():
    async with LoopbackPool(config()) as pool:
        release = threading.Event()
        pool.programs["deaf"] = Script("thread", lambda *_: release.wait() and {})
        worker = await pool.start_worker()
        client = await pool.start_client()
        with pytest.raises(DeadlineExceeded) as late:
            await client.run(ExecuteProgram("deaf", {}), timeout_s=0.02)
        assert late.value.phase == "run"
        assert worker._operations.running == 1
        release.set()
        await until(lambda: worker._operations.running == 0, turns=1_000_000)


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
