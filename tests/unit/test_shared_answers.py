"""The cache that a pool's workers share, as they use it: two workers, one model behind real HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

from dspool.answers import LocalAnswers, SharedAnswers
from dspool.config import CacheConfig, PoolConfig
from dspool.core.answers import CacheReply
from dspool.errors import ModelError
from dspool.messages import Deployment, ExecuteProgram, StreamEvent, StreamProgram
from dspool.programs.models import shared_answers
from dspool.programs.sessions.host import CommandResult, SessionHost
from dspool.testing.lm_server import LMServer, Reply

ASKED = {"question": "Rome is big. What is big?"}
WAYS = ["execute", "stream", "thread"]
PRICE = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}


@pytest.fixture(autouse=True)
def no_other_cache() -> Iterator[None]:
    SessionHost(PoolConfig())
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    yield
    dspy.cache = before


@pytest.fixture
def server() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


class Workers:
    """Two hosts of one pool."""

    def __init__(self, server: LMServer, link: Any = None, url: str | None = None, **cache: Any) -> None:
        cache = {"scope": "pool", **cache}
        link = link or LocalAnswers(SharedAnswers(CacheConfig(**cache)))
        profile = {"model": "openai/test", "endpoint": server.url, "max_rate_limit_wait_s": 0}
        config = PoolConfig(
            lm_profiles={"test": profile},
            cache=cache,
            prices={"test": PRICE},
            allowed_imports=("calling_programs",),
        )
        self.hosts = [SessionHost(config, answers=link) for _ in range(2)]
        for number, host in enumerate(self.hosts):
            host.deploy(Deployment("ask", 1, spec={"signature": "question -> answer"}))
            host.deploy(Deployment("thread", 1, import_path="calling_programs:Plain", spec={"lm": "test"}))
            own = {"url": url if url and number else server.url}
            host.deploy(Deployment("own", 1, import_path="calling_programs:OwnLM", kwargs=own))

    async def ask(
        self, which: int, way: str = "execute", who: str | None = None, program: str | None = None, n: int = 0
    ) -> CommandResult:
        async def emit(event: StreamEvent) -> None:
            pass

        host = self.hosts[which]
        program = program or ("thread" if way == "thread" else "ask")
        asked = {"question": f"{ASKED['question']}{' Well?' * n}"}
        command = (StreamProgram if way == "stream" else ExecuteProgram)(program, asked)
        if host.plan(command, None) == "thread":
            return await asyncio.to_thread(host.run_thread, command, None, principal=who)
        return await host.run_async(command, None, emit if way == "stream" else None, principal=who)

    def counts(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for host in self.hosts:
            for what, number in host.take_model_calls().items():
                total[what] = total.get(what, 0) + number
        return total


@pytest.mark.parametrize("again", WAYS)
@pytest.mark.parametrize("first", WAYS)
async def test_what_one_worker_asked_another_answers_marked_and_for_nothing(
    server: LMServer, first: str, again: str
):
    workers = Workers(server)
    asked = await workers.ask(0, first)
    assert (asked.cached, "cost_usd" in asked.usage["openai/test"]) == (False, True)
    found = await workers.ask(1, again)
    assert found.value == asked.value
    assert (found.cached, found.usage, found.offline) == (True, {}, False)
    assert server.requests == 1
    assert workers.counts() == {"misses": 1, "hits": 1}


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
async def test_equal_questions_at_once_are_one_call_of_the_model(server: LMServer, first: str, second: str):
    server.latency_s = 0.3
    workers = Workers(server)
    done = await asyncio.gather(*(workers.ask(n % 2, way) for n, way in enumerate([first, second] * 3)))
    assert server.requests == 1
    assert sorted(one.cached for one in done) == [False, True, True, True, True, True]
    counts = workers.counts()
    assert (counts["misses"], counts["hits"]) == (1, 5)
    assert counts["waits"] >= 4


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  the server has no event for it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", WAYS)
async def test_if_the_first_fails_the_next_one_asks(server: LMServer, way: str):
    workers = Workers(server)
    server.script(Reply(status=400, latency_s=0.3))
    first = asyncio.create_task(workers.ask(0))
    await until(lambda: server.running == 1)
    second = await workers.ask(1, way)
    with pytest.raises(ModelError):
        await first
    assert second.value["outputs"]["answer"] == "Rome is big."
    assert server.requests == 2


@pytest.mark.parametrize("way", WAYS)
async def test_if_the_first_is_cancelled_the_next_one_asks(server: LMServer, way: str):
    workers = Workers(server)
    server.script(Reply(latency_s=60))
    first = asyncio.create_task(workers.ask(0))
    await until(lambda: server.running == 1)
    second = asyncio.create_task(workers.ask(1, way))
    await until(lambda: server.running == 1)
    first.cancel()
    assert (await second).value["outputs"]["answer"] == "Rome is big."
    assert server.requests == 2


async def test_who_waits_for_a_worker_that_died_asks_after_seconds(server: LMServer):
    shared = SharedAnswers(CacheConfig(scope="pool"), clock=lambda: time.monotonic() * 20)
    workers = Workers(server, LocalAnswers(shared))
    host = workers.hosts[0]
    real = shared.look_up

    def first_by_a_dead_one(key: bytes, asker: str) -> CacheReply:
        shared.look_up = real  # type: ignore[method-assign]
        assert real(key, "dead").kind == "ask"
        return real(key, asker)

    shared.look_up = first_by_a_dead_one  # type: ignore[method-assign]
    done = await workers.ask(0)
    assert done.value["outputs"]["answer"] == "Rome is big."
    assert host.take_model_calls()["waits"] == 1


async def test_principals_share_nothing_unless_the_pool_is_the_scope(server: LMServer):
    for scope, requests in (("principal", 3), ("pool", 1)):
        before = server.requests
        workers = Workers(server, scope=scope)
        for who in ("eve", "ada", None, "eve", "ada", None):
            await workers.ask(0, who=who)
            await workers.ask(1, who=who)
        assert server.requests - before == requests, scope


async def test_models_behind_two_addresses_are_two_models(server: LMServer):
    with LMServer(text="[[ ## answer ## ]]\nelse\n\n[[ ## completed ## ]]") as other:
        workers = Workers(server, url=other.url)
        assert (await workers.ask(0, program="own")).value["outputs"]["answer"] == "Rome is big."
        assert (await workers.ask(1, program="own")).value["outputs"]["answer"] == "else"


async def test_refusals_and_cut_answers_are_not_kept(server: LMServer):
    workers = Workers(server)
    server.script(Reply(text="[[ ## answer ## ]]\nRome is", finish_reason="length"))
    assert (await workers.ask(0)).truncated
    again = await workers.ask(1)
    assert (again.truncated, again.cached) == (False, False)
    assert server.requests == 2


async def test_an_answer_that_is_too_long_is_not_kept(server: LMServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shared_answers, "MAX_ANSWER_BYTES", 100)
    workers = Workers(server)
    for which in (0, 1):
        await workers.ask(which)
    assert server.requests == 2


async def test_answers_are_kept_for_their_time_only(server: LMServer):
    now = [0.0]
    shared = SharedAnswers(CacheConfig(scope="pool", ttl_s=5), clock=lambda: now[0])
    workers = Workers(server, LocalAnswers(shared))
    for at, requests in ((0.0, 1), (4.0, 1), (6.0, 2)):
        now[0] = at
        await workers.ask(0)
        assert server.requests == requests


class Away:
    """A link to a cache that is gone, or hangs."""

    def __init__(self, hangs: bool) -> None:
        self.hangs, self.asked = hangs, 0

    async def look_up(self, key: bytes, asker: str) -> CacheReply:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        raise ConnectionError("gone")

    def look_up_blocking(self, key: bytes, asker: str) -> CacheReply:
        self.asked += 1
        if self.hangs:
            threading.Event().wait(0.5)
        raise TimeoutError

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("gone")


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_without_the_cache_models_are_asked_and_it_is_left_alone_for_a_while(
    server: LMServer, way: str, hangs: bool
):
    link = Away(hangs)
    workers = Workers(server, link)
    for number in range(3):
        done = await workers.ask(0, way, n=number)
        assert done.value["outputs"]["answer"]
        assert done.cached is False
    assert (server.requests, link.asked) == (3, 1)
    assert workers.counts() == {"failures": 1}
