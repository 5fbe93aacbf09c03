"""Code that blocks its event loop holds up neither worker nor other programs, is named, and what waits leaves it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import blocking_programs
import pytest
from blocking_programs import Counted

from dspool.config import PoolConfig, Probe
from dspool.errors import Cancelled, DeadlineExceeded, ProgramError
from dspool.messages import Deployment, ExecuteProgram, Operation, StreamProgram
from dspool.programs.sessions.host import SessionHost
from dspool.telemetry import events
from dspool.testing.host import LoopbackPool
from dspool.worker.execution import ClientPeer, Execution
from dspool.worker.loop_watch import LoopWatch, Watched
from dspool.worker.worker import Worker

WAIT_S = 60.0
PROGRAMS = ("Blocks", "Waits", "Counted", "Streamed", "Mixed", "CallsItsPool")
ASKED = {"question": "Rome is big. What is big?"}


def settings(**more: Any) -> PoolConfig:
    return PoolConfig(
        name="t",
        allowed_imports=("blocking_programs",),
        **{"slots_per_worker": 4, "loop_blocked_after_s": 0.02, **more},
    )


async def start(pool: LoopbackPool, workers: int = 1) -> Any:
    for number in range(workers):
        host = SessionHost(pool.config)
        for name in PROGRAMS:
            host.deploy(Deployment(name, 1, import_path=f"blocking_programs:{name}"))
        host.deploy(Deployment("qa", 1, spec={"signature": "question -> answer"}))
        worker = Worker(f"w{number}", number, pool.config, pool.secret, pool.store, session_host=host)
        pool.workers[worker._id], pool._members[worker._id] = worker, await worker.describe()
    pool.publish()
    return await pool.start_client()


@pytest.fixture(autouse=True)
def nothing_is_open() -> Iterator[None]:
    for event in (
        blocking_programs.began,
        blocking_programs.may_end,
        blocking_programs.began_waiting,
        blocking_programs.waiting_may_end,
    ):
        event.clear()
    Counted.runs.clear()
    blocking_programs.loops.clear()
    yield
    blocking_programs.may_end.set()
    blocking_programs.waiting_may_end.set()


class Told:
    """The events of blocks, as they come."""

    def __init__(self) -> None:
        self.events: list[tuple[dict[str, float], dict[str, Any]]] = []
        self.came = threading.Event()

    def __call__(self, event: str, measurements: Any, metadata: Any) -> None:
        assert events.undeclared(event, measurements, metadata) == set()
        self.events.append((dict(measurements), dict(metadata)))
        self.came.set()


@pytest.fixture
def told() -> Iterator[Told]:
    told = Told()
    events.attach(told, ("worker.loop_blocked",))
    yield told
    events.detach(told)


def asked(client: Any, program: str, timeout_s: float = WAIT_S, **inputs: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(client.run(ExecuteProgram(program, inputs), timeout_s=timeout_s))


async def reached(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, WAIT_S)


async def test_while_a_program_blocks_its_loop_all_else_of_its_worker_goes_on():
    async with LoopbackPool(settings()) as pool:
        client = await start(pool)
        waiting = asked(client, "Waits")
        await reached(blocking_programs.began_waiting)
        blocking = asked(client, "Blocks", where="here")
        await reached(blocking_programs.began)
        # One that began before, others that come now, and the worker itself.
        assert (await asked(client, "qa", **ASKED)).answer
        assert (await asked(client, "Counted", label="x")).label == "x"
        blocking_programs.waiting_may_end.set()
        assert (await waiting).answer == "waited"
        assert (await pool.workers["w0"].health()).running == 1
        blocking_programs.may_end.set()
        assert (await blocking).where == "here"


@pytest.mark.parametrize("where", ["here", "in a task", "in a callback"])
async def test_a_block_is_told_once_with_program_operation_and_place(
    told: Told, caplog: pytest.LogCaptureFixture, where: str
):
    caplog.set_level("WARNING", "dspool.worker")
    async with LoopbackPool(settings()) as pool:
        client = await start(pool)
        blocking = asked(client, "Blocks", where=where)
        await reached(blocking_programs.began)
        await noticed(caplog)
        blocking_programs.may_end.set()
        assert (await blocking).where == where
        await reached(told.came)
    ((measurements, metadata),) = told.events
    assert measurements["duration_s"] >= 0.02
    assert (metadata["pool"], metadata["worker"], metadata["program"]) == ("t", "w0", "Blocks")
    assert metadata["operation_id"]
    assert metadata["file"].endswith("blocking_programs.py")
    assert metadata["function"] == "hold"
    text = caplog.text
    assert f"{metadata['file']}:{metadata['line']} in hold" in text
    assert "may_end.wait(PATIENCE_S)" in text
    assert text.count("has blocked an event loop") == 1


@pytest.mark.parametrize(("version", "name"), [(3, "answers"), (0, "")])
async def test_the_name_of_a_session_s_own_program_is_not_told(version: int, name: str):
    operation = Operation("o1", ExecuteProgram("answers", {}), 30.0)
    execution = Execution(operation, ClientPeer(None), 0.0, 1)  # type: ignore[arg-type]
    execution.version = version
    watch = LoopWatch(0.1, {})
    watched = Watched(asyncio.get_running_loop(), None, "", lambda: [])
    block = watch._begin(watched, threading.get_ident(), 0.2)
    assert (block["program"], block["operation_id"]) == (name, "o1")


async def noticed(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(WAIT_S):
        while "has blocked an event loop" not in caplog.text:  # noqa: ASYNC110  (another thread logs it)
            await asyncio.sleep(0.005)


async def test_a_look_that_fails_is_not_the_last_one(caplog: pytest.LogCaptureFixture):
    looks, again = 0, threading.Event()

    def under_way() -> list[Execution]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise KeyError("as a frame that ends meanwhile may")
        again.set()
        return []

    watch = LoopWatch(0.02, {})
    watch.add(Watched(asyncio.get_running_loop(), None, "", under_way))
    watch.start()
    await reached(again)
    watch.close()
    assert "could not look" in caplog.text


async def test_who_waits_as_one_should_is_never_told_of(told: Told):
    async with LoopbackPool(settings(loop_blocked_after_s=5.0)) as pool:
        client = await start(pool)
        waiting = asked(client, "Waits")
        await reached(blocking_programs.began_waiting)
        for _ in range(20):
            pool.workers["w0"]._watch.look()
            await asyncio.sleep(0.001)
        blocking_programs.waiting_may_end.set()
        await waiting
    assert told.events == []


async def test_what_waits_for_a_blocked_loop_runs_on_another_worker_and_only_once(
    caplog: pytest.LogCaptureFixture,
):
    async with LoopbackPool(settings(slots_per_worker=8)) as pool:
        client = await start(pool, workers=2)
        blocking = asked(client, "Mixed", label="blocks", block=True)
        await reached(blocking_programs.began)
        behind = [asked(client, "Mixed", label=f"{n}") for n in range(12)]
        ended = await asyncio.wait_for(asyncio.gather(*behind), WAIT_S)
        assert [one.label for one in ended] == [f"{n}" for n in range(12)]
        assert not blocking.done()
        # They all ran on the other worker.
        assert len({one.worker for one in ended}) == 1
        blocking_programs.may_end.set()
        await blocking
        assert (await asked(client, "Mixed", label="after")).label == "after"
    assert sorted(Counted.runs) == sorted(["blocks", "after", *(f"{n}" for n in range(12))])


async def test_what_finds_every_worker_blocked_waits_its_time(caplog: pytest.LogCaptureFixture):
    async with LoopbackPool(settings()) as pool:
        client = await start(pool)
        blocking = asked(client, "Mixed", label="blocks", block=True)
        await reached(blocking_programs.began)
        behind = asked(client, "Mixed", label="behind")
        late = asked(client, "Mixed", label="late", timeout_s=0.5)
        with pytest.raises(DeadlineExceeded):
            await late
        assert not behind.done()
        cancelled = asked(client, "Mixed", label="cancelled")
        await noticed(caplog)
        cancelled.cancel()
        with pytest.raises((asyncio.CancelledError, Cancelled)):
            await cancelled
        blocking_programs.may_end.set()
        assert (await blocking).label == "blocks"
        assert (await behind).label == "behind"
        assert (await pool.workers["w0"].health()).running == 0
    assert sorted(Counted.runs) == ["behind", "blocks"]


async def test_a_program_has_one_loop_for_all_it_does_its_probe_included():
    async with LoopbackPool(settings()) as pool:
        blocking_programs.waiting_may_end.set()
        client = await start(pool)
        await pool.workers["w0"].warm(Probe(program="Waits", inputs={}), [])
        for _ in range(2):
            await asked(client, "Waits")
        assert len(set(blocking_programs.loops)) == 1
        assert blocking_programs.loops[0] is not asyncio.get_running_loop()


async def test_a_stream_of_a_program_on_its_own_loop_keeps_its_order_and_its_window():
    async with LoopbackPool(settings(stream_window=2)) as pool:
        client = await start(pool)
        seen = [one async for one in client.stream(StreamProgram("Streamed", ASKED), timeout_s=WAIT_S)]
        *_, field, result = seen
        tokens = [one.value for one in seen if getattr(one, "kind", "") == "token"]
        assert "".join(tokens).strip() == result.answer == field.value


async def test_a_retired_version_leaves_no_thread():
    async with LoopbackPool(settings()) as pool:
        client = await start(pool)
        await asked(client, "Counted", label="x")
        worker = pool.workers["w0"]
        (loop,) = worker._operations.runner._loops.values()
        await worker.deploy(Deployment("Counted", 2, import_path="blocking_programs:Counted"))
        await worker.retire("Counted", 1)
        await asyncio.to_thread(loop.thread.join, WAIT_S)
        assert not loop.thread.is_alive()
        assert (await asked(client, "Counted", label="y")).label == "y"


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_program_that_waits_for_its_own_full_pool_ends_with_an_error_of_its_own(blocking: bool):
    async with LoopbackPool(settings(slots_per_worker=1, checkout_timeout_s=0.1)) as pool:
        client = await start(pool)
        loop = asyncio.get_running_loop()

        def ask() -> Any:
            command = ExecuteProgram("Counted", {"label": "inner"})
            work = client.run(command, operation_id="inner", timeout_s=WAIT_S)
            return asyncio.run_coroutine_threadsafe(work, loop)

        blocking_programs.CallsItsPool.ask = staticmethod(ask)
        outer = ExecuteProgram("CallsItsPool", {"blocking": blocking})
        with pytest.raises(ProgramError, match="answered deadline_exceeded; if it is") as ended:
            await client.run(outer, operation_id="outer", timeout_s=WAIT_S)
        details = ended.value.details
        assert (details["operation_id"], details["cause_operation_id"]) == ("outer", "inner")
        assert (details["reason"], details["cause"]) == ("nested_call", "deadline_exceeded")
        assert details["at"].startswith("blocking_programs:")
        # With room it is just a call.
        blocking_programs.CallsItsPool.ask = staticmethod(
            lambda: asyncio.run_coroutine_threadsafe(_answer(), loop)
        )
        assert (await client.run(outer)).answer == "there"


async def _answer() -> dict[str, str]:
    return {"answer": "there"}
