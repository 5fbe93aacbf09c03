"""One suite for every form of a pool: in the cluster, over HTTP, and the blocking form of each."""

from __future__ import annotations

import asyncio
import inspect
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from harness import QUESTION, full, settings, until_status

from dspool import BlockingPool, BlockingRemotePool, Pool, PoolConfig, RemotePool
from dspool.core.lifecycle.warmup import WarmupReport
from dspool.errors import (
    Conflict,
    InvalidRequest,
    NotAllowed,
    PoolPaused,
    UnknownProgram,
    UnknownSession,
    UnknownWorker,
)
from dspool.messages import Deployment, EndSession, Result, StreamProgram
from dspool.supervisor.canary import Rollout
from dspool_console import Console
from dspool_serve.access.security import Security
from dspool_serve.api.application import Application
from dspool_serve.pools import Settings
from tests.unit.http_doubles import FixedPools

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]

FORMS = ("local", "remote", "blocking local", "blocking remote")
SPEC = {"signature": "context, question -> answer"}


class Form:
    """A pool or a session in one of its forms. Its methods are awaited here whatever form it has: those of a blocking
    one run in a thread, and iterators are read to their end."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.held, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if isinstance(self.held, Pool | RemotePool) or inspect.iscoroutinefunction(method):
                answer = method(*args, **kwargs)
                return await answer if inspect.isawaitable(answer) else [one async for one in answer]
            answer = await asyncio.to_thread(method, *args, **kwargs)
            if inspect.isasyncgen(answer):
                return [one async for one in answer]
            return await asyncio.to_thread(list, answer) if isinstance(answer, Iterator) else answer

        return call

    def session(self, session_id: str) -> Form:
        return Form(self.held.session(session_id))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Pool, str]]:
    """A pool of two workers, and the address of a service in front of it."""
    more = {"min_pool_size": 1, "max_pool_size": 3}
    config = PoolConfig(**settings(tmp_path_factory.mktemp("forms"), **more))
    async with Pool.start(config) as pool, service(pool) as url:
        await full(pool)
        yield pool, url


@asynccontextmanager
async def service(pool: Pool) -> AsyncIterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        pools, security = FixedPools(pool), Security()
        app = Application(pools, Settings(operation_timeout_s=30.0), security, Console(pools, security))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await running


@pytest_asyncio.fixture(params=FORMS, scope="module", loop_scope="session")
async def pool(request: pytest.FixtureRequest, served: tuple[Pool, str]) -> AsyncIterator[Form]:
    local, url = served
    if request.param == "local":
        yield Form(local)
    elif request.param == "remote":
        async with RemotePool(url, pool=local.name) as remote:
            yield Form(remote)
    else:
        opened = await asyncio.to_thread(
            (lambda: BlockingPool.connect(local.name))
            if request.param == "blocking local"
            else (lambda: BlockingRemotePool(url, pool=local.name))
        )
        yield Form(opened)
        await asyncio.to_thread(opened.close)


def fresh(what: str) -> str:
    return f"{what}-{uuid.uuid4().hex[:8]}"


async def test_a_program_answers_and_says_who_answered(pool):
    result = await pool.execute("qa", **QUESTION)
    assert (result.answer, result.outputs, result.offline) == ("Paris", {"answer": "Paris"}, True)
    assert result.program_version == 1
    assert result.worker in [worker.id for worker in (await pool.status()).workers]
    assert 0 <= result.wait_s < 5
    assert 0 < result.run_s < 5


async def test_many_inputs_are_answered_in_their_order(pool):
    facts = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome"}
    inputs = [
        {"context": f"{city} is the capital of {land}.", "question": f"What is the capital of {land}?"}
        for land, city in facts.items()
    ]
    results = await pool.map("qa", inputs * 5)
    assert [result.answer for result in results] == [*facts.values()] * 5
    assert await pool.map("qa", []) == []
    with pytest.raises(InvalidRequest):
        await pool.map("qa", [QUESTION, {"wrong": 1}])
    good, bad = await pool.map("qa", [QUESTION, {"wrong": 1}], return_errors=True)
    assert (good.answer, type(bad)) == ("Paris", InvalidRequest)


async def test_a_stream_gives_events_and_then_the_result(pool):
    *events, result = await pool.stream(StreamProgram("qa", QUESTION))
    assert events
    assert isinstance(result, Result)
    assert result.answer == "Paris"


async def test_what_is_wrong_is_the_same_error_everywhere(pool):
    with pytest.raises(InvalidRequest, match="question"):
        await pool.execute("qa", context="Paris.")
    with pytest.raises(InvalidRequest, match="colour"):
        await pool.execute("qa", **QUESTION, colour="red")
    with pytest.raises(UnknownProgram, match="qa"):
        await pool.execute("nothing", question="?")
    with pytest.raises(UnknownSession):
        await pool.session_info("nobody")
    with pytest.raises(UnknownSession):
        await pool.run(EndSession(), session="nobody")
    assert (await pool.execute("qa", **QUESTION)).answer == "Paris"


async def test_a_session_keeps_programs_and_variables_until_it_ends(pool):
    name = fresh("session")
    assert (await pool.create_session(name)).owner is None
    with pytest.raises(Conflict):
        await pool.create_session(name)
    session = pool.session(name)
    assert (await session.create_program("reader", SPEC["signature"]))["created"] is True
    assert (await session.execute("reader", **QUESTION)).answer == "Paris"
    assert (await session.stream("reader", **QUESTION))[-1].answer == "Paris"
    await session.set_variable("topic", {"country": "France"})
    assert (await session.get_variable("topic"))["value"] == {"country": "France"}
    assert (await session.variables())["variables"] == ["topic"]
    assert "reader" in [program["program"] for program in (await session.programs())["programs"]]
    done = [operation["command"] for operation in (await session.history())["operations"]]
    assert done[:3] == ["create_program", "execute_program", "stream_program"]
    assert (await pool.session_info(name)).owner is not None
    await session.delete_program("reader")
    with pytest.raises(UnknownProgram):
        await session.execute("reader", **QUESTION)
    with pytest.raises(NotAllowed):
        await session.execute_code("1 + 1")
    await session.reset()
    assert (await session.variables())["variables"] == []
    await session.end()
    with pytest.raises(UnknownSession):
        await session.variables()


async def test_sessions_are_listed_page_by_page(pool):
    names = {fresh("page") for _ in range(3)}
    for name in names:
        await pool.session(name).set_variable("x", 1)
    found, after = [], None
    while True:
        page, after = await pool.sessions(limit=2, after=after)
        assert len(page) <= 2
        found += page
        if after is None:
            break
    assert names <= {info.id for info in found if info.owner is not None}
    for name in names:
        await pool.end_session(name)


async def until_refused(pool: Form) -> None:
    """A client may hear a moment later that the pool is paused."""
    while True:
        await pool.execute("qa", timeout_s=5.0, **QUESTION)


async def test_a_paused_pool_refuses_until_it_is_resumed(pool):
    await pool.pause()
    try:
        with pytest.raises(PoolPaused):
            await until_refused(pool)
    finally:
        await pool.resume()
    await until_status(pool, lambda status: status.state == "ready")
    for _ in range(100):
        try:
            assert (await pool.execute("qa", **QUESTION)).answer == "Paris"
            break
        except PoolPaused:
            await asyncio.sleep(0.05)


async def test_versions_are_deployed_and_rolled_back_and_show_how_far_they_are(pool):
    program = fresh("program")
    *states, done = await pool.stream_deploy(Deployment(program, 0, spec=SPEC))
    assert (done.program, done.version) == (program, 1)
    assert all(isinstance(state, Rollout) for state in states)
    assert (states[-1].program, states[-1].phase, states[-1].ended_at is not None) == (program, "done", True)
    second = await pool.deploy(Deployment(program, 0, spec={"signature": "question -> answer"}), canary_s=1)
    assert second.version == 2
    with pytest.raises(Conflict, match="already runs"):
        await pool.stream_deploy(Deployment(program, 0, spec={"signature": "question -> answer"}))
    assert (await pool.current_versions())[program] == 2
    assert (await pool.rollback(program)).version == 1
    assert (await pool.current_versions())[program] == 1
    assert [one.version for one in await pool.rollouts() if one.program == program] == [1, 2, 1]
    with pytest.raises(UnknownProgram):
        await pool.rollback("nothing")


async def test_a_warm_up_shows_its_steps_and_then_its_report(pool):
    *steps, report = await pool.stream_warm("sequential")
    assert isinstance(report, WarmupReport)
    assert (report.strategy, report.workers_failed) == ("sequential", 0)
    assert {step.kind for step in steps} >= {"begin", "stage", "step"}
    assert (await pool.warm()).workers_warm == report.workers_warm


async def test_the_size_follows_what_is_asked_for(pool):
    with pytest.raises(InvalidRequest):
        await pool.resize(99)
    assert await pool.resize(1) == 1
    await until_status(pool, lambda status: status.actual == 1)
    assert await pool.resize(2) == 2
    await until_status(pool, lambda status: status.actual == 2)
    assert next(one.target for one in await pool.decisions(100) if one.source == "manual") == 2


async def test_a_worker_is_replaced(pool):
    with pytest.raises(UnknownWorker):
        await pool.drain("nobody")
    for name in ("id", "ordinal"):
        old = next(worker for worker in (await pool.status()).workers if worker.state == "ready")
        assert await pool.restart(getattr(old, name), wait_s=60) is True
        status = await until_status(pool, lambda status: status.actual == 2)
        assert old.id not in [worker.id for worker in status.workers]


async def test_what_happened_and_what_was_counted_can_be_looked_at(pool):
    answer = await pool.execute("qa", **QUESTION)
    for _ in range(100):
        snapshot = await pool.metrics_snapshot()
        history = await pool.metrics_history(60.0, program="qa")
        if "qa" in snapshot.programs and snapshot.size == 2 and history.points:
            break
        await asyncio.sleep(0.1)
    assert snapshot.programs["qa"].counters.by_outcome["ok"] >= 1
    assert set(snapshot.workers) <= {0, 1, 2, 3, 4}
    assert (await pool.metrics_history(60.0)).points
    assert history.points
    for _ in range(100):
        found = (await pool.operations(program="qa", text=answer.operation_id)).operations
        if found:
            break
        await asyncio.sleep(0.1)
    assert [(one.id, one.worker, one.version, one.outcome) for one in found] == [
        (answer.operation_id, answer.worker, answer.program_version, "ok")
    ]
    page = await pool.events()
    assert page.events
    assert not (await pool.events(page.next, timeout_s=0.01)).missed


async def test_what_its_processes_logged_can_be_read(pool):
    logged = await pool.logs(limit=1000)
    assert any("warm-up step" in line.text and line.worker for line in logged.lines)
    assert all(line.at >= logged.next for line in (await pool.logs(after=logged.next)).lines)
    assert (await pool.logs(operation="nobody's")).lines == []
    with pytest.raises(InvalidRequest):
        await pool.logs(limit=0)
