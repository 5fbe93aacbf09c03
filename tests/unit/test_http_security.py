"""Who may do what over HTTP, whose sessions are whose, and what is written down."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from http_doubles import FakePool, FixedPools, assert_problem, served

from dspool.core.admission.access import Token, new_token
from dspool.errors import Conflict, UnknownSession
from dspool.messages import SessionInfo
from dspool.tokens import TokenSource, issue, write
from dspool_console.ray_panels import PANEL_ROUTES
from dspool_serve.access.audit import Audit
from dspool_serve.access.security import LOOPBACK_NAMES, Security
from dspool_serve.api import ROUTES
from dspool_serve.api.application import Application
from dspool_serve.http.requests import Request
from dspool_serve.pools import Settings

QA = "/v1/pools/default/programs/qa/execute"
INPUTS = {"inputs": {"question": "?"}}


class Principals(FakePool):
    """A pool with sessions that keep who made them, as the store does."""

    def __init__(self, slots: int = 1000) -> None:
        super().__init__()
        self.known_sessions = {}
        self.slots = slots
        self.running = self.most = 0
        self.hold: asyncio.Event | None = None

    def room(self) -> int:
        return self.slots

    async def run(self, command, **options):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.hold is not None:
                await self.hold.wait()
            else:
                await asyncio.sleep(0)
            session = options.get("session")
            if session is not None:
                info = self.known_sessions.setdefault(
                    session, SessionInfo(session, None, 1, 0.0, 0.0, principal=options["principal"])
                )
                if info.principal != options["principal"]:
                    raise UnknownSession(f"there is no session {session!r}", session=session)
            return await super().run(command, **options)
        finally:
            self.running -= 1

    async def create_session(self, id, *, principal=None, limits=None):
        if id in self.known_sessions:
            raise Conflict(f"there is a session {id!r}", session=id)
        self.known_sessions[id] = SessionInfo(id, None, 1, 0.0, 0.0, principal=principal)
        return self.known_sessions[id]

    async def sessions(self, *, limit=100, after=None):
        ids = sorted(id for id in self.known_sessions if after is None or id > after)
        return [self.known_sessions[id] for id in ids[:limit]], ids[limit - 1] if len(ids) > limit else None


async def until(true) -> None:
    for _ in range(10_000):
        if true():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come about")


class World:
    """A service with a token for each of some people."""

    def __init__(self, tmp_path, *, pool=None, limits=None, settings=None, **options):
        self.file = tmp_path / "tokens.yaml"
        self.pool = pool or Principals()
        self.tokens = {}
        kept = []
        people = {"rea": "reader", "ada": "caller", "bob": "caller", "root": "admin"}
        for number, (name, role) in enumerate(people.items()):
            text, token = new_token(name, role, chr(65 + number) * 43, f"0000000{number}")
            fields = {field: getattr(token, field) for field in token.__struct_fields__}
            kept.append(Token(**(fields | (limits or {}).get(name, {}))))
            self.tokens[name] = text
        write(self.file, kept)
        self.audit = tmp_path / "audit.jsonl"
        self.security = security = Security(TokenSource(self.file), audit=Audit(self.audit), **options)
        self.app = served(self.pool, settings=settings, security=security)

    def http(self, who=None):
        headers = {"authorization": f"Bearer {self.tokens[who]}"} if who else {}
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app), base_url="http://dspool", headers=headers
        )

    def audited(self):
        self.security.audit.close()
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


def test_what_changes_something_is_for_callers_and_admins():
    for route in (*ROUTES, *PANEL_ROUTES):
        if route.method != "GET":
            assert route.role in ("caller", "admin"), route.path


@pytest.mark.parametrize("who", [None, "rea", "ada", "root"])
async def test_each_role_gets_through_to_what_it_may_do_and_no_further(tmp_path, who):
    world = World(tmp_path)
    rank = {None: 0, "rea": 1, "ada": 2, "root": 3}[who]
    needs_rank = {None: 0, "reader": 1, "caller": 2, "admin": 3}
    async with world.http(who) as http:
        for route in ROUTES:
            if route.stream:
                continue
            path = route.path.replace("{pool}", "none").replace("{session}", "s").replace("{program}", "p")
            path = path.replace("{worker}", "w").replace("{variable}", "v")
            answer = await http.request(route.method, path, content=b"{}" if route.takes else None)
            if rank < needs_rank[route.role]:
                wanted = (401, "unauthenticated") if who is None else (403, "not_allowed")
                assert_problem(answer, *wanted)
            else:
                assert answer.status_code not in (401, 403), (route.path, answer.text)


@pytest.mark.parametrize(
    "body",
    [
        {"import_path": "shop:Program"},
        {"signature": "q -> a", "module": "ReAct", "settings": {"tools": ["shop:tool"]}},
        {"spec": {"signature": "q -> a", "module": "Refine", "settings": {"reward": "shop:reward"}}},
    ],
)
async def test_import_paths_in_sessions_are_for_admins_unless_the_service_opens_them(tmp_path, body):
    path = "/v1/pools/default/sessions/s/programs/p"
    world = World(tmp_path)
    async with world.http("ada") as ada, world.http("root") as root:
        assert (
            "session_imports" in assert_problem(await ada.put(path, json=body), 403, "not_allowed")["detail"]
        )
        assert world.pool.asked == []
        assert (await ada.put(path, json={"signature": "q -> a"})).status_code == 200
        assert (await root.put(path, json=body)).status_code == 200
    (tmp_path / "open").mkdir()
    opened = World(tmp_path / "open", settings=Settings(session_imports=True))
    async with opened.http("ada") as ada:
        assert (await ada.put(path, json=body)).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Bearer dsp_00000001_" + "X" * 43,
        "Bearer dsp_99999999_" + "B" * 43,
        "Bearer " + "x" * 5000,
        "bearer\tdsp_00000001_" + "B" * 43,
    ],
)
async def test_a_wrong_token_is_a_401_that_says_how_and_not_what_was_wrong(tmp_path, header):
    world = World(tmp_path)
    async with world.http() as http:
        answer = await http.post(QA, json=INPUTS, headers={"authorization": header})
    body = assert_problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "BBBB" not in json.dumps(body)
    assert world.pool.asked == []


async def test_an_operation_carries_its_principal_and_the_stored_id_is_not_shown(tmp_path):
    world = World(tmp_path)
    async with world.http("ada") as http:
        made = await http.put("/v1/pools/default/sessions/s/programs/p", json={"signature": "q -> a"})
        assert made.json()["session"] == "s"
        assert (await http.post("/v1/pools/default/sessions", json={"id": "t"})).json()["id"] == "t"
        again = await http.post("/v1/pools/default/sessions", json={"id": "t"})
        assert "ada/" not in again.text
        listed = (await http.get("/v1/pools/default/sessions")).json()
        assert [one["id"] for one in listed["sessions"]] == ["s", "t"]
        assert (await http.get("/v1/pools/default/sessions/s")).json()["id"] == "s"
    assert world.pool.asked[0]["principal"] == "ada"
    assert world.pool.asked[0]["session"] == "ada/s"


@pytest.mark.parametrize("id", ["s", "ada%2Fs", "..%2Fada%2Fs", "ada/s", "%2Fs", "bob%2F..%2Fada%2Fs"])
async def test_nobody_reads_ends_or_blocks_anothers_session(tmp_path, id):
    world = World(tmp_path)
    async with world.http("ada") as ada, world.http("bob") as bob:
        await ada.put("/v1/pools/default/sessions/s/programs/p", json={"signature": "q -> a"})
        path = f"/v1/pools/default/sessions/{id}"
        assert (await bob.get(path)).status_code in (404, 405)
        assert (await bob.delete(path)).status_code in (404, 405)
        assert (await bob.get("/v1/pools/default/sessions")).json()["sessions"] == []
        # The same id is free for the other, and is another session.
        assert (await bob.post("/v1/pools/default/sessions", json={"id": "s"})).status_code == 201
        assert "ada/s" in world.pool.known_sessions
        assert {one.id for one in world.pool.known_sessions.values()} == {"ada/s", "bob/s"}


async def test_pages_of_ones_own_sessions_never_reach_into_anothers(tmp_path):
    world = World(tmp_path)
    async with world.http("ada") as ada, world.http("bob") as bob:
        for number in range(7):
            await ada.post("/v1/pools/default/sessions", json={"id": f"s{number}"})
        await bob.post("/v1/pools/default/sessions", json={"id": "x"})
        found, cursor = [], None
        while True:
            query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
            page = (await ada.get("/v1/pools/default/sessions", params=query)).json()
            found += [one["id"] for one in page["sessions"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert found == [f"s{number}" for number in range(7)]
        for cursor in ("../bob/", "", "zzz", "s6"):
            page = (await ada.get("/v1/pools/default/sessions", params={"cursor": cursor})).json()
            assert all(one["principal"] == "ada" for one in page["sessions"])


async def test_an_admin_sees_and_ends_all_sessions_by_the_names_in_the_list(tmp_path):
    world = World(tmp_path)
    async with world.http("ada") as ada, world.http("root") as root:
        await ada.post("/v1/pools/default/sessions", json={"id": "s"})
        await root.post("/v1/pools/default/sessions", json={"id": "mine"})
        listed = (await root.get("/v1/pools/default/sessions")).json()["sessions"]
        assert [one["id"] for one in listed] == ["ada/s", "mine"]
        assert (await root.delete("/v1/pools/default/sessions/ada%2Fs")).status_code == 204
        assert list(world.pool.known_sessions) == ["root/mine"]


async def test_an_id_that_leaves_no_room_for_its_owner_is_refused(tmp_path):
    world = World(tmp_path)
    async with world.http("ada") as http:
        answer = await http.put(
            f"/v1/pools/default/sessions/{'s' * 200}/programs/p", json={"signature": "q -> a"}
        )
        assert_problem(answer, 422, "invalid_request")


async def test_a_revoked_token_stops_working_without_a_restart(tmp_path):
    world = World(tmp_path)
    async with world.http("ada") as http:
        assert (await http.post(QA, json=INPUTS)).status_code == 200
        text, _ = issue(world.file, "eve", "caller")
        write(world.file, [])
        await asyncio.sleep(1.05)
        assert_problem(await http.post(QA, json=INPUTS), 401, "unauthenticated")
        assert_problem(
            await http.post(QA, json=INPUTS, headers={"authorization": f"Bearer {text}"}),
            401,
            "unauthenticated",
        )


async def test_what_an_admin_does_and_what_others_try_is_written_down(tmp_path):
    world = World(tmp_path)
    async with world.http("ada") as ada, world.http("root") as root:
        await ada.post("/v1/pools/default/pause")
        await root.post("/v1/pools/none/pause", headers={"x-request-id": "r-1\n{}"[:3]})
        await root.get("/v1/pools/default")
    denied, failed = world.audited()
    assert (denied["event"], denied["principal"], denied["path"]) == (
        "denied",
        "ada",
        "/v1/pools/default/pause",
    )
    assert (failed["event"], failed["principal"], failed["status"], failed["request_id"]) == (
        "failed",
        "root",
        404,
        "r-1",
    )
    assert world.audit.stat().st_mode & 0o777 == 0o600


async def test_an_admin_who_looks_at_or_ends_anothers_session_is_written_down(tmp_path):
    world = World(tmp_path)
    async with world.http("ada") as ada, world.http("root") as root:
        await ada.post("/v1/pools/default/sessions", json={"id": "s"})
        await ada.get("/v1/pools/default/sessions/s")
        await root.post("/v1/pools/default/sessions", json={"id": "own"})
        await root.get("/v1/pools/default/sessions/own")
        assert world.audited() == []
        assert (await root.get("/v1/pools/default/sessions/ada%2Fs")).status_code == 200
        assert (await root.delete("/v1/pools/default/sessions/ada%2Fs")).status_code == 204
    looked, ended = world.audited()
    assert (looked["principal"], looked["method"], looked["status"]) == ("root", "GET", 200)
    assert (ended["principal"], ended["method"], ended["status"]) == ("root", "DELETE", 204)
    assert "ada" in ended["path"]


async def test_a_path_cannot_forge_a_second_record(tmp_path):
    world = World(tmp_path)
    async with world.http("root") as http:
        await http.post("/v1/pools/x%0A%7B%22event%22:%22done%22%7D/pause")
    assert all(set(record) >= {"at", "event", "principal"} for record in world.audited())


async def test_without_tokens_only_the_loopback_name_is_answered():
    app = Application(FixedPools(FakePool()), Settings(), Security(hosts=LOOPBACK_NAMES))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as http:
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]"):
            assert (await http.post(QA, json=INPUTS, headers={"host": host})).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "", "[::1"):
            assert_problem(await http.post(QA, json=INPUTS, headers={"host": host}), 403, "not_allowed")


async def test_a_greedy_token_does_not_starve_another(tmp_path):
    """Two hundred requests of one wait at a door of four; the other's first goes in as soon as one is done."""
    pool = Principals(slots=4)
    world = World(tmp_path, pool=pool)
    done = []

    async def one(http, who):
        answer = await http.post(QA, json=INPUTS)
        assert answer.status_code == 200, answer.text
        done.append(who)

    async with world.http("ada") as ada, world.http("bob") as bob:
        pool.hold = asyncio.Event()
        greedy = [asyncio.create_task(one(ada, "ada")) for _ in range(200)]
        await until(lambda: pool.running == 4)
        modest = [asyncio.create_task(one(bob, "bob")) for _ in range(10)]
        for _ in range(50):
            await asyncio.sleep(0)
        pool.hold.set()
        await asyncio.gather(*greedy, *modest)
    assert pool.most == 4, "no more than the room are ever inside"
    assert max(index for index, who in enumerate(done) if who == "bob") < 40


