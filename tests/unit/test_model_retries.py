"""A model that fails for a moment is asked again: within budget and deadline, and not once it has spoken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest

from dspool.config import PoolConfig
from dspool.errors import ModelError, ModelRateLimited, ModelUnreachable, PoolError
from dspool.messages import Deployment, ExecuteProgram, Operation, StreamEvent, StreamProgram
from dspool.programs.models import profile_lm
from dspool.programs.sessions.host import CommandResult, SessionHost
from dspool.telemetry.logs import current_operation
from dspool.testing.lm_server import LMServer, Reply

ASKED = {"question": "Rome is big. What is big?"}
WAYS = ["execute", "stream", "thread", "stream in a thread"]
FAULTS = [500, 502, 503, 504, 529, 408, 409, 429]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_lm, "_BACKOFF_S", 0.001)


@pytest.fixture
def server() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


def host_of(server: LMServer, **more: Any) -> SessionHost:
    profile = {"model": "openai/test", "endpoint": server.url, **more}
    host = SessionHost(PoolConfig(lm_profiles={"test": profile}, allowed_imports=("calling_programs",)))
    host.deploy(Deployment("ask", 1, spec={"signature": "question -> answer"}))
    host.deploy(Deployment("thread", 1, import_path="calling_programs:Plain", spec={"lm": "test"}))
    return host


async def ran(host: SessionHost, way: str = "execute", timeout_s: float | None = None) -> CommandResult:
    async def emit(event: StreamEvent) -> None:
        pass

    stream = way.startswith("stream")
    command = (StreamProgram if stream else ExecuteProgram)("thread" if "thread" in way else "ask", ASKED)
    if timeout_s is not None:
        current_operation.set(Operation("1", command, timeout_s))
    if "thread" in way:
        return await asyncio.to_thread(
            host.run_thread, command, None, (lambda event: None) if stream else None
        )
    return await host.run_async(command, None, emit if stream else None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", FAULTS)
async def test_one_failure_of_a_model_is_not_the_caller_s(server: LMServer, status: int, way: str):
    host = host_of(server)
    server.script(Reply(status=status))
    done = await ran(host, way)
    assert done.value["outputs"]["answer"] == "Rome is big."
    assert server.requests == 2
    assert host.lms.counts.take() == {"retries": 1}


@pytest.mark.parametrize("way", WAYS)
async def test_a_connection_that_broke_off_is_made_again(server: LMServer, way: str):
    host = host_of(server)
    server.script(Reply(drop=True))
    assert (await ran(host, way)).value["outputs"]["answer"] == "Rome is big."
    assert server.requests == 2


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_what_will_fail_again_is_asked_once(server: LMServer, status: int):
    server.script(Reply(status=status))
    with pytest.raises(ModelError) as error:
        await ran(host_of(server))
    assert server.requests == 1
    assert "attempts" not in error.value.details


async def test_a_model_that_stays_away_is_asked_as_often_as_configured_and_the_error_says_so(
    server: LMServer,
):
    server.script(*[Reply(status=503)] * 5)
    with pytest.raises(ModelError, match="tried 3 times") as error:
        await ran(host_of(server))
    assert server.requests == 3
    assert (error.value.status, error.value.attempts) == (503, 3)


async def test_a_stream_that_has_begun_is_not_begun_again(server: LMServer):
    server.script(Reply(drop_after_tokens=4, text="[[ ## answer ## ]]\n one two three four five six"))
    with pytest.raises(PoolError):
        await ran(host_of(server), "stream")
    assert server.requests == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_a_pause_that_the_model_asks_for_is_kept(server: LMServer, status: int):
    server.script(Reply(status=status, retry_after_s=0.2))
    host, begun = host_of(server), time.monotonic()
    await ran(host)
    assert time.monotonic() - begun >= 0.2
    assert server.requests == 2


async def test_a_pause_may_be_a_date(server: LMServer):
    server.script(Reply(status=503, retry_after_s=formatdate(time.time() + 3600, usegmt=True)))
    with pytest.raises(ModelError) as error:
        await ran(host_of(server))
    assert server.requests == 1
    assert 3500 < error.value.retry_after_s <= 3600


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", [429, 503])
async def test_no_pause_goes_beyond_the_deadline(server: LMServer, status: int, way: str):
    server.script(Reply(status=status, retry_after_s=5))
    with pytest.raises(ModelError) as error:
        await ran(host_of(server), way, timeout_s=3.0)
    assert server.requests == 1
    assert (error.value.status, error.value.retry_after_s) == (status, 5.0)


async def test_pauses_that_add_up_beyond_the_budget_end_it(server: LMServer):
    server.script(*[Reply(status=503, retry_after_s=0.2)] * 3)
    with pytest.raises(ModelError, match="tried 2 times"):
        await ran(host_of(server, max_rate_limit_wait_s=0.3))
    assert server.requests == 2


async def test_a_budget_of_none_means_one_try(server: LMServer):
    server.script(Reply(status=503))
    with pytest.raises(ModelError):
        await ran(host_of(server, max_rate_limit_wait_s=0))
    assert server.requests == 1


async def test_a_pause_of_429_is_everybody_s_and_one_of_503_is_not(server: LMServer):
    host = host_of(server)
    server.script(Reply(status=503, retry_after_s=60))
    with pytest.raises(ModelError):
        await ran(host)
    assert (await ran(host)).value["outputs"]["answer"] == "Rome is big."
    server.script(Reply(status=429, retry_after_s=60))
    for _ in range(2):
        with pytest.raises(ModelRateLimited):
            await ran(host)
    assert server.requests == 3


async def test_a_model_that_takes_all_of_its_time_is_not_given_it_again(server: LMServer):
    server.script(Reply(latency_s=30))
    with pytest.raises(ModelUnreachable, match="in time"):
        await ran(host_of(server, timeout_s=0.2))
    assert server.requests == 1
