"""Programs within programs: what they ask a model is counted once, and marked where the offline engine answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from dspool.config import PoolConfig
from dspool.messages import Deployment, ExecuteProgram, StreamEvent, StreamProgram
from dspool.programs.sessions.host import CommandResult, SessionHost
from dspool.testing import lm_server
from dspool.testing.lm_server import LMServer, Reply

ASKED = {"question": "Rome is big. What is big?"}
PROGRAMS = (
    "Refined",
    "Best",
    "Compared",
    "Syncified",
    "Evaluated",
    "Copied",
    "TracksItself",
    "Acted",
    "Recursive",
)


def chat(**fields: str) -> Reply:
    parts = [f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()]
    return Reply(text="\n\n".join([*parts, "[[ ## completed ## ]]"]))


USES_WEATHER = (
    chat(next_thought="ask", next_tool_name="weather", next_tool_args='{"city": "Rome"}'),
    chat(next_thought="done", next_tool_name="finish", next_tool_args="{}"),
    chat(reasoning="it said so", answer="sunny"),
)
SCRIPTED: dict[str, tuple[tuple[Reply, ...], dict[str, Any]]] = {
    "Acted": (
        (
            chat(generated_code="print(double(21))", finished="True"),
            chat(reasoning="it printed it", answer="42"),
        ),
        {"answer": "42"},
    ),
    "Thought": (
        (
            chat(reasoning="six times seven", generated_code="SUBMIT({'answer': 6 * 7})"),
            chat(reasoning="it said so", answer="42"),
        ),
        {"answer": "42"},
    ),
    "Recursive": (
        (
            chat(reasoning="ask", code="y = llm_query('what?')\nprint(y)"),
            Reply(text="a sub-answer"),
            chat(reasoning="done", code="SUBMIT(answer=y)"),
        ),
        {"answer": "a sub-answer"},
    ),
    "Agent": (USES_WEATHER, {"answer": "sunny", "seen": "weather: Rome is sunny"}),
    "BlockingAgent": (USES_WEATHER, {"answer": "sunny", "seen": "weather: Rome is sunny"}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each answer of the server."""
    totals: list[int] = []
    count = lm_server._usage

    def counting(*args: Any) -> dict[str, int]:
        usage = count(*args)
        totals.append(usage["total_tokens"])
        return usage

    monkeypatch.setattr(lm_server, "_usage", counting)
    return totals


@pytest.fixture(scope="module")
def host(server: LMServer) -> SessionHost:
    profile = {"model": "openai/test", "endpoint": server.url}
    host = SessionHost(
        PoolConfig(lm_profiles={"test": profile}, allowed_imports=("nesting_programs", "script_like"))
    )
    for name in {*PROGRAMS, *SCRIPTED, "recursive"}:
        path = f"nesting_programs:{name}"
        host.deploy(Deployment(f"{name}-offline", 1, import_path=path, spec={"lm": "offline"}))
        host.deploy(Deployment(name, 1, import_path=path, spec={"lm": "test"}))
    return host


async def ran(host: SessionHost, program: str) -> CommandResult:
    command = ExecuteProgram(program, ASKED)
    if host.plan(command, None) in ("async", "apart"):
        return await host.run_async(command, None)
    return await asyncio.to_thread(host.run_thread, command, None)


@pytest.mark.parametrize("program", PROGRAMS)
async def test_each_call_of_a_model_is_counted_once(host: SessionHost, reported: list[int], program: str):
    done = await ran(host, program)
    assert reported
    assert done.usage["openai/test"]["total_tokens"] == sum(reported)
    assert done.offline is False


@pytest.mark.parametrize("program", PROGRAMS)
async def test_what_the_offline_engine_answered_is_marked(host: SessionHost, program: str):
    assert (await ran(host, f"{program}-offline")).offline is True


@pytest.mark.parametrize("program", SCRIPTED)
async def test_code_and_tools_run_and_their_calls_are_counted(
    host: SessionHost, server: LMServer, reported: list[int], program: str
):
    replies, expected = SCRIPTED[program]
    server.script(*replies)
    done = await ran(host, program)
    assert done.value["outputs"] == expected
    assert len(reported) == len(replies)
    assert done.usage["openai/test"]["total_tokens"] == sum(reported)


async def test_a_program_that_counts_for_itself_finds_all_of_its_own(host: SessionHost, reported: list[int]):
    done = await ran(host, "TracksItself")
    outputs = done.value["outputs"]
    assert outputs["outer"] == sum(reported) == done.usage["openai/test"]["total_tokens"]
    assert outputs["inner"] == reported[1]


def test_a_program_that_runs_code_does_so_in_a_thread(host: SessionHost):
    """Its async form, too, waits for the interpreter where it is called."""
    assert host.plan(ExecuteProgram("recursive", ASKED), None) == "thread"


@pytest.mark.parametrize(("program", "streams"), [("Answers", True), ("InTwoSteps", False)])
async def test_a_stream_needs_no_adapter_that_dspy_knows(host: SessionHost, program: str, streams: bool):
    """One that extends DSPy's streams as that does; another gives its outputs whole."""
    path, events = f"script_like.adapters:{program}", list[StreamEvent]()
    host.deploy(Deployment("adapted", 1, import_path=path, spec={"lm": "test"}))
    done = await asyncio.to_thread(
        host.run_thread, StreamProgram("adapted", ASKED, version=1), None, events.append
    )
    host.retire("adapted", 1)
    answer = done.value["outputs"]["answer"]
    tokens = "".join(str(event.value) for event in events if event.kind == "token")
    assert tokens == (answer if streams else "")
    assert [event.value for event in events if event.kind == "field"] == [answer]
