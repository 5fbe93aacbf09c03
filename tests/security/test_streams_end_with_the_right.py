"""An open event stream ends with the right to it, with its server, and never makes more than a bounded number."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest

from dspool.core.admission.access import Token, new_token
from dspool.corrections.uvicorn_connections import SCOPE_KEY, ConnectionRequests
from dspool.errors import Conflict
from dspool.supervisor.canary import Rollout
from dspool.supervisor.warmup import WarmProgress
from dspool.tokens import TokenSource, write
from dspool_console.dashboard import DASHBOARD
from dspool_serve.access.security import Security
from dspool_serve.access.streams import OpenStreams
from dspool_serve.api import ROUTES
from dspool_serve.pools import Settings
from tests.unit.http_doubles import FakePool, assert_problem, served, until

STREAMS = [
    (route.method, route.path.format(pool="default", program="slow", session="s"))
    for route in (*ROUTES, *DASHBOARD)
    if route.stream or route.media == "text/event-stream"
]
EVENTS = "/v1/pools/default/events/stream"
DEPLOY = "/v1/pools/default/programs/qa/versions"
SPEC = {"signature": "a -> b"}


class Lasting(FakePool):
    """A pool whose streams say something and then wait for `go`."""

    def __init__(self):
        super().__init__()
        self.go = asyncio.Event()
        self.ended = 0

    snapshot = live_update = FakePool.metrics_snapshot

    async def stream_warm(self, strategy=None):
        yield WarmProgress(1, "begin", total=1)
        await self.go.wait()
        async for moment in super().stream_warm(strategy):
            yield moment
        self.ended += 1

    async def stream_deploy(self, deployment, *, canary_s=None, new=None):
        yield Rollout(program="qa", version=3, previous=2, phase="canary", began_at=1.0)
        await self.go.wait()
        if self.fail_with is not None:
            raise self.fail_with
        yield await self.deploy(deployment, canary_s=canary_s)
        self.ended += 1


class Connection:
    """One request over ASGI whose answer is looked at while it comes."""

    def __init__(self, app, method, path, *headers, reads=True):
        self.requests = ConnectionRequests()
        body = b"" if method == "GET" else json.dumps({"inputs": {}} if "stream" in path else {}).encode()
        if path.endswith("/versions"):
            body = json.dumps(SPEC).encode()
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [
                (b"accept", b"text/event-stream"),
                (b"content-type", b"application/json"),
                (b"host", b"localhost"),
                *headers,
            ],
            SCOPE_KEY: self.requests,
        }
        self.sent = []
        self.begun = asyncio.Event()
        self._reads = reads
        self.task = asyncio.create_task(app(self.scope, self._receive(body), self._send))

    @staticmethod
    def _receive(body):
        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        return receive

    async def _send(self, message):
        if self.sent and not self._reads:
            await asyncio.Event().wait()
        self.sent.append(message)
        self.begun.set()

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def text(self):
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    @property
    def last(self):
        """The name and data of the last event."""
        block = [part for part in self.text.split("\n\n") if "event: " in part][-1]
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        return lines["event"], json.loads(lines["data"])

    async def leave(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class World:
    """A service whose time and whose looks at the open streams are told by the test."""

    def __init__(self, tmp_path, *, most=100, each=100, **settings):
        self.file, self.now, self.looks = tmp_path / "tokens.yaml", time.time(), asyncio.Queue()
        self.text, self.token = new_token("root", "admin", "A" * 43, "0000000a", expires_at=self.now + 100)
        self.keep(self.token)
        self.pool = Lasting()
        ticks = iter(range(1_000_000))
        source = TokenSource(self.file, clock=lambda: float(next(ticks)))
        self.security = Security(source, wall=lambda: self.now)
        self.security.streams = OpenStreams(
            most, each, tokens=source, wall=lambda: self.now, sleep=lambda _: self.looks.get()
        )
        self.app = served(self.pool, security=self.security, settings=Settings(heartbeat_s=0.01, **settings))
        self.app._console.dashboard.logins._wall = lambda: self.now

    def keep(self, *tokens):
        write(self.file, list(tokens))

    def changed(self, **fields):
        facts = {name: getattr(self.token, name) for name in Token.__struct_fields__}
        return Token(**(facts | fields))

    async def open(self, method="GET", path=EVENTS, *headers, **options):
        bearer = (b"authorization", f"Bearer {self.text}".encode())
        connection = Connection(self.app, method, path, bearer, *headers, **options)
        await connection.begun.wait()
        return connection

    async def log_in(self):
        """The cookie of a login."""
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            headers = {"x-dspool-csrf": "login"}
            answer = await http.post("/dashboard/login", json={"token": self.text}, headers=headers)
            return answer.headers["set-cookie"].split(";")[0].encode()

    def look(self):
        self.looks.put_nowait(None)


def test_every_route_that_streams_is_among_those_looked_at():
    assert len(STREAMS) >= 6
    assert {"/v1/pools/default/live", EVENTS} <= {path for _, path in STREAMS}


@pytest.mark.parametrize(("method", "path"), STREAMS)
async def test_a_stream_ends_when_its_token_is_revoked(tmp_path, method, path):
    world = World(tmp_path)
    stream = await world.open(method, path)
    assert stream.status == 200
    world.keep()
    world.look()
    await asyncio.wait_for(stream.task, 60)
    name, data = stream.last
    assert (name, data["code"]) == ("error", "unauthenticated")
    assert stream.sent[-1].get("more_body", False) is False
    world.pool.go.set()
    await until(lambda: len(world.security.streams) == 0)


@pytest.mark.parametrize(
    "change",
    [
        {"role": "caller"},
        {"name": "somebody"},
        {"sha256": "0" * 64},
        {"expires_at": 1.0},
    ],
)
async def test_a_stream_ends_when_its_token_is_another_one(tmp_path, change):
    world = World(tmp_path)
    stream = await world.open()
    world.keep(world.changed(**change))
    world.look()
    await asyncio.wait_for(stream.task, 60)
    assert stream.last[1]["code"] == "unauthenticated"


async def test_a_stream_ends_when_its_token_expires(tmp_path):
    world = World(tmp_path)
    stream = await world.open()
    world.now += 99
    world.look()
    await until(world.looks.empty)
    assert not stream.task.done()
    world.now += 1
    world.look()
    await asyncio.wait_for(stream.task, 60)


async def test_a_stream_ends_when_its_login_does(tmp_path):
    world = World(tmp_path)
    world.keep(world.changed(expires_at=None))
    cookie = await world.log_in()
    stream = Connection(world.app, "GET", "/v1/pools/default/live", (b"cookie", cookie))
    await stream.begun.wait()
    assert stream.status == 200
    world.now += 3601
    world.look()
    await asyncio.wait_for(stream.task, 60)
    assert stream.last[1]["code"] == "unauthenticated"


async def test_a_stream_goes_on_while_its_token_is_what_it_was(tmp_path):
    world = World(tmp_path)
    stream = await world.open()
    world.keep(world.changed(weight=2.0, expires_at=None), world.changed(id="0000000b"))
    for _ in range(3):
        world.look()
    await until(world.looks.empty)
    assert not stream.task.done()
    await stream.leave()
    world.look()
    await until(lambda: world.security.streams._watching.done())


async def test_who_does_not_read_does_not_keep_a_stream_that_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("dspool_serve.http.event_stream.CLOSE_S", 0.01)
    world = World(tmp_path)
    stream = await world.open(reads=False)
    world.keep()
    world.look()
    await asyncio.wait_for(asyncio.gather(stream.task, return_exceptions=True), 60)
    assert len(world.security.streams) == 0


# --- how many ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), STREAMS)
async def test_one_stream_too_many_is_a_429_and_costs_the_pool_nothing(tmp_path, method, path):
    world = World(tmp_path, each=2)
    held = [await world.open() for _ in range(2)]
    await until(lambda: len(world.pool.asked) == 4)  # the newest, and then news
    refused = await world.open(method, path)
    await refused.task
    assert refused.status == 429
    assert json.loads(refused.text)["code"] == "rate_limited"
    assert len(world.pool.asked) == 4
    await held[0].leave()
    again = await world.open()
    assert again.status == 200
    for stream in (held[1], again):
        await stream.leave()
    assert len(world.security.streams) == 0


async def test_all_together_have_a_bound_too(tmp_path):
    world = World(tmp_path, most=1)
    held = await world.open()
    assert (await world.open()).status == 429
    await held.leave()


async def test_a_refused_stream_takes_no_place(tmp_path):
    world = World(tmp_path, each=1)
    for _ in range(3):
        assert (await world.open("GET", EVENTS.replace("default", "none"))).status == 404
    assert len(world.security.streams) == 0


async def test_a_key_of_a_stream_that_was_one_too_many_may_be_tried_again(tmp_path):
    world = World(tmp_path, each=1)
    held = await world.open()
    assert (await world.open("POST", DEPLOY, (b"idempotency-key", b"k"))).status == 429
    assert world.pool.keys == {}
    await held.leave()


# --- what goes on -----------------------------------------------------------------------------------


async def settled(pool):
    await until(lambda: all(answer is not None for *_, answer in pool.keys.values()))
    ((_, _, answer),) = pool.keys.values()
    return answer.status, answer.body.decode()


@pytest.mark.parametrize("end", ["client", "revoked", "server"])
async def test_a_deployment_whose_listener_left_is_remembered_as_it_ended(tmp_path, end):
    world = World(tmp_path)
    stream = await world.open("POST", DEPLOY, (b"idempotency-key", b"k"))
    if end == "client":
        await stream.leave()
    elif end == "revoked":
        world.keep()
        world.look()
    else:
        stream.requests.server_stops()
    await asyncio.wait_for(asyncio.gather(stream.task, return_exceptions=True), 60)
    assert world.pool.ended == 0
    world.pool.go.set()
    status, body = await settled(world.pool)
    assert status == 200
    assert body.endswith('event: final\ndata: {"program":"qa","version":3}\n\n')
    assert "cancelled" not in body
    assert "unauthenticated" not in body
    await until(lambda: len(world.security.streams) == 0)


async def test_a_deployment_that_failed_after_its_listener_left_is_remembered_as_failed(tmp_path):
    world = World(tmp_path)
    stream = await world.open("POST", DEPLOY, (b"idempotency-key", b"k"))
    await stream.leave()
    world.pool.fail_with = Conflict("it changes nothing")
    world.pool.go.set()
    _, body = await settled(world.pool)
    assert '"code":"conflict"' in body.rsplit("event: error", 1)[1]


async def test_a_warm_up_whose_listener_left_is_remembered_as_it_ended(tmp_path):
    world = World(tmp_path)
    stream = await world.open("POST", "/v1/pools/default/warm", (b"idempotency-key", b"k"))
    await stream.leave()
    world.pool.go.set()
    assert "event: final" in (await settled(world.pool))[1]


# --- the server stops -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [EVENTS, "/v1/pools/default/live"])
async def test_a_stream_without_an_end_ends_with_its_server_and_is_no_error(tmp_path, path):
    world = World(tmp_path)
    stream = await world.open("GET", path)
    stream.requests.server_stops()
    await asyncio.wait_for(stream.task, 60)
    assert "event: error" not in stream.text
    assert stream.requests.on_stop == []


@pytest.mark.parametrize("path", [DEPLOY, "/v1/pools/default/warm"])
async def test_one_that_tells_of_work_says_that_the_work_goes_on(tmp_path, path):
    world = World(tmp_path)
    stream = await world.open("POST", path)
    stream.requests.server_stops()
    await asyncio.wait_for(stream.task, 60)
    name, data = stream.last
    assert (name, data["code"]) == ("error", "pool_not_ready")
    world.pool.go.set()
    await until(lambda: world.pool.ended == 1)


async def test_the_stream_of_a_program_is_let_run_to_its_end(tmp_path):
    world = World(tmp_path)
    stream = await world.open("POST", "/v1/pools/default/programs/slow/stream")
    stream.requests.server_stops()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not stream.task.done()
    await stream.leave()


# --- where it goes on -------------------------------------------------------------------------------


async def test_a_client_that_comes_back_goes_on_where_it_was_although_its_address_says_since(tmp_path):
    world = World(tmp_path)
    stream = Connection(
        world.app,
        "GET",
        EVENTS,
        (b"authorization", f"Bearer {world.text}".encode()),
        (b"last-event-id", b"7"),
    )
    stream.scope["query_string"] = b"since=2"
    await stream.begun.wait()
    assert world.pool.asked[0] == {"since": 7}
    await stream.leave()


async def test_a_place_that_is_no_number_is_refused(tmp_path):
    world = World(tmp_path)
    transport = httpx.ASGITransport(app=world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        headers = {"authorization": f"Bearer {world.text}", "last-event-id": "x"}
        assert_problem(await http.get(EVENTS, headers=headers), 422, "invalid_request")
