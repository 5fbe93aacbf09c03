"""With `cache: true` nobody is given what another asked for, and nobody sees that it was asked."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import calling_programs
import dspy
import httpx
import pytest

from dspool.client.client import Client
from dspool.config import PoolConfig
from dspool.messages import ConfigureLM, Deployment, ExecuteProgram, StreamProgram
from dspool.programs.sessions.host import SessionHost
from dspool.testing.host import LoopbackPool
from dspool.testing.lm_server import LMServer, Reply
from dspool.worker.worker import Worker
from dspool_serve.access.security import Security
from dspool_serve.api.application import Application
from tests.dashboard_demo import tokens_for
from tests.unit.http_doubles import FakePool, FixedPools

ASKED = {"question": "Rome is big. What is big?"}
SPEC = {"signature": "question -> answer"}
PROGRAMS: dict[str, dict[str, Any]] = {
    "ask": {"spec": SPEC},
    "chains": {"spec": {**SPEC, "module": "MultiChainComparison", "settings": {"attempts": 2}}},
    **{
        name: {"import_path": f"calling_programs:{name}"}
        for name in ("InParallel", "Asyncified", "InTasks", "ToThread", "Nested", "ChoosesRollouts")
    },
    "own": {"import_path": "calling_programs:OwnLM", "kwargs": {}},
    "own-rollout": {"import_path": "calling_programs:OwnLM", "kwargs": {"rollout": 3}},
}
STREAMED = ("ask", "chains", "InTasks", "own")


class Pool(LoopbackPool):
    """A loopback pool whose worker runs DSPy."""

    async def start_worker(self, worker_id: str | None = None) -> Worker:
        self.host = SessionHost(self.config)
        worker = Worker("w0", 0, self.config, self.secret, self.store, session_host=self.host)
        self.workers["w0"] = worker
        self._members["w0"] = await worker.describe()
        self.publish()
        return worker


@pytest.fixture
def server() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


@pytest.fixture
async def pool(server: LMServer) -> AsyncIterator[Pool]:
    profile = {"model": "openai/test", "endpoint": server.url}
    config = PoolConfig(
        cache=True,
        slots_per_worker=4,
        lm_profiles={"test": profile, "other": profile},
        default_lm="test",
        allowed_imports=("calling_programs",),
    )
    async with Pool(config) as pool:
        await pool.start_worker()
        for name, source in PROGRAMS.items():
            given = dict(source)
            if "kwargs" in given:
                given["kwargs"] = {**given["kwargs"], "url": server.url}
            pool.host.deploy(Deployment(name, 1, **given))
        # DSPy is configured once a process, perhaps by another test; and a program may do it again like this.
        before = dspy.cache
        dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
        try:
            yield pool
        finally:
            dspy.cache = before
            await pool.host.lms.aclose()


@pytest.fixture
async def client(pool: Pool) -> Client:
    return await pool.start_client()


class Asked:
    """How many calls of the model each question cost."""

    def __init__(self, server: LMServer) -> None:
        self._server = server

    async def cost(self, asking: Any) -> int:
        before = self._server.requests
        await asking
        return self._server.requests - before


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_principal_pays_for_each_question_as_if_nobody_had_asked_it(
    client: Client, server: LMServer, program: str
):
    asked, command = Asked(server), ExecuteProgram(program, ASKED)
    eve = await asked.cost(client.run(command, principal="eve"))
    assert eve > 0
    for who in ("ada", None, "session x"):
        assert await asked.cost(client.run(command, principal=who)) == eve, who
    for who in ("eve", "ada", None, "session x"):
        assert await asked.cost(client.run(command, principal=who)) == 0, who


async def drained(events: Any) -> None:
    async for _ in events:
        pass


@pytest.mark.parametrize("program", STREAMED)
async def test_streams_of_two_principals_share_nothing_either(client: Client, server: LMServer, program: str):
    asked, command = Asked(server), StreamProgram(program, ASKED)
    eve = await asked.cost(drained(client.stream(command, principal="eve")))
    assert eve > 0
    assert await asked.cost(drained(client.stream(command, principal="ada"))) == eve
    assert await asked.cost(drained(client.stream(command, principal="eve"))) == 0


@pytest.mark.parametrize("program", ["ask", "chains", "own"])
async def test_sessions_share_with_their_principal_s_other_operations_and_with_nobody_else_s(
    client: Client, server: LMServer, program: str
):
    asked, command = Asked(server), ExecuteProgram(program, ASKED)

    async def in_session(id: str, who: str | None) -> int:
        await client.run(ConfigureLM("test", {"temperature": 0.5}), session=id, principal=who)
        return await asked.cost(client.run(command, session=id, principal=who))

    eve = await in_session("eve/1", "eve")
    assert eve > 0
    assert await in_session("ada/1", "ada") == eve
    assert await in_session("eve/2", "eve") == 0
    # Trusted code that looks into eve's session does so for her.
    assert await asked.cost(client.run(command, session="eve/1")) == 0
    # Without principals it is the session that tells users apart; one called as a principal is not that principal.
    for id in ("one", "two", "eve"):
        assert await in_session(id, None) == eve, id
        assert await in_session(id, None) == 0, id


async def test_a_poisoned_answer_stays_with_who_poisoned_it(client: Client, server: LMServer):
    poison = "[[ ## answer ## ]]\npoison\n\n[[ ## completed ## ]]"
    server.script(Reply(text=poison))
    answers = {
        who: (await client.run(ExecuteProgram("ask", ASKED), principal=who)).answer
        for who in ("eve", "ada", None)
    }
    assert answers.pop("eve") == "poison"
    assert set(answers.values()) == {"Rome is big."}


async def test_two_profiles_never_share_an_answer(client: Client, pool: Pool, server: LMServer):
    asked = Asked(server)
    for profile in ("test", "other"):
        for program, source in (("ask", {"spec": {**SPEC, "lm": profile}}), ("rolls", {})):
            given = source or {"import_path": "calling_programs:ChoosesRollouts", "spec": {"lm": profile}}
            name = f"{program}-{profile}"
            pool.host.deploy(Deployment(name, 1, **given))
            command = ExecuteProgram(name, ASKED)
            assert await asked.cost(client.run(command, principal="ada")) == 1, name
            assert await asked.cost(client.run(command, principal="ada")) == 0, name


async def test_embeddings_are_kept_apart_too(client: Client, pool: Pool):
    pool.host.deploy(Deployment("embed", 1, import_path="calling_programs:Embedding"))
    calling_programs.embedded.clear()
    for who in ("eve", "ada", "eve", "ada"):
        await client.run(ExecuteProgram("embed", ASKED), principal=who)
    assert len(calling_programs.embedded) == 2


async def test_what_is_cached_is_bounded_however_many_ask(client: Client, pool: Pool):
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True, memory_max_entries=10)
    for number in range(30):
        await client.run(ExecuteProgram("ask", ASKED), principal=f"user{number}")
    assert len(dspy.cache.memory_cache) == 10
    assert not pool.host.lms._variants


def test_without_an_operation_nothing_is_kept_and_nothing_found(server: LMServer):
    SessionHost(PoolConfig())
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    try:
        lm = dspy.LM("openai/test", api_base=server.url, api_key="none", num_retries=0)
        thread = threading.Thread(target=lm, args=("hello",))
        thread.start()
        thread.join()
        lm("hello")
        assert server.requests == 2
        assert len(dspy.cache.memory_cache) == 0
    finally:
        dspy.cache = before


# --- over HTTP --------------------------------------------------------------------------------------


class Served(FakePool):
    """A served pool whose operations run in a real worker."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    async def run(self, command: Any, **options: Any) -> Any:
        return await self._client.run(command, **options)

    def stream(self, command: Any, **options: Any) -> Any:
        return self._client.stream(command, **options)


@pytest.mark.parametrize("way", ["execute", "batch", "stream", "session", "session stream"])
async def test_two_tokens_share_nothing_over_http(client: Client, server: LMServer, way: str):
    texts, source = tokens_for(eve="caller", ada="caller", root="admin")
    app = Application(FixedPools(Served(client)), security=Security(source))
    asked = Asked(server)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:

        async def ask(who: str) -> None:
            headers = {"authorization": f"Bearer {texts[who]}"}
            path = "/v1/pools/default"
            if way.startswith("session"):
                path += "/sessions/mine"
                made = await http.put(f"{path}/programs/ask", json={"spec": SPEC}, headers=headers)
                assert made.status_code == 200, made.text
            kind = "stream" if way.endswith("stream") else "batch" if way == "batch" else "execute"
            body = {"inputs": [ASKED, {"question": "Else?"}]} if kind == "batch" else {"inputs": ASKED}
            answer = await http.post(f"{path}/programs/ask/{kind}", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            assert "Rome is big." in answer.text

        eve = await asked.cost(ask("eve"))
        assert eve > 0
        assert await asked.cost(ask("ada")) == eve
        assert await asked.cost(ask("root")) == eve
        assert await asked.cost(ask("eve")) == 0
