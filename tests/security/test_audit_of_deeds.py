"""Every route that changes something is in the audit log once for each request, with how it really ended."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from dspool.core.lifecycle.canary import ROLLED_BACK
from dspool.errors import Conflict, ProgramError
from dspool_console.dashboard import DASHBOARD
from dspool_serve.api import ROUTES
from dspool_serve.http.routing import Route
from tests.security.test_audit import World
from tests.security.test_streams_end_with_the_right import DEPLOY, SPEC, Lasting
from tests.unit.http_doubles import FakePool, until

BODIES = {
    "/programs/{program}/versions": SPEC,
    "/resize": {"size": 1},
    "/lm": {"profile": "m"},
    "/sessions/{session}/programs/{program}": SPEC,
    "/execute": {"inputs": {}},
    "/stream": {"inputs": {}},
    "/variables/{variable}": {"value": 1},
    "/execute_code": {"code": "1"},
    "/silence": {"reason": "moving", "duration_s": 600},
}
"""What a route needs, by the end of its path; the others take nothing."""
DOORS = {"/dashboard/login", "/dashboard/logout"}
EVENTS = {"accept": "text/event-stream"}


def changes(route: Route) -> bool:
    return route.method not in ("GET", "HEAD")


ADMINS = [route for route in (*ROUTES, *DASHBOARD) if changes(route) and route.role == "admin"]
OVER_OTHERS = [
    route for route in ROUTES if changes(route) and route.role != "admin" and "{session}" in route.path
]
STREAMS = [route for route in ADMINS if route.stream]


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


def asked(route: Route) -> tuple[str, str, bytes]:
    names = {"{pool}": "default", "{program}": "qa", "{session}": "ada%2Fs", "{worker}": "default-w0-abcdef"}
    names |= {"{alert}": "DspoolErrorRate", "{operation}": "runs"}
    path = route.path
    for name, value in names.items():
        path = path.replace(name, value)
    path = path.replace("{", "").replace("}", "")
    body = next((body for end, body in BODIES.items() if route.path.endswith(end)), {})
    return route.method, path, json.dumps(body).encode() if route.takes is not None else b""


class Deeds(FakePool):
    """A pool that waits for `go` before it does what an operator asks, and fails of it if told so."""

    metrics_snapshot = snapshot = live_update = FakePool.metrics_snapshot

    def __init__(self) -> None:
        super().__init__()
        self.go, self.begun = asyncio.Event(), asyncio.Event()
        self.go.set()
        self.known_sessions["ada/s"] = self.known_sessions["ada"]

    async def _first(self) -> None:
        self.begun.set()
        await self.go.wait()
        if self.fail_with is not None:
            raise self.fail_with


def _waiting(name: str) -> None:
    does = getattr(FakePool, name)

    async def first(self, *args, **options):
        await self._first()
        return await does(self, *args, **options)

    async def first_of_stream(self, *args, **options):
        await self._first()
        async for one in does(self, *args, **options):
            yield one

    setattr(Deeds, name, first_of_stream if name.startswith("stream") else first)


for _name in (
    "run", "stream", "deploy", "stream_deploy", "rollback", "resize", "pause", "resume", "drain", "restart",
    "stream_warm", "end_session", "create_session", "silence_alert", "cancel",
):  # fmt: skip
    _waiting(_name)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, pool=Deeds())


async def send(world, route, **headers):
    method, path, body = asked(route)
    json_headers = {"content-type": "application/json"} if body else {}
    async with world.http("root") as http:
        return await http.request(method, path, content=body, headers=json_headers | headers)


def outcome(records):
    return [(one["event"], one.get("status"), one.get("problem"), one["principal"]) for one in records]


@pytest.mark.parametrize("route", [*ADMINS, *OVER_OTHERS], ids=named)
async def test_what_changes_something_is_written_once_as_done(world, route):
    answer = await send(world, route)
    assert answer.status_code < 300, answer.text
    (record,) = world.records()
    assert outcome([record]) == [("done", answer.status_code, None, "root")]
    assert (record["route"], record["method"]) == (route.path, route.method)


@pytest.mark.parametrize("route", [*ADMINS, *OVER_OTHERS], ids=named)
async def test_what_is_refused_is_written_once_as_failed(world, route):
    world.pool.fail_with = Conflict("not now")
    answer = await send(world, route)
    assert answer.status_code == 409, answer.text
    assert outcome(world.records()) == [("failed", 409, "conflict", "root")]


@pytest.mark.parametrize("route", ADMINS, ids=named)
async def test_a_defect_is_written_once_as_failed(world, route):
    world.pool.fail_with = RuntimeError("a defect")
    assert (await send(world, route)).status_code == 500
    assert outcome(world.records()) == [("failed", 500, "internal_error", "root")]


@pytest.mark.parametrize("route", ADMINS, ids=named)
async def test_what_goes_on_without_its_client_is_written_as_it_ended(world, route):
    world.pool.go.clear()
    headers = EVENTS if route.stream else {}
    request = asyncio.create_task(send(world, route, **headers))
    await world.pool.begun.wait()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await world.audit.written()
    assert world.file.read_text() == ""
    world.pool.go.set()
    while not world.file.read_text():  # noqa: ASYNC110 - the thread of the log tells nobody
        await asyncio.sleep(0)
    assert [one[0] for one in outcome(world.records())] == ["done"]
    await until(lambda: not world.app._security.streams)


@pytest.mark.parametrize("headers", [{}, EVENTS], ids=["json", "events"])
async def test_a_version_that_its_canary_refused_was_rolled_back(world, headers):
    why = {"reason": "error rate 60.0%, before 1.0%", ROLLED_BACK: True}
    world.pool.fail_with = ProgramError("version 3 of qa was rolled back", **why)
    route = next(route for route in ADMINS if route.path.endswith("/versions"))
    assert (await send(world, route, **headers)).status_code == 500
    (record,) = world.records()
    assert (record["event"], record["reason"]) == ("rolled_back", "error rate 60.0%, before 1.0%")


@pytest.mark.parametrize("route", [route for route in ADMINS if route.method == "POST"], ids=named)
async def test_an_answer_that_was_kept_is_not_a_second_deed(world, route):
    for _ in range(2):
        answer = await send(world, route, **{"idempotency-key": "k"})
        assert answer.status_code < 300
    assert answer.headers["idempotency-replayed"] == "true"
    assert [one[0] for one in outcome(world.records())] == ["done"]


async def test_a_deployment_by_events_with_a_key_is_remembered_as_it_ended_though_nobody_listened(tmp_path):
    world = World(tmp_path, pool=Lasting())
    stream = await world.open("POST", DEPLOY, (b"idempotency-key", b"k"))
    await stream.leave()
    world.pool.go.set()
    await until(lambda: world.pool.ended == 1 and all(kept[2] for kept in world.pool.keys.values()))
    async with world.http("root") as root:
        answer = await root.post(DEPLOY, json=SPEC, headers={**EVENTS, "idempotency-key": "k"})
    assert (answer.status_code, answer.headers["idempotency-replayed"]) == (200, "true")
    assert "event: final" in answer.text
    assert [one[0] for one in outcome(world.records())] == ["done"]


async def test_nothing_that_only_reads_is_written(world):
    async with world.http("root") as root:
        for route in (*ROUTES, *DASHBOARD):
            if not changes(route) and "stream" not in route.path and not route.path.endswith("/live"):
                path = asked(route._replace(path=route.path.replace("{session}", "own")))[1]
                await root.get(path)
        await root.head("/v1/audit")
    assert world.records() == []


async def test_who_logs_out_is_written_as_who_logs_in_is(world):
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=world.app), base_url="http://localhost"
    ) as browser:
        word = {"x-dspool-csrf": "login"}
        await browser.post("/dashboard/login", json={"token": world.texts["rea"]}, headers=word)
        for _ in range(2):
            assert (await browser.post("/dashboard/logout", json={}, headers=word)).status_code == 204
    written = [(one["event"], one["principal"], one["path"]) for one in world.records()]
    assert written == [("done", "rea", "/dashboard/login"), ("done", "rea", "/dashboard/logout")]


def test_no_route_that_changes_something_is_left_out():
    callers = {named(route) for route in ROUTES if changes(route) and route.role == "caller"}
    doors = {route.path for route in (*ROUTES, *DASHBOARD) if changes(route) and route.role is None}
    total = sum(map(changes, (*ROUTES, *DASHBOARD)))
    assert doors == DOORS
    assert total == len(callers) + len(ADMINS) + len(doors), "a reader changes something"
