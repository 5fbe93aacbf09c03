"""Two principals who use the same names everywhere meet nowhere: each key and record has its principal."""

import httpx
import pytest

from dspool.config import PoolConfig
from dspool.core.admission.access import Token, new_token
from dspool.errors import UnknownSession
from dspool.messages import Change, GetVariable, SetVariable
from dspool.store.idempotency import KeptAnswer
from dspool.store.store import SessionStore
from dspool.testing.host import LoopbackPool
from dspool.tokens import TokenSource, write
from dspool_serve.access.security import Security
from tests.unit.http_doubles import FakePool, served

WHO = ("ada", "bob")
POOL = "/v1/pools/default"


class StoredPool(FakePool):
    """Sessions and keys in a real store, operations on a real worker."""

    def __init__(self, store, client):
        super().__init__()
        self.store, self.client = store, client

    async def run(self, command, **options):
        return await self.client.run(command, **options)

    async def create_session(self, id, *, principal=None, limits=None):
        return await self.store.create(self.name, id, principal=principal, limits=limits)

    async def session_info(self, id):
        return await self.store.get(self.name, id)

    async def sessions(self, **options):
        return await self.store.list(self.name, **options)

    async def end_session(self, id):
        await self.store.end(self.name, id)

    async def claim_key(self, key, **claim):
        return await self.store.claim_key(self.name, key, **claim)

    async def settle_key(self, key, **settled):
        await self.store.settle_key(self.name, key, **settled)

    async def drop_key(self, key, **dropped):
        await self.store.drop_key(self.name, key, **dropped)

    async def store_status(self):
        return await self.store.describe(self.name)

    async def storage_usage(self):
        return await self.store.usage(self.name)


@pytest.fixture
async def store(tmp_path):
    store = SessionStore(f"sqlite:///{tmp_path}/d.db")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def people(tmp_path, store):
    """HTTP clients of ada, bob and the admin root, on one service."""
    texts, tokens = {}, []
    for number, name in enumerate((*WHO, "root")):
        role = "admin" if name == "root" else "caller"
        texts[name], token = new_token(name, role, chr(65 + number) * 43, f"0000000{number}")
        fields = {field: getattr(token, field) for field in token.__struct_fields__}
        tokens.append(Token(**fields | ({} if name == "root" else {"quota_per_day": 50})))
    write(tmp_path / "tokens.yaml", tokens)
    async with LoopbackPool(PoolConfig(name="default")) as loopback:
        loopback.store = store
        await loopback.start_worker()
        pool = StoredPool(store, await loopback.start_client())
        app = served(pool, security=Security(TokenSource(tmp_path / "tokens.yaml")))
        yield {
            name: httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app),
                base_url="http://dspool",
                headers={"authorization": f"Bearer {text}"},
            )
            for name, text in texts.items()
        }


async def test_the_same_names_of_sessions_and_variables_are_two_things(people):
    for who in WHO:
        put = await people[who].put(f"{POOL}/sessions/s/variables/v", json={"value": f"of {who}"})
        assert put.status_code == 200
    for who in WHO:
        # What the double of a host answers is the value itself.
        sessions = (await people[who].get(f"{POOL}/sessions")).json()["sessions"]
        assert [row["id"] for row in sessions] == ["s"]
    assert (await people["ada"].delete(f"{POOL}/sessions/s")).status_code == 204
    assert (await people["bob"].get(f"{POOL}/sessions/s")).status_code == 200
    assert (await people["ada"].get(f"{POOL}/sessions/s")).status_code == 404


@pytest.mark.parametrize("name", ["bob/s", "../bob/s", "s/../../bob/s", "bob%2Fs"])
async def test_no_choice_of_a_name_reaches_anothers_session(people, name):
    await people["bob"].put(f"{POOL}/sessions/s/variables/v", json={"value": 1})
    name = name.replace("/", "%2F")
    assert (await people["ada"].get(f"{POOL}/sessions/{name}")).status_code == 404
    await people["ada"].delete(f"{POOL}/sessions/{name}")
    assert (await people["bob"].get(f"{POOL}/sessions/s")).status_code == 200


async def test_the_same_idempotency_key_is_two_keys(people):
    for who in WHO:
        made = await people[who].post(
            f"{POOL}/sessions", json={"id": f"of-{who}"}, headers={"idempotency-key": "k"}
        )
        assert (made.status_code, made.json()["id"]) == (201, f"of-{who}")
    again = await people["ada"].post(
        f"{POOL}/sessions", json={"id": "of-ada"}, headers={"idempotency-key": "k"}
    )
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == "of-ada"


async def test_what_each_keeps_and_asks_for_counts_to_each(people):
    for number in range(3):
        await people["ada"].post(f"{POOL}/sessions", json={"id": f"s{number}"})
    await people["bob"].post(f"{POOL}/sessions", json={}, headers={"idempotency-key": "k"})
    usage = {
        row["principal"]: row for row in (await people["root"].get(f"{POOL}/usage")).json()["principals"]
    }
    assert [usage[who]["sessions"] for who in WHO] == [3, 1]
    assert usage["ada"]["answers_mb"] == 0
    assert usage["bob"]["answers_mb"] > 0
    for _ in range(60):
        last = await people["ada"].post(f"{POOL}/sessions", json={})
    assert last.status_code == 429
    assert (await people["bob"].post(f"{POOL}/sessions", json={})).status_code == 201


async def test_by_python_a_session_is_its_principals_too():
    async with LoopbackPool(PoolConfig(name="t")) as pool:
        await pool.start_worker()
        client = await pool.start_client()
        await client.run(SetVariable("v", "ada's"), session="s", principal="ada")
        for command in (GetVariable("v"), SetVariable("v", "bob's")):
            with pytest.raises(UnknownSession):
                await client.run(command, session="s", principal="bob")
        assert (await client.run(GetVariable("v"), session="s", principal="ada")).value == "ada's"


async def test_the_store_checks_the_principal_itself(store):
    lease = await store.acquire("p", "s", "w", create=True, principal="ada")
    await store.commit("p", "s", "w", lease.epoch, [Change("variable", "v", 1)], principal="ada")
    await store.release("p", "w", ["s"])
    with pytest.raises(UnknownSession):
        await store.acquire("p", "s", "w2", create=True, principal="bob")
    assert await store.end("p", "s", principal="bob") is False
    for who in WHO:
        claim = {"fingerprint": who, "holder": who, "patience_s": 9.0, "keep_s": 9.0}
        assert (await store.claim_key("p", "k", principal=who, **claim)).outcome == "new"
    answer = KeptAnswer(200, "text/plain", [], b"ada's")
    await store.settle_key("p", "k", principal="bob", holder="ada", answer=answer)  # not bob's claim
    claim = {"fingerprint": "bob", "holder": "x", "patience_s": 9.0, "keep_s": 9.0}
    assert (await store.claim_key("p", "k", principal="bob", **claim)).outcome == "running"
