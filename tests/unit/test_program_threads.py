"""Threads that a program starts have its LM, usage and operation; tools that block hold no event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import threading_programs
from dspy.utils.callback import BaseCallback

from dspool.config import PoolConfig
from dspool.errors import Cancelled
from dspool.messages import Deployment, ExecuteProgram, Operation, StreamEvent, StreamProgram
from dspool.programs.sessions.host import CommandResult, SessionHost
from dspool.telemetry.logs import LogContext, current_operation
from dspool.testing.host import LoopbackPool
from dspool.testing.lm_server import LMServer
from dspool.worker.worker import Worker

ASKED = {"question": "Rome is big. What is big?"}
THREADS = (
    "RawThread",
    "OwnKindOfThread",
    "Timer",
    "Executor",
    "ExecutorMap",
    "KeptExecutor",
    "KeptThreadPool",
    "ThreadWithinThread",
    "RunInExecutor",
)
CALLS = {"KeptThreadPool": 4}
AGENTS = ("meeting_agent", "asking_agent", "holding_agent", "mixed_agent", "Agent", "BlockingAgent")
ALLOWED = {"allowed_imports": ("threading_programs",)}
WAIT_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


@pytest.fixture(scope="module")
def host(server: LMServer) -> SessionHost:
    tools = ["threading_programs:waits", "threading_programs:plain", "threading_programs:meets"]
    host = SessionHost(
        PoolConfig(
            lm_profiles={"test": {"model": "openai/test", "endpoint": server.url}},
            allowed_callables={"tools": tools},
            **ALLOWED,
        )
    )
    for name in (*THREADS, *AGENTS, "FailingThread", "LoggingThread"):
        path = f"threading_programs:{name}"
        host.deploy(Deployment(name, 1, import_path=path, spec={"lm": "offline"}))
        if name in THREADS:
            host.deploy(Deployment(f"{name}-real", 1, import_path=path, spec={"lm": "test"}))
    for name, chosen in {"mixed": tools[:2], "mixed-plain-first": tools[1::-1], "meeting": tools[2:]}.items():
        settings = {"tools": chosen, "max_iters": 1}
        spec = {"signature": "question -> answer", "module": "ReAct", "settings": settings, "lm": "offline"}
        host.deploy(Deployment(name, 1, spec=spec))
    return host


@pytest.fixture(autouse=True)
def the_first_tool_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspool.programs.offline.values._choice", lambda options, name, reading: options[0])


async def ran(host: SessionHost, program: str, **inputs: Any) -> CommandResult:
    command = ExecuteProgram(program, inputs)
    if host.plan(command, None) == "apart":
        return await host.run_async(command, None)
    return await asyncio.to_thread(host.run_thread, command, None)


# --- threads ---


@pytest.mark.parametrize("program", THREADS)
async def test_a_thread_that_a_program_starts_has_its_model_and_its_tokens_count(
    host: SessionHost, server: LMServer, program: str
):
    for _ in range(2):
        before = server.requests
        done = await ran(host, f"{program}-real", **ASKED)
        assert done.value["outputs"]["answer"]
        assert done.usage["openai/test"]["total_tokens"] > 0
        assert server.requests - before == CALLS.get(program, 1)
        assert done.offline is False
    assert (await ran(host, program, **ASKED)).offline is True


@pytest.mark.parametrize("program", [*THREADS, "KeptExecutor-real", "RunInExecutor-real", "RawThread-real"])
async def test_a_program_that_asks_in_threads_can_be_streamed(host: SessionHost, program: str):
    events: list[StreamEvent] = []

    async def keep(event: StreamEvent) -> None:
        events.append(event)

    command = StreamProgram(program, ASKED)
    if host.plan(command, None) == "apart":
        await host.run_async(command, None, keep)
    else:
        await asyncio.to_thread(host.run_thread, command, None, events.append)
    assert [event.field for event in events if event.kind == "field"] == ["answer"]


async def test_a_kept_thread_remembers_nothing_of_whom_it_served_before(host: SessionHost):
    await ran(host, "KeptExecutor", **ASKED)
    program, _ = host.pool_programs.get("KeptExecutor")
    seen = program.module.pool.submit(threading_programs.dspy.settings.get, "lm").result()
    assert seen is None


def test_a_thread_outside_of_a_program_gets_nothing():
    current_operation.set(Operation("nobody's", ExecuteProgram("p", {}), 1.0))
    seen: list[Any] = []
    try:
        thread = threading.Thread(target=lambda: seen.append(current_operation.get()))
        thread.start()
        thread.join()
    finally:
        current_operation.set(None)
    assert seen == [None]


def within(operation_id: str, host: SessionHost, program: str) -> None:
    current_operation.set(Operation(operation_id, ExecuteProgram(program, {}), 1.0))
    try:
        host.run_thread(ExecuteProgram(program, {}), None)
    finally:
        current_operation.set(None)


@pytest.mark.parametrize(
    ("program", "text"),
    [("LoggingThread", "within"), ("FailingThread", "ended: ValueError at threading_pro")],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_line_that_a_thread_logs_names_the_operation_and_so_does_its_failure(
    host: SessionHost, caplog: pytest.LogCaptureFixture, program: str, text: str
):
    caplog.handler.addFilter(context := LogContext("t"))
    try:
        within("op-1", host, program)
    finally:
        caplog.handler.removeFilter(context)
    (record,) = [record for record in caplog.records if text in record.getMessage()]
    assert record.operation_id == "op-1"  # type: ignore[attr-defined]
    assert "what the user wrote" not in record.getMessage()


# --- tools ---


@pytest.mark.parametrize("program", ["meeting_agent", "Agent", "meeting"])
async def test_eight_calls_of_a_tool_that_blocks_run_at_once(host: SessionHost, program: str):
    threading_programs.meeting.reset()
    assert host.plan(ExecuteProgram(program, ASKED), None) == "apart"
    done = await asyncio.gather(*(ran(host, program, **ASKED) for _ in range(8)))
    assert threading_programs.meeting.broken is False
    for one in done:
        trajectory = one.value["outputs"]["trajectory"]
        assert trajectory["observation_0"] == "met"


@pytest.mark.parametrize(
    ("program", "observed"),
    [
        ("mixed", "waited"),
        ("mixed_agent", "waited"),
        ("BlockingAgent", "waited"),
        ("mixed-plain-first", "AnyIO worker thread"),
    ],
)
async def test_plain_and_async_tools_work_side_by_side(host: SessionHost, program: str, observed: str):
    done = await ran(host, program, **ASKED)
    assert done.value["outputs"]["trajectory"]["observation_0"] == observed


async def test_a_tool_in_a_thread_calls_the_model_of_its_operation_and_it_counts(host: SessionHost):
    done = await ran(host, "asking_agent", **ASKED)
    assert "rror" not in done.value["outputs"]["trajectory"]["observation_0"]
    assert done.offline is True


async def test_a_stream_tells_which_tool_is_called_and_callbacks_see_its_thread_as_part_of_it(
    host: SessionHost,
):
    events: list[StreamEvent] = []

    async def keep(event: StreamEvent) -> None:
        events.append(event)

    await host.run_async(StreamProgram("asking_agent", ASKED), None, keep)
    assert [event.value for event in events if event.kind == "status"] == ["calling asks"]


class Ends(BaseCallback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_tool_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self.seen.append((outputs, exception))


async def test_a_callback_hears_what_a_tool_in_a_thread_returned():
    ends = Ends()
    with threading_programs.dspy.context(callbacks=[ends]):
        tool = threading_programs.dspy.Tool(threading_programs.plain)
        assert await tool.acall(word="x") == "AnyIO worker thread"
    assert ends.seen == [("AnyIO worker thread", None)]


async def test_a_cancelled_operation_keeps_its_slot_until_its_tool_has_ended(host: SessionHost):
    config = PoolConfig(name="t", slots_per_worker=1, **ALLOWED)
    threading_programs.Held.began.clear()
    threading_programs.Held.may_end.clear()
    async with LoopbackPool(config) as pool:
        worker = Worker("w0", 0, config, pool.secret, pool.store, session_host=host)
        pool.workers["w0"], pool._members["w0"] = worker, await worker.describe()
        pool.publish()
        client = await pool.start_client()
        asked = asyncio.create_task(client.run(ExecuteProgram("holding_agent", ASKED)))
        assert await asyncio.to_thread(threading_programs.Held.began.wait, WAIT_S)
        asked.cancel()
        with pytest.raises((asyncio.CancelledError, Cancelled)):
            await asked
        waiting = asyncio.create_task(client.run(ExecuteProgram("mixed_agent", ASKED)))
        for _ in range(100):
            await asyncio.sleep(0)
        assert (await worker.health()).running == 1
        threading_programs.Held.may_end.set()
        assert (await waiting).answer
        assert (await worker.health()).running == 0
