"""What programs return and do beyond their own operation: it ends that one, and no other's."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import odd_programs
import pytest

from dspool.config import PoolConfig
from dspool.errors import ProgramError
from dspool.messages import Deployment, ExecuteProgram, StreamProgram
from dspool.programs.sessions.host import SessionHost
from dspool.testing.host import LoopbackPool
from dspool.worker.program_loop import ProgramLoop
from dspool.worker.worker import Worker

WAIT_S = 60.0
PROGRAMS = ("Blocking", "CancelsAll", "NamedByNumber", "NamedByPair", "NamedByNothing", "Echo", "Later")


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WAIT_S)
        self.loop.close()

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)

    def begin(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop)


@pytest.fixture
def client():
    """A client and its worker on loops of their own: a program reaches that of its worker only."""
    theirs, ours = Loop(), Loop()
    config = PoolConfig(name="t", slots_per_worker=4, allowed_imports=("odd_programs",))
    pool = LoopbackPool(config)

    async def serve():
        worker = Worker("w0", 0, config, pool.secret, pool.store, session_host=SessionHost(config))
        for name in PROGRAMS:
            await worker.deploy(Deployment(name, 1, import_path=f"odd_programs:{name}"))
        return worker, await worker.describe()

    worker, member = theirs.do(serve())

    async def connect():
        pool.workers["w0"], pool._members["w0"] = worker, member
        pool.publish()
        return await pool.start_client()

    ours.client = ours.do(connect())
    ours.pool, ours.worker, ours.its = pool, worker, theirs
    yield ours
    ours.do(ours.client.close())
    theirs.do(worker.stop())
    for one in (ours, theirs):
        one.end()


def run(client, program, **inputs):
    return client.client.run(ExecuteProgram(program, inputs), timeout_s=WAIT_S)


async def stream(client, program):
    async for _ in client.client.stream(StreamProgram(program, {}), timeout_s=WAIT_S):
        pass


def test_a_program_that_cancels_every_task_takes_no_slot_of_one_that_runs_in_a_thread(client):
    odd_programs.Blocking.running.clear()
    odd_programs.Blocking.may_end.clear()
    neighbour = client.begin(run(client, "Blocking"))
    assert odd_programs.Blocking.running.wait(WAIT_S)
    assert client.do(run(client, "CancelsAll")).answer == "done"
    odd_programs.Blocking.may_end.set()
    assert neighbour.result(WAIT_S).answer == "unharmed"


@pytest.mark.parametrize("program", ["NamedByNumber", "NamedByPair", "NamedByNothing"])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_output_whose_name_is_no_text_ends_its_operation_and_not_the_connection(client, program, streamed):
    with pytest.raises(ProgramError, match="an output whose name is a"):
        client.do(stream(client, program) if streamed else run(client, program))
    assert client.pool.reported_dead == []
    assert client.do(run(client, "Echo", text="still there")).answer == "still there"


def test_an_operation_runs_the_version_that_it_was_planned_for_though_another_is_current_when_it_begins(
    client, monkeypatch
):
    waiting = threading.Event()
    start_some = ProgramLoop._start_some
    monkeypatch.setattr(ProgramLoop, "_start_some", lambda loop: waiting.set())
    asked = client.begin(run(client, "Later"))
    assert waiting.wait(WAIT_S)
    # The new one has no async form: run as the old one was planned it would fail.
    client.its.do(client.worker.deploy(Deployment("Later", 2, import_path="odd_programs:Now")))
    monkeypatch.setattr(ProgramLoop, "_start_some", start_some)
    (loop,) = client.worker._operations.runner._loops.values()
    loop.loop.call_soon_threadsafe(start_some, loop)
    result = asked.result(WAIT_S)
    assert (result.answer, result.program_version) == ("later", 1)
    assert client.do(run(client, "Later")).answer == "now"
