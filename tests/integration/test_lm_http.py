"""The real HTTP path of lm15 against a local server: answers, errors, streams, cancellation."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from dspool.config import PoolConfig
from dspool.corrections.dspy_calls import Threads
from dspool.errors import (
    Cancelled,
    ModelAuthFailed,
    ModelError,
    ModelRateLimited,
    ModelUnreachable,
    PoolError,
    ProgramError,
)
from dspool.messages import ConfigureLM, Deployment, ExecuteProgram, StreamEvent, StreamProgram
from dspool.programs.sessions.host import Session, SessionHost
from dspool.testing.lm_server import LMServer, Reply

INPUTS = {"context": "Paris is the capital of France.", "question": "What is the capital of France?"}
COMMAND = ExecuteProgram("qa", INPUTS)


@pytest.fixture
def server() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


def host_for(url: str, **profile: Any) -> SessionHost:
    settings = {
        "model": "openai/gpt-4o-mini",
        "endpoint": url,
        "timeout_s": 5,
        # More than the pauses before the second and the third try come to, whatever chance says.
        "max_rate_limit_wait_s": 2,
        **profile,
    }
    host = SessionHost(PoolConfig(lm_profiles={"test": settings}))
    host.deploy(Deployment("qa", 1, spec={"signature": "context, question -> answer"}))
    return host


@pytest.fixture
def host(server: LMServer) -> SessionHost:
    return host_for(server.url)


async def run(host: SessionHost, command: Any = COMMAND, session: Any = None, emit: Any = None) -> Any:
    asyncio.get_running_loop().set_default_executor(Threads(4))
    try:
        return await host.run_async(command, session, emit)
    finally:
        await host.lms.aclose()


async def until(true: Any, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_an_answer_comes_with_its_usage_and_is_not_offline(host: SessionHost, server: LMServer):
    assert host.plan(COMMAND, None) == "async"
    done = await run(host)
    assert done.value == {"outputs": {"answer": "Paris"}}
    assert done.offline is False
    assert done.usage["openai/gpt-4o-mini"]["total_tokens"] > 0
    assert server.seen[0]["model"] == "gpt-4o-mini"


def test_the_blocking_form_gives_the_same(host: SessionHost):
    assert host.run_thread(COMMAND, None).value == {"outputs": {"answer": "Paris"}}


async def test_settings_of_profile_and_session_reach_the_wire(server: LMServer):
    host = host_for(server.url, temperature=0.25, max_tokens=77)
    session = Session(host, "s")
    await run(host, session=session)
    host.run_inline(ConfigureLM("test", {"temperature": 0.75}), session)
    await run(host, session=session)
    assert [request["temperature"] for request in server.seen] == [0.25, 0.75]
    assert {request.get("max_tokens") or request.get("max_completion_tokens") for request in server.seen} == {
        77
    }


@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
@pytest.mark.parametrize("module", ["Predict", "ChainOfThought", "ReAct"])
async def test_every_adapter_works_over_http_and_streams(host: SessionHost, adapter: str, module: str):
    signature = "context, question -> answer, sure: bool, years: list[int]"
    host.deploy(Deployment("p", 1, spec={"signature": signature, "adapter": adapter, "module": module}))
    events: list[StreamEvent] = []

    async def emit(event: StreamEvent) -> None:
        events.append(event)

    done = await run(host, StreamProgram("p", INPUTS), emit=emit)
    assert done.value["outputs"]["answer"] == "Paris"
    assert done.value["outputs"]["years"] == []
    assert "".join(e.value for e in events if e.kind == "token" and e.field == "answer") == "Paris"


ERRORS = [
    (Reply(status=429, retry_after_s=30), ModelRateLimited, {"status": 429, "retry_after_s": 30.0}),
    (Reply(status=401), ModelAuthFailed, {"status": 401}),
    (Reply(status=500), ModelError, {"status": 500}),
    (Reply(status=400), ModelError, {"status": 400}),
    (Reply(drop=True), ModelUnreachable, {"reason": "transport"}),
    (Reply(body=b"no json"), ModelError, {}),
]


@pytest.mark.parametrize(("reply", "kind", "details"), ERRORS, ids=lambda v: getattr(v, "__name__", None))
async def test_a_failing_back_end_is_told_by_kind(
    host: SessionHost, server: LMServer, reply: Reply, kind: type[PoolError], details: dict[str, Any]
):
    server.script(*[reply] * 3)
    with pytest.raises(PoolError) as error:
        await run(host)
    assert type(error.value) is kind
    assert details.items() <= error.value.details.items()
    assert "Paris" not in str(error.value.to_wire())
    # What may go better in a moment was tried as often as `retry.attempts` says.
    assert server.requests == (3 if reply.drop or reply.status == 500 else 1)


async def test_an_unparsable_answer_is_an_error_of_the_program(host: SessionHost, server: LMServer):
    server.text = "I would rather not."
    with pytest.raises(ProgramError, match="did not fit the signature") as error:
        await run(host)
    assert "rather" not in str(error.value.to_wire())


async def test_a_short_pause_is_waited_for(host: SessionHost, server: LMServer):
    server.script(Reply(status=429, retry_after_s=0.2))
    started = time.monotonic()
    assert (await run(host)).value["outputs"]["answer"] == "Paris"
    assert time.monotonic() - started >= 0.2
    assert server.requests == 2


async def test_after_a_long_pause_was_asked_for_nothing_more_is_sent(host: SessionHost, server: LMServer):
    server.script(Reply(status=429, retry_after_s=30))
    for _ in range(3):
        with pytest.raises(ModelRateLimited) as error:
            await run(host)
        assert 25 < error.value.retry_after_s <= 30
    assert server.requests == 1


async def test_a_slow_back_end_is_given_up_after_the_profile_s_timeout(server: LMServer):
    server.script(Reply(latency_s=5))
    with pytest.raises(ModelUnreachable, match="did not answer in time"):
        await run(host_for(server.url, timeout_s=0.3))


async def test_an_unreachable_back_end_is_told_as_such():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ModelUnreachable, match="check the profile's endpoint"):
        await run(host_for(f"http://127.0.0.1:{port}/v1"))


async def test_the_key_comes_from_the_named_variable(monkeypatch: pytest.MonkeyPatch):
    with LMServer(api_key="right") as server:
        monkeypatch.setenv("SOME_KEY", "wrong")
        with pytest.raises(ModelAuthFailed) as error:
            await run(host_for(server.url, api_key_env="SOME_KEY"))
        assert "wrong" not in str(error.value.to_wire())
        monkeypatch.setenv("SOME_KEY", "right")
        assert (await run(host_for(server.url, api_key_env="SOME_KEY"))).value["outputs"]["answer"] == "Paris"


async def test_a_stream_arrives_token_by_token(server: LMServer, host: SessionHost):
    server.token_interval_s = 0.02
    server.text = "[[ ## answer ## ]]\nThe city of Paris, of course.\n\n[[ ## completed ## ]]"
    arrived: list[tuple[float, StreamEvent]] = []

    async def emit(event: StreamEvent) -> None:
        arrived.append((time.monotonic(), event))

    done = await run(host, StreamProgram("qa", INPUTS), emit=emit)
    tokens = [event.value for _, event in arrived if event.kind == "token"]
    assert len(tokens) > 3
    assert "".join(tokens) == done.value["outputs"]["answer"] == "The city of Paris, of course."
    assert arrived[-1][1] == StreamEvent("field", "answer", "The city of Paris, of course.")
    assert arrived[-1][0] - arrived[0][0] > 0.05
    assert done.usage["openai/gpt-4o-mini"]["total_tokens"] > 0


async def test_a_stream_that_breaks_off_is_an_error(server: LMServer, host: SessionHost):
    server.script(Reply(text="[[ ## answer ## ]]\none two three four five six seven", drop_after_tokens=8))

    async def emit(event: StreamEvent) -> None:
        assert event.kind == "token"

    with pytest.raises(ModelError):
        await run(host, StreamProgram("qa", INPUTS), emit=emit)


@pytest.mark.parametrize("kind", [ExecuteProgram, StreamProgram])
async def test_cancelling_closes_the_connection_of_the_running_call(
    host: SessionHost, server: LMServer, kind: Any
):
    server.latency_s = 30

    async def emit(event: StreamEvent) -> None: ...

    task = asyncio.create_task(host.run_async(kind("qa", INPUTS), None, emit))
    await until(lambda: server.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The server counts a lost connection at once, and what it ran for it one turn of its loop later.
    await until(lambda: (server.aborted, server.running) == (1, 0))
    await host.lms.aclose()


async def test_a_timeout_around_a_run_works(host: SessionHost, server: LMServer):
    server.latency_s = 30
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await host.run_async(COMMAND, None)
    await until(lambda: server.aborted == 1)
    await host.lms.aclose()


def test_a_stopped_thread_makes_no_further_call(server: LMServer):
    host = host_for(server.url)
    host.deploy(
        Deployment(
            "chains",
            1,
            spec={
                "signature": "context, question -> answer",
                "module": "MultiChainComparison",
                "settings": {"attempts": 9},
            },
        )
    )
    server.latency_s = 0.2
    stop = threading.Event()
    ended: list[BaseException] = []

    def work() -> None:
        try:
            host.run_thread(ExecuteProgram("chains", INPUTS), None, stop=stop)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while server.requests < 2:
        time.sleep(0.01)
    stop.set()
    thread.join(60)
    assert type(ended[0]) is Cancelled
    assert server.requests <= 3


async def test_many_calls_at_once_share_the_process(host: SessionHost, server: LMServer):
    server.latency_s = 2.0
    asyncio.get_running_loop().set_default_executor(Threads(4))
    running = [asyncio.create_task(host.run_async(COMMAND, None)) for _ in range(30)]
    most = 0
    while not all(task.done() for task in running):
        most = max(most, server.running)
        await asyncio.sleep(0.01)
    assert {task.result().value["outputs"]["answer"] for task in running} == {"Paris"}
    # More than there are threads; all of them where the machine is not too slow.
    assert most > 10
    await host.lms.aclose()


def test_the_server_runs_as_a_process_of_its_own():
    process = subprocess.Popen(
        [sys.executable, "-m", "dspool.testing.lm_server", "--latency", "0.01"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert host_for(url).run_thread(COMMAND, None).value["outputs"]["answer"] == "Paris"
        with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as stats:
            assert b'"requests": 1' in stats.read()
    finally:
        process.terminate()
        process.wait(60)
