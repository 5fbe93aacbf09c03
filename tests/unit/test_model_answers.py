"""Answers that are none: refused, filtered and cut ones are an error of their own; a cut one that fits is marked."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

from dspool.config import PoolConfig
from dspool.errors import ModelRefused, ProgramError
from dspool.messages import Deployment, ExecuteProgram, StreamEvent, StreamProgram
from dspool.programs.sessions.host import CommandResult, SessionHost
from dspool.testing.lm_server import LMServer, Reply

ASKED = {"question": "Rome is big. What is big?"}
SORRY = "I cannot help with that secret."
SIGNATURE = "question -> answer"
PROGRAMS: dict[str, dict[str, Any]] = {
    "ask": {"spec": {"signature": SIGNATURE}},
    "json": {"spec": {"signature": SIGNATURE, "adapter": "json"}},
    "xml": {"spec": {"signature": SIGNATURE, "adapter": "xml"}},
    "agent": {"spec": {"signature": SIGNATURE, "module": "ReAct", "settings": {"tools": []}}},
    "InThread": {"import_path": "calling_programs:Untracked", "spec": {"lm": "test"}},
    "own": {"import_path": "calling_programs:OwnLM"},
}
REFUSED = Reply(refusal=SORRY)
FILTERED = Reply(text="Rome is", finish_reason="content_filter")
CUT = Reply(text="[[ ## ans", finish_reason="length")
FITS = {
    "ask": "[[ ## answer ## ]]\nRome is",
    "json": '{"answer": "Rome is"}',
    "xml": "<answer>Rome is</answer>",
}


@pytest.fixture(scope="module")
def server() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


@pytest.fixture(scope="module")
def host(server: LMServer) -> Iterator[SessionHost]:
    profiles = {
        "test": {"model": "openai/test", "endpoint": server.url},
        "claude": {"model": "anthropic/claude-test", "endpoint": server.url},
    }
    host = SessionHost(
        PoolConfig(lm_profiles=profiles, default_lm="test", allowed_imports=("calling_programs",))
    )
    for name, given in PROGRAMS.items():
        more = {"kwargs": {"url": server.url}} if name == "own" else {}
        host.deploy(Deployment(name, 1, **given, **more))
    host.deploy(Deployment("claude", 1, spec={"signature": SIGNATURE, "lm": "claude"}))
    # DSPy is configured once a process, perhaps with a cache by another test.
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    yield host
    dspy.cache = before


async def ran(host: SessionHost, program: str, way: str = "execute") -> CommandResult:
    async def emit(event: StreamEvent) -> None:
        pass

    kind = StreamProgram if way == "stream" else ExecuteProgram
    command = kind(program, ASKED)
    if host.plan(command, None) == "thread":
        ignore = (lambda event: None) if way == "stream" else None
        return await asyncio.to_thread(host.run_thread, command, None, ignore)
    return await host.run_async(command, None, emit if way == "stream" else None)


async def refused(host: SessionHost, program: str, way: str = "execute") -> ModelRefused:
    with pytest.raises(ModelRefused) as error:
        await ran(host, program, way)
    return error.value


@pytest.mark.parametrize("way", ["execute", "stream"])
@pytest.mark.parametrize("program", ["ask", "json", "xml", "InThread", "own"])
async def test_a_refusal_is_an_error_with_the_model_s_own_words_and_asked_once(
    host: SessionHost, server: LMServer, program: str, way: str, caplog: pytest.LogCaptureFixture
):
    before = server.requests
    server.script(REFUSED)
    with caplog.at_level(logging.DEBUG):
        error = await refused(host, program, way)
    assert (error.reason, error.refusal) == ("refused", SORRY)
    assert error.model == ("openai/own" if program == "own" else "openai/test")
    assert server.requests == before + 1
    assert SORRY not in str(error)
    assert "secret" not in caplog.text


async def test_an_agent_that_is_refused_says_so(host: SessionHost, server: LMServer):
    server.script(REFUSED)
    assert (await refused(host, "agent")).reason == "refused"


@pytest.mark.parametrize("way", ["execute", "stream"])
@pytest.mark.parametrize("program", ["ask", "json", "xml", "InThread", "own"])
async def test_a_filtered_answer_is_an_error_and_asked_once(
    host: SessionHost, server: LMServer, program: str, way: str
):
    before = server.requests
    server.script(FILTERED)
    error = await refused(host, program, way)
    assert error.reason == "filtered"
    assert server.requests == before + 1


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
async def test_a_filtered_prompt_is_an_error_of_the_same_kind(host: SessionHost, server: LMServer, code: str):
    before = server.requests
    server.script(Reply(status=400, error_code=code))
    error = await refused(host, "ask")
    assert (error.reason, error.status) == ("filtered", 400)
    assert server.requests == before + 1


@pytest.mark.parametrize(
    ("stop_reason", "reason"), [("refusal", "refused"), ("max_tokens", "truncated"), ("safety", "filtered")]
)
async def test_anthropic_s_reasons_to_stop_are_told_too(
    host: SessionHost, server: LMServer, stop_reason: str, reason: str
):
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": [{"type": "text", "text": "I will"}],
        "stop_reason": stop_reason,
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    before = server.requests
    server.script(Reply(body=json.dumps(message).encode()))
    assert (await refused(host, "claude")).reason == reason
    assert server.requests == before + 1


@pytest.mark.parametrize("way", ["execute", "stream"])
@pytest.mark.parametrize("program", ["ask", "json", "xml", "InThread", "own"])
async def test_a_cut_answer_that_does_not_fit_says_that_it_was_cut_and_is_not_asked_for_again(
    host: SessionHost, server: LMServer, program: str, way: str
):
    before = server.requests
    server.script(CUT)
    error = await refused(host, program, way)
    assert error.reason == "truncated"
    assert "max_tokens" in str(error)
    assert server.requests == before + 1


@pytest.mark.parametrize("way", ["execute", "stream"])
@pytest.mark.parametrize("program", FITS)
async def test_a_cut_answer_that_fits_is_marked(host: SessionHost, server: LMServer, program: str, way: str):
    server.script(Reply(text=FITS[program], finish_reason="length"))
    done = await ran(host, program, way)
    assert done.value["outputs"] == {"answer": "Rome is"}
    assert done.truncated is True
    assert (await ran(host, "ask", way)).truncated is False


async def test_garbage_after_a_cut_answer_is_garbage(host: SessionHost, server: LMServer):
    server.script(Reply(text=FITS["ask"], finish_reason="length"))
    assert (await ran(host, "ask")).truncated
    server.script(Reply(text="{"), Reply(text="{"))
    with pytest.raises(ProgramError, match="did not fit"):
        await ran(host, "ask")


async def test_no_cache_keeps_what_is_no_answer(host: SessionHost, server: LMServer):
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    try:
        for reply in (REFUSED, FILTERED, CUT):
            for way in ("execute", "stream"):
                server.script(reply)
                await refused(host, "own", way)
        assert (await ran(host, "own")).value["outputs"]["answer"] == "Rome is big."
        asked = server.requests
        assert (await ran(host, "own")).cached is True
        assert server.requests == asked
    finally:
        dspy.cache = before
