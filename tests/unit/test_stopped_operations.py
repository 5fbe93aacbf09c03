"""An operation that is cancelled, late or left by its client is stopped and frees its slot, or is known to be stuck."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from dspool.config import LoadPrograms
from dspool.errors import DeadlineExceeded
from dspool.messages import (
    ExecuteProgram,
    GetVariable,
    Operation,
    Ping,
    SetVariable,
    StreamEvent,
    StreamProgram,
)
from dspool.testing.host import LoopbackPool, Script
from dspool.wire.frames import Cancel, Submit
from dspool.worker.execution import stuck
from dspool.worker.worker import Worker
from tests.unit.worker_bench import SLOTS, Gate, config, echo, until

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


# --- what cannot be stopped ---


def late(worker: Worker, grace_s: float) -> str:
    return stuck(worker._operations.executions, time.monotonic(), grace_s)


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
