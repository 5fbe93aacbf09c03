"""Whatever a program raises, wherever it does: its operation ends with a typed error, and its worker is unharmed.

A real worker with real programs, on an event loop that is kept as that of a worker actor is.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
from typing import Any

import pytest
import raising_programs
from raising_programs import KINDS, SECRET, Neighbour

from dspool.client.client import Client
from dspool.config import CustomCode, ImportModules, PoolConfig, Probe, SetupStep
from dspool.errors import ProgramError, WorkerStartFailed
from dspool.messages import (
    CreateProgram,
    Deployment,
    ExecuteCode,
    ExecuteProgram,
    GetProgramInfo,
    SetVariable,
    StreamProgram,
)
from dspool.programs.sessions.host import SessionHost
from dspool.runtime.loops import keep_running
from dspool.telemetry import events as telemetry
from dspool.testing.host import LoopbackPool
from dspool.worker.worker import Worker

# Python only tells of what a `__del__` raises; so does pytest.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

WAIT_S = 60.0
QUESTION = {"context": "Paris is the capital of France.", "question": "What is the capital of France?"}
MODULES = {
    name: f"raising_programs:{name}"
    for name, found in vars(raising_programs).items()
    if isinstance(found, type) and issubclass(found, raising_programs.dspy.Module) and name[0] != "_"
}


class World:
    """One worker and one client, on a loop in a thread of its own."""

    client: Client
    worker: Worker
    host: SessionHost

    def __init__(self, traced: float) -> None:
        self.numbers = itertools.count(1)
        self.over = False
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.do(self._start(traced))

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)

    async def _start(self, traced: float) -> None:
        keep_running(lambda: self.over)
        config = PoolConfig(
            name="t",
            slots_per_worker=4,
            allow_execute_code=True,
            telemetry={"sampling": traced, "max_traces_per_s": None},
            allowed_imports=("raising_programs", *(f"raising_import_{kind.lower()}" for kind in KINDS)),
            allowed_callables={
                "tools": ["raising_programs:tool", "raising_programs:tool_later"],
                "rewards": ["raising_programs:now"],
            },
        )
        self.pool = LoopbackPool(config)
        self.host = SessionHost(config)
        self.worker = Worker("w0", 0, config, self.pool.secret, self.pool.store, session_host=self.host)
        self.pool.workers["w0"] = self.worker
        self.pool._members["w0"] = await self.worker.describe()
        self.pool.publish()
        for name, path in MODULES.items():
            await self.worker.deploy(Deployment(name, 1, import_path=path))
        for name, settings in {
            "tool": {"module": "ReAct", "settings": {"tools": ["raising_programs:tool"], "max_iters": 1}},
            "tool_later": {
                "module": "ReAct",
                "settings": {"tools": ["raising_programs:tool_later"], "max_iters": 1},
            },
            "reward": {"module": "BestOfN", "settings": {"reward": "raising_programs:now", "n": 1}},
        }.items():
            spec = {"signature": "context, question -> answer", **settings}
            await self.worker.deploy(Deployment(name, 1, spec=spec))
        self.client = await self.pool.start_client()

    def end(self) -> None:
        self.do(self.pool.__aexit__())
        self.over = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    # --- the places ---

    async def run(self, program: str, session: str | None = None, **inputs: Any) -> Any:
        return await self.client.run(ExecuteProgram(program, inputs), session=session, timeout_s=WAIT_S)

    async def stream(self, program: str, **inputs: Any) -> None:
        async for _ in self.client.stream(StreamProgram(program, inputs), timeout_s=WAIT_S):
            pass

    async def create(self, path: str, session: str = "s") -> None:
        command = CreateProgram("mine", import_path=path, replace=True)
        await self.client.run(command, session=session, timeout_s=WAIT_S)

    async def code(self, code: str) -> None:
        command = ExecuteCode(f"import raising_programs\n{code}")
        await self.client.run(command, session="coder", timeout_s=WAIT_S)

    async def info(self) -> None:
        kind, raising_programs.kind = raising_programs.kind, ""
        await self.create(MODULES["InDescription"], "described")
        raising_programs.kind = kind
        await self.client.run(GetProgramInfo("mine"), session="described")

    async def rebuilt(self) -> None:
        """The session was moved here: its program is built again when it is used."""
        kind, raising_programs.kind = raising_programs.kind, ""
        await self.create(MODULES["InConstructor"], "moved")
        assert await self.worker.release("moved")
        raising_programs.kind = kind
        await self.run("mine", "moved")

    async def variable(self) -> None:
        await self.client.run(SetVariable("x", 1), session="coder")
        await self.code(
            "class Odd:\n __ne__ = raising_programs.now\n__eq__ = raising_programs.now\nvariables['x'] = Odd()"
        )

    async def deploy(self, path: str) -> None:
        await self.worker.deploy(Deployment("new", next(self.numbers), import_path=path))


async def outcome_of(work: Any) -> Any:
    (ended,) = await asyncio.gather(work, return_exceptions=True)
    return ended


def imported() -> str:
    return f"raising_import_{raising_programs.kind.lower()}"


PLACES: dict[str, Any] = {
    **{
        name: lambda world, name=name: world.run(name)
        for name in MODULES
        if name in ("InCoroutine", "InTask", "InGather", "InExecutor", "InAsyncified", "InAnswer", "InThread")
    },
    "stream of a coroutine": lambda world: world.stream("InCoroutine"),
    "stream of a task": lambda world: world.stream("InTask"),
    "stream of a thread": lambda world: world.stream("InThread"),
    "constructor": lambda world: world.create(MODULES["InConstructor"]),
    "constructor when it is moved": lambda world: world.rebuilt(),
    "description": lambda world: world.create(MODULES["InDescription"]),
    "description later": lambda world: world.info(),
    "import": lambda world: world.create(f"{imported()}:Anything"),
    "deployed constructor": lambda world: world.deploy(MODULES["InConstructor"]),
    "deployed import": lambda world: world.deploy(f"{imported()}:Anything"),
    "code": lambda world: world.code("raising_programs.now()"),
    "code's result": lambda world: world.code("class R:\n __repr__ = raising_programs.now\nR()"),
    "code's variable": lambda world: world.variable(),
    "warm-up step": lambda world: world.worker.warm(CustomCode(import_path="raising_programs:now"), []),
    "setup": lambda world: world.worker.warm(SetupStep(import_path="raising_programs:now"), []),
    "async setup": lambda world: world.worker.warm(SetupStep(import_path="raising_programs:later"), []),
    "warm-up import": lambda world: world.worker.warm(ImportModules(modules=(imported(),)), []),
    "warm-up probe": lambda world: world.worker.warm(Probe(program="InCoroutine", inputs={}), []),
    "warm-up probe in a thread": lambda world: world.worker.warm(Probe(program="InThread", inputs={}), []),
}
STEPS = ("warm-up step", "setup", "async setup", "warm-up import")
WITHIN_DSPY: dict[str, Any] = {
    "tool": lambda world: world.run("tool", **QUESTION),
    "async tool": lambda world: world.run("tool_later", **QUESTION),
    "reward": lambda world: world.run("reward", **QUESTION),
    "callback": lambda world: world.run("InCallback"),
    "its threads": lambda world: world.run("InThreadsOfDSPy"),
}
NOBODY_WAITS = (
    "InForgottenTask",
    "InLoopCallback",
    "InDoneCallback",
    "InTimer",
    "InFinalizer",
    "InExceptionHandler",
    "InGenerator",
    "InAsyncGenerator",
    "InForgottenThread",
)


@pytest.fixture(scope="module", params=[0.0, 1.0], ids=["", "traced"])
def world(request, tmp_path_factory):
    modules = tmp_path_factory.mktemp("modules")
    for kind in KINDS:
        (modules / f"raising_import_{kind.lower()}.py").write_text(
            "import raising_programs\nraising_programs.now()\n"
        )
    sys.path.insert(0, str(modules))
    world = World(request.param)
    # What is there now stays: each collection in `neighbour` has only what the tests of this file have left.
    gc.collect()
    gc.freeze()
    yield world
    world.end()
    sys.path.remove(str(modules))


@pytest.fixture(autouse=True)
def tools_are_called(monkeypatch):
    monkeypatch.setattr("dspool.programs.offline.values._choice", lambda options, name, reading: options[0])


@pytest.fixture
def neighbour(world, request):
    """An operation that runs on the same worker all the while, and has to end well."""
    raising_programs.kind = ""
    if request.node.callspec.params.get("kind") == "RecursionError":
        # Else a collection in the depth of the recursion may find tasks of earlier tests, and nobody can log those.
        gc.collect()

    async def begin() -> asyncio.Task[Any]:
        if hasattr(Neighbour, "open"):
            del Neighbour.open
        task = asyncio.create_task(world.run("Neighbour"))
        while not hasattr(Neighbour, "open"):  # noqa: ASYNC110  (it begins in another class)
            await asyncio.sleep(0)
        return task

    task = world.do(begin())
    yield

    async def end() -> Any:
        Neighbour.loop.call_soon_threadsafe(Neighbour.open.set)
        return (await task).answer

    raising_programs.kind = ""
    assert world.do(end()) == "unharmed"
    assert world.do(world.run("InConstructor")).answer == "built"
    assert world.do(world.worker.health()).running == 0
    assert world.pool.reported_dead == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_it_ends_its_operation_and_nothing_else(world, neighbour, place, kind):
    raising_programs.kind = kind
    with pytest.raises((ProgramError, WorkerStartFailed)) as ended:
        world.do(PLACES[place](world))
    assert kind in ended.value.message
    assert type(ended.value) is (WorkerStartFailed if place in STEPS else ProgramError)
    assert place in STEPS or SECRET not in ended.value.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", WITHIN_DSPY)
def test_within_dspy_it_ends_its_operation_unless_dspy_goes_on(world, neighbour, place, kind):
    """DSPy goes on after an `Exception` of a tool, reward or callback, in ways of its own."""
    raising_programs.kind = kind
    ended = world.do(outcome_of(WITHIN_DSPY[place](world)))
    if isinstance(ended, BaseException):
        assert type(ended) is ProgramError
        assert SECRET not in ended.message
    if issubclass(raising_programs.type_of_kind(kind), Exception):
        return
    assert kind in ended.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("program", NOBODY_WAITS)
def test_where_nobody_waits_for_it_the_operation_goes_on(world, neighbour, program, kind):
    raising_programs.kind = kind
    assert world.do(world.run(program)).answer == "survived"


@pytest.mark.parametrize("kind", KINDS)
def test_a_telemetry_handler_costs_itself_only(world, neighbour, kind):
    raising_programs.kind = kind
    telemetry.attach(raising_programs.now, ["session.moved"])
    created = SetVariable("a", 1)
    world.do(world.client.run(created, session=f"new-{kind}", timeout_s=WAIT_S))
    assert raising_programs.now not in telemetry._handlers["session.moved"]


def test_a_program_that_cancels_itself_ends_with_a_program_error(world, neighbour):
    with pytest.raises(ProgramError, match="CancelledError"):
        world.do(world.run("CancelsItself"))


@pytest.mark.parametrize("program", ["StopsTheLoop", "ClosesTheLoop"])
def test_a_program_cannot_stop_the_loop(world, neighbour, program):
    assert world.do(world.run(program)).answer == "survived"


def test_a_program_that_is_cancelled_by_its_caller_is_still_cancelled(world, neighbour):
    async def cancelled() -> bool:
        task = asyncio.create_task(world.run("Neighbour"))
        before = Neighbour.open
        while Neighbour.open is before:  # noqa: ASYNC110
            await asyncio.sleep(0)
        theirs, Neighbour.open = Neighbour.open, before
        task.cancel()
        ended = await asyncio.gather(task, return_exceptions=True)
        while (await world.worker.health()).running > 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return isinstance(ended[0], asyncio.CancelledError) and not theirs.is_set()

    assert world.do(cancelled())
