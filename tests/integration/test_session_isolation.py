"""A thousand sessions of ten principals at once, through the HTTP application with tokens, a real client, real workers
with real DSPy, and a real store: nothing of one is ever seen by another. In one process; no Ray.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager

import httpx

from dspool.client.client import Client, ControlPlane
from dspool.config import PoolConfig
from dspool.core.admission.access import new_token
from dspool.messages import Membership
from dspool.pool import Pool
from dspool.store.store import SessionStore
from dspool.tokens import TokenSource, write
from dspool.worker.worker import Worker
from dspool_serve.access.security import Security
from dspool_serve.api.application import Application
from dspool_serve.pools import Settings

PRINCIPALS = [f"p{number}" for number in range(10)]
SESSIONS = 100
BASE = "/v1/pools/default/sessions"


class Served:
    """The part of a `ClusterPool` that sessions need, over a client and a store of this process."""

    name = "default"

    def __init__(self, client, store):
        # The checks of `Pool.run`, without its actors.
        self._pool = Pool("default", client, None)
        self._store = store
        self.run = self._pool.run
        self.config = client.config
        self.tracing = None

    async def take_allowance(self, token, limits, wanted):
        raise AssertionError("no token here is limited")

    def room(self):
        return 64

    async def create_session(self, id, **about):
        return await self._store.create(self.name, id, **about)

    async def session_info(self, id):
        return await self._store.get(self.name, id)

    async def sessions(self, *, limit=100, after=None):
        return await self._store.list(self.name, limit=limit, after=after)

    async def end_session(self, id):
        await self._pool.end_session(id)


class Only:
    def __init__(self, pool):
        self._pool = pool

    def names(self):
        return ["default"]

    def get(self, name):
        return self._pool


@asynccontextmanager
async def service(tmp_path):
    config = PoolConfig(state_dir=tmp_path, telemetry={"sampling": 0}, enable_metrics=False)
    store = SessionStore(f"sqlite:///{tmp_path / 'sessions.db'}")
    await store.open()
    workers = [Worker(f"w{ordinal}", ordinal, config, b"secret", store) for ordinal in range(2)]
    members = tuple([await worker.describe() for worker in workers])

    async def watch(version):
        if version >= 1:
            await asyncio.Event().wait()
        return Membership(1, members)

    async def report_dead(worker_id, why):
        return None

    client = Client(config, b"secret", ControlPlane(watch, report_dead))
    await client.start()
    assert await client.wait_ready(2, 20.0)
    tokens, kept = {}, []
    for number, name in enumerate(PRINCIPALS):
        tokens[name], token = new_token(name, "caller", f"{number}" * 43, f"{number:08x}")
        kept.append(token)
    write(tmp_path / "tokens.yaml", kept)
    security = Security(TokenSource(tmp_path / "tokens.yaml"), max_waiting=100_000)
    app = Application(Only(Served(client, store)), Settings(), security)
    people = {
        name: httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://dspool",
            headers={"authorization": f"Bearer {token}"},
            timeout=150.0,
        )
        for name, token in tokens.items()
    }
    try:
        yield people, store
    finally:
        for http in people.values():
            await http.aclose()
        await client.close()
        for worker in workers:
            await worker.stop()
        await store.close()


async def test_a_thousand_sessions_of_ten_principals_never_cross(tmp_path):
    dice = random.Random(5)
    seen = Counter()
    async with service(tmp_path) as (people, store):

        async def live(name, number):
            """One session's life: its canary goes in, comes out, and nothing else does."""
            http, id = people[name], f"s{number}"
            canary = f"canary-{name}-{number}"
            path = f"{BASE}/{id}"
            put = await http.put(f"{path}/variables/secret", json={"value": canary})
            assert put.status_code == 200, put.text
            for _ in range(2):
                await asyncio.sleep(dice.random() * 0.2)
                got = await http.get(f"{path}/variables/secret")
                assert got.json()["value"] == canary, got.text
                seen["own"] += 1
            listed = await http.get(f"{path}/variables")
            assert listed.json()["variables"] == ["secret"]

        async def pry(name, number):
            """Another's session, by every way to write its name that we know."""
            other = dice.choice([one for one in PRINCIPALS if one != name])
            for id in (
                f"{other}%2Fs{number}",
                f"..%2F{other}%2Fs{number}",
                f"x{number}",
                f"%2F{other}%2Fs{number}",
            ):
                answer = await people[name].get(f"{BASE}/{id}/variables/secret")
                assert answer.status_code == 404, answer.text
                assert "canary" not in answer.text
                seen["pried"] += 1

        lives = [live(name, number) for name in PRINCIPALS for number in range(SESSIONS)]
        attempts = [pry(name, number) for name in PRINCIPALS for number in range(0, SESSIONS, 10)]
        both = lives + attempts
        dice.shuffle(both)
        await asyncio.gather(*both)

        for name in PRINCIPALS[:3]:
            own = (await people[name].get(BASE, params={"limit": 1000})).json()["sessions"]
            assert {one["id"] for one in own} == {f"s{number}" for number in range(SESSIONS)}
        stored, _ = await store.list("default", limit=1000)
        assert len(stored) == len(PRINCIPALS) * SESSIONS
        assert all(info.id.startswith(f"{info.principal}/") for info in stored)
        # Behind the door it holds as well: a stored id with another's principal is no session.
        assert seen == {"own": 2000, "pried": 400}


async def test_one_id_means_ten_sessions_for_ten_principals_and_programs_stay_apart(tmp_path):
    async with service(tmp_path) as (people, _):

        async def use(name):
            path = f"{BASE}/shared/programs/p"
            spec = {"signature": f"question -> {name}_answer"}
            assert (await people[name].put(path, json=spec)).status_code == 200
            answer = await people[name].post(f"{path}/execute", json={"inputs": {"question": "Who?"}})
            assert list(answer.json()["outputs"]) == [f"{name}_answer"], answer.text
            history = (await people[name].get(f"{BASE}/shared/history")).json()["operations"]
            assert len(history) <= 3

        await asyncio.gather(*(use(name) for name in PRINCIPALS))
        await people["p0"].delete(f"{BASE}/shared")
        assert (await people["p0"].get(f"{BASE}/shared")).status_code == 404
        assert (await people["p1"].get(f"{BASE}/shared")).status_code == 200
