"""What a request says of its language model: only what the configuration lets it, and over what a session says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dspy
import pytest

from dspool.config import PoolConfig
from dspool.errors import ConfigError, InvalidRequest, NotAllowed, UnknownName
from dspool.messages import ConfigureLM, Deployment, ExecuteProgram, StreamEvent, StreamProgram
from dspool.programs.sessions.host import CommandResult, SessionHost
from dspool.programs.sessions.session import Session
from dspool.testing.lm_server import LMServer

ASKED = {"question": "Rome is big. What is big?"}
WAYS = ["execute", "stream", "session", "thread"]


@pytest.fixture(scope="module")
def server() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


def host_of(server: LMServer, allowed: Any = True, **more: Any) -> SessionHost:
    def profile(model: str) -> dict[str, Any]:
        return {"model": f"openai/{model}", "endpoint": server.url, "max_tokens": 900}

    host = SessionHost(
        PoolConfig(
            lm_profiles={name: profile(name) for name in ("fast", "good")},
            default_lm="fast",
            request_lm=allowed,
            allowed_imports=("calling_programs",),
            **more,
        )
    )
    host.deploy(Deployment("ask", 1, spec={"signature": "question -> answer"}))
    host.deploy(Deployment("fixed", 1, spec={"signature": "question -> answer", "lm": "good"}))
    host.deploy(Deployment("thread", 1, import_path="calling_programs:Plain"))
    host.deploy(Deployment("brings", 1, import_path="calling_programs:BringsLM", kwargs={"url": server.url}))
    return host


async def ran(
    host: SessionHost, program: str, lm: Any = None, way: str = "execute", session: Session | None = None
) -> CommandResult:
    async def emit(event: StreamEvent) -> None:
        pass

    command = (StreamProgram if way == "stream" else ExecuteProgram)(program, ASKED, lm=lm)
    if way == "session" and session is None:
        session = Session(host, "s")
    if host.plan(command, session) == "thread":
        return host.run_thread(command, session)
    return await host.run_async(command, session, emit if way == "stream" else None)


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_chooses_profile_and_settings_for_itself_alone(server: LMServer, way: str):
    host = host_of(server)
    program = "thread" if way == "thread" else "ask"
    await ran(host, program, {"profile": "good", "temperature": 0.25, "max_tokens": 77, "seed": 5}, way)
    asked = server.seen[-1]
    assert (asked["model"], asked["temperature"], asked["seed"]) == ("good", 0.25, 5)
    assert 77 in (asked.get("max_tokens"), asked.get("max_completion_tokens"))
    await ran(host, program, way=way)
    asked = server.seen[-1]
    assert (asked["model"], asked.get("temperature"), asked.get("seed")) == ("fast", None, None)


@pytest.mark.parametrize("program", ["ask", "fixed", "thread"])
@pytest.mark.parametrize("lm", [{"temperature": 0.5}, {"profile": "good"}, {"rollout_id": 1}])
async def test_nothing_is_chosen_unless_the_configuration_lets_it(server: LMServer, lm: Any, program: str):
    before = server.requests
    with pytest.raises(NotAllowed, match="request_lm"):
        await ran(host_of(server, False), program, lm)
    assert server.requests == before


async def test_the_configuration_may_list_what_is_allowed(server: LMServer):
    host = host_of(server, {"profiles": ["good"], "settings": ["temperature"]})
    await ran(host, "ask", {"profile": "good", "temperature": 0.5})
    for lm in ({"profile": "fast"}, {"profile": "offline"}, {"temperature": 0.5, "max_tokens": 5}):
        with pytest.raises(NotAllowed):
            await ran(host, "ask", lm)
    for odd in ({"profiles": ["nobody"]}, {"settings": ["api_base"]}, "yes"):
        with pytest.raises(ConfigError, match="request_lm"):
            host_of(server, odd)


@pytest.mark.parametrize(
    "lm", [{"api_base": "http://evil"}, {"model": "x"}, {"temperature": 9}, {"profile": 3}, {"cache": False}]
)
async def test_no_request_reaches_the_connection(server: LMServer, lm: Any):
    with pytest.raises(InvalidRequest):
        await ran(host_of(server), "ask", lm)
    with pytest.raises(UnknownName):
        await ran(host_of(server), "ask", {"profile": "nobody"})


async def test_a_session_s_settings_hold_for_a_program_with_a_profile_of_its_own(server: LMServer):
    host = host_of(server)
    session = Session(host, "s")
    host.run_inline(ConfigureLM("fast", {"temperature": 0.75, "seed": 3}), session)
    await ran(host, "fixed", session=session)
    asked = server.seen[-1]
    assert (asked["model"], asked["temperature"], asked["seed"]) == ("good", 0.75, 3)
    await ran(host, "fixed", {"temperature": 0.1, "profile": "fast"}, session=session)
    asked = server.seen[-1]
    assert (asked["model"], asked["temperature"], asked["seed"]) == ("fast", 0.1, 3)
    await ran(host, "ask", session=session)
    assert (server.seen[-1]["model"], server.seen[-1]["temperature"]) == ("fast", 0.75)


async def test_a_model_in_a_program_s_code_is_out_of_reach_and_that_is_said(server: LMServer):
    host = host_of(server)
    await ran(host, "brings")
    assert server.seen[-1]["model"] == "brought"
    with pytest.raises(InvalidRequest, match="in its code"):
        await ran(host, "brings", {"temperature": 0.5})
    session = Session(host, "s")
    host.run_inline(ConfigureLM("fast", {"temperature": 0.75}), session)
    with pytest.raises(InvalidRequest, match="in its code"):
        await ran(host, "brings", session=session)


async def test_another_rollout_is_another_answer_of_the_cache(server: LMServer):
    host = host_of(server, cache=True)
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    try:
        asked = []
        for rollout in (901, 901, 902):
            seen = server.requests
            await ran(host, "ask", {"rollout_id": rollout, "temperature": 1.0})
            asked.append(server.requests - seen)
        assert asked == [1, 0, 1]
        assert "rollout_id" not in server.seen[-1]
    finally:
        dspy.cache = before
