"""Usage and the offline mark hold in whatever a program starts within its operation."""

from __future__ import annotations

import _thread
import asyncio
import copy
import json
import threading
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

from dspool.config import PoolConfig
from dspool.errors import Cancelled
from dspool.messages import Deployment, ExecuteProgram, StreamEvent, StreamProgram
from dspool.programs.models.operation import OperationScope, mark_offline
from dspool.programs.sessions.host import CommandResult, SessionHost
from dspool.testing.lm_server import LMServer, Reply

ASKED = {"question": "Rome is big. What is big?"}
BLOCKING = (
    "InParallel",
    "InParallelWithinParallel",
    "InBatch",
    "Tracked",
    "Untracked",
    "Nested",
    "CachesAnyway",
)
ASYNC = ("Asyncified", "InTasks", "ToThread")
OWN = ("OwnThread", "OwnPool")
"""Threads of their own."""
CALLS = {"CachesAnyway": 1, "OwnThread": 1, "OwnPool": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


@pytest.fixture(scope="module")
def host(server: LMServer) -> SessionHost:
    profile = {"model": "openai/test", "endpoint": server.url}
    host = SessionHost(PoolConfig(lm_profiles={"test": profile}, allowed_imports=("calling_programs",)))
    for name in BLOCKING + ASYNC + OWN:
        path = f"calling_programs:{name}"
        host.deploy(Deployment(name, 1, import_path=path, spec={"lm": "offline"}))
        host.deploy(Deployment(f"{name}-real", 1, import_path=path, spec={"lm": "test"}))
    host.deploy(Deployment("qa", 1, spec={"signature": "question -> answer", "lm": "test"}))
    return host


async def ran(host: SessionHost, program: str) -> CommandResult:
    command = ExecuteProgram(program, ASKED)
    if host.plan(command, None) == "apart":
        return await host.run_async(command, None)
    return host.run_thread(command, None)


@pytest.mark.parametrize("program", BLOCKING + ASYNC + OWN)
async def test_an_offline_answer_is_marked_wherever_it_was_given(host: SessionHost, program: str):
    done = await ran(host, program)
    assert done.value["outputs"]["answer"]
    assert done.offline is True


@pytest.mark.parametrize("program", BLOCKING + ASYNC + OWN)
async def test_an_offline_answer_is_marked_the_second_time_too(host: SessionHost, program: str):
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    try:
        assert [(await ran(host, program)).offline for _ in range(2)] == [True, True]
    finally:
        dspy.cache = before


@pytest.mark.parametrize("program", BLOCKING + ASYNC + OWN)
async def test_tokens_are_counted_wherever_the_model_was_called(
    host: SessionHost, server: LMServer, program: str
):
    before = server.requests
    done = await ran(host, f"{program}-real")
    made = server.requests - before
    assert made == CALLS.get(program, 2)
    (counts,) = done.usage.values()
    # Its questions have about the same number of words, so that many calls cost about as many times one.
    (one,) = (await host.run_async(ExecuteProgram("qa", ASKED), None)).usage.values()
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]
    assert abs(counts["total_tokens"] / one["total_tokens"] - made) < 0.2
    assert done.offline is False


@pytest.mark.parametrize("program", ["Untracked", "Nested", "InTasks", "Asyncified"])
def test_a_stream_is_marked_and_counted_too(host: SessionHost, program: str):
    def streamed(name: str) -> CommandResult:
        command = StreamProgram(name, ASKED)
        if host.plan(command, None) == "thread":
            return host.run_thread(command, None, lambda event: None)

        async def ignore(event: StreamEvent) -> None:
            pass

        return asyncio.run(host.run_async(command, None, ignore))

    assert streamed(program).offline is True
    real = streamed(f"{program}-real")
    assert real.offline is False
    assert real.usage["openai/test"]["total_tokens"] > 0


def test_a_cancelled_program_makes_no_call_in_the_threads_of_dspy_either(host: SessionHost, server: LMServer):
    stop, before = threading.Event(), server.requests
    stop.set()
    with pytest.raises(Cancelled):
        host.run_thread(ExecuteProgram("InParallel-real", ASKED), None, stop=stop)
    assert server.requests == before


def test_a_thread_that_lost_its_operation_marks_none_that_cannot_have_started_it(host: SessionHost):
    class Meanwhile(dspy.Module):
        def forward(self, **inputs: Any) -> Any:
            answered_offline_in_a_lost_thread()
            return dspy.Prediction(answer="x")

    program, _ = host.pool_programs.get("qa")
    module, program.module = program.module, Meanwhile()
    try:
        assert host.run_inline(ExecuteProgram("qa", ASKED), None).offline is False
    finally:
        program.module = module


def answered_offline_in_a_lost_thread() -> None:
    done = threading.Event()

    def answer() -> None:
        mark_offline()
        done.set()

    _thread.start_new_thread(answer, ())  # which takes nothing along
    assert done.wait(30.0)


def test_usage_is_summed_by_model_with_the_parts_that_back_ends_tell():
    scope = OperationScope()
    assert scope.by_model() == {}
    scope.add_usage("m", {"prompt_tokens": 2, "total_tokens": 3, "prompt_tokens_details": None})
    scope.add_usage("m", {"prompt_tokens": 1, "total_tokens": 1, "is_byok": True, "odd": "text"})
    assert scope.by_model() == {"m": {"prompt_tokens": 3, "total_tokens": 4}}
    details = {
        "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 7, "odd": {}},
    }
    for _ in range(2):
        scope.add_usage("thinker", {"total_tokens": 20, **details})
    assert scope.by_model()["thinker"] == {
        "total_tokens": 40,
        "cached_tokens": 10,
        "reasoning_tokens": 14,
    }


def test_a_copy_of_the_tracker_counts_for_the_same_operation():
    scope = OperationScope("ada")
    copied = copy.deepcopy({"usage_tracker": scope})["usage_tracker"]
    copied.add_usage("m", {"total_tokens": 1})
    assert scope.by_model() == {"m": {"total_tokens": 1}}
    assert scope.get_total_tokens() == {"m": {"total_tokens": 1}}


def test_reasoning_and_cached_tokens_of_a_model_reach_the_result(server: LMServer, host: SessionHost):
    text = "[[ ## answer ## ]]\nRome\n\n[[ ## completed ## ]]"
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "test", "choices": [message]}
    server.script(Reply(body=json.dumps({**body, "usage": usage}).encode()))
    done = host.run_thread(ExecuteProgram("qa", ASKED), None)
    expected = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    assert done.usage["openai/test"] == {**expected, "cached_tokens": 8, "reasoning_tokens": 4}