async def test_a_full_line_of_one_token_is_a_429_for_that_token_only(tmp_path):
    pool = Principals(slots=1)
    world = World(tmp_path, pool=pool, max_waiting=2)
    pool.hold = asyncio.Event()
    async with world.http("ada") as ada, world.http("bob") as bob:
        waiting = [asyncio.create_task(ada.post(QA, json=INPUTS)) for _ in range(3)]
        for _ in range(30):
            await asyncio.sleep(0)
        refused = await ada.post(QA, json=INPUTS)
        assert_problem(refused, 429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        waiting.append(asyncio.create_task(bob.post(QA, json=INPUTS)))
        for _ in range(30):
            await asyncio.sleep(0)
        # A client that goes away leaves the line.
        waiting[2].cancel()
        pool.hold.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [getattr(answer, "status_code", "gone") for answer in answers] == [200, 200, "gone", 200]
    assert pool.running == 0


async def test_waiting_at_the_door_counts_against_the_deadline(tmp_path):
    pool = Principals(slots=1)
    world = World(tmp_path, pool=pool)
    pool.hold = asyncio.Event()
    async with world.http("ada") as http:
        first = asyncio.create_task(http.post(QA, json=INPUTS))
        await until(lambda: pool.running)
        late = await http.post(QA, json=INPUTS | {"timeout_s": 0.02})
        body = assert_problem(late, 504, "deadline_exceeded")
        assert body["details"]["phase"] == "queue"
        pool.hold.set()
        assert (await first).status_code == 200
        assert (await http.post(QA, json=INPUTS)).status_code == 200


async def test_rates_and_quotas_are_429_with_the_time_to_come_again(tmp_path):
    world = World(tmp_path, limits={"ada": {"rate_per_s": 0.5, "burst": 2.0}, "bob": {"quota_per_day": 1}})
    async with world.http("ada") as ada, world.http("bob") as bob:
        assert [(await ada.post(QA, json=INPUTS)).status_code for _ in range(3)] == [200, 200, 429]
        refused = await ada.post(QA, json=INPUTS)
        assert_problem(refused, 429, "rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 2
        assert [(await bob.post(QA, json=INPUTS)).status_code for _ in range(2)] == [200, 429]
        assert int((await bob.post(QA, json=INPUTS)).headers["retry-after"]) <= 86_400


async def test_batch_work_lets_interactive_work_go_first(tmp_path):
    pool = Principals(slots=1)
    world = World(tmp_path, pool=pool, limits={"bob": {"priority": "batch"}})
    pool.hold = asyncio.Event()
    done = []

    async def one(http, who, **headers):
        assert (await http.post(QA, json=INPUTS, headers=headers)).status_code == 200
        done.append(who)

    async with world.http("ada") as ada, world.http("bob") as bob:
        tasks = [asyncio.create_task(one(ada, "first"))]
        await until(lambda: pool.running)
        # A batch token may not call its work interactive.
        tasks += [asyncio.create_task(one(bob, "batch", **{"x-dspool-priority": "interactive"}))]
        tasks += [asyncio.create_task(one(ada, "batch", **{"x-dspool-priority": "batch"}))]
        for _ in range(30):
            await asyncio.sleep(0)
        tasks += [asyncio.create_task(one(ada, "now")) for _ in range(3)]
        for _ in range(30):
            await asyncio.sleep(0)
        pool.hold.set()
        await asyncio.gather(*tasks)
        wrong = await ada.post(QA, json=INPUTS, headers={"x-dspool-priority": "urgent"})
    assert done == ["first", "now", "now", "now", "batch", "batch"]
    assert_problem(wrong, 422, "invalid_request")


@pytest.mark.parametrize("name", ["x-request-timeout-seconds", "x-dspool-timeout-seconds"])
async def test_the_deadline_in_the_header_is_answered_as_a_problem_and_frees_the_slot(name):
    pool = FakePool()
    app = Application(FixedPools(pool), Settings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as http:
        slow = "/v1/pools/default/programs/slow/execute"
        answer = await http.post(slow, json=INPUTS, headers={name: "0.05"})
        assert_problem(answer, 504, "deadline_exceeded")
        assert pool.cancelled == 1
        assert pool.asked[0]["timeout_s"] == 0.05
        await http.post(QA, json=INPUTS | {"timeout_s": 0.01}, headers={name: "5"})
        assert pool.asked[1]["timeout_s"] == 0.01
        await http.post(QA, json=INPUTS, headers={name: "5000"})
        assert pool.asked[2]["timeout_s"] == 30.0
        for wrong in ("0", "-1", "nan", "inf", "soon", ""):
            assert_problem(await http.post(QA, json=INPUTS, headers={name: wrong}), 422, "invalid_request")


async def test_a_stream_that_has_begun_ends_with_an_error_at_the_deadline_in_the_header():
    pool = FakePool()
    app = Application(FixedPools(pool), Settings(heartbeat_s=0.01))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as http:
        answer = await http.get(
            "/v1/pools/default/events/stream", headers={"x-request-timeout-seconds": "0.05"}
        )
        assert answer.status_code == 200
        assert '"code":"deadline_exceeded"' in answer.text.rsplit("event: error", 1)[1]


async def test_an_idempotency_key_of_one_principal_is_not_anothers(tmp_path):
    world = World(tmp_path)
    claimed = []

    async def claim_key(key, *, principal, **about):
        claimed.append((key, principal))
        raise Conflict("enough seen")

    world.pool.claim_key = claim_key
    for who in ("ada", "bob"):
        async with world.http(who) as http:
            await http.post(QA, json=INPUTS, headers={"idempotency-key": "k"})
    async with world.http() as http:
        answer = await http.post(QA, json=INPUTS, headers={"idempotency-key": "k"})
    assert_problem(answer, 401, "unauthenticated")
    assert claimed == [("k", "ada"), ("k", "bob")]


def test_without_tokens_a_handler_is_as_it_was_but_for_a_look_at_the_headers():
    """The hot path: no coroutine of ours around the handler."""
    route = next(route for route in ROUTES if route.path.endswith("/programs/{program}/execute"))
    seen = []
    plain = route._replace(handler=lambda app, request: seen.append(request) or request)
    (secured,) = Security().secured([plain])
    request = Request({"headers": []}, None)
    assert secured.handler(None, request) is request
    assert seen == [request]


async def test_a_body_that_trickles_in_is_a_408_and_not_waited_for_for_ever():
    app = Application(FixedPools(FakePool()), Settings(body_timeout_s=0.05))
    pieces = iter([{"type": "http.request", "body": b"{", "more_body": True}])
    sent = []

    async def receive():
        try:
            return next(pieces)
        except StopIteration:
            await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": QA, "headers": [], "query_string": b""}
    await asyncio.wait_for(app(scope, receive, send), 60)
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["code"] == "request_too_slow"
