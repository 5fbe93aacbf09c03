"""A request that HAProxy sends to a replica goes straight to the application, and the replica knows of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from dspool.corrections import serve_requests


class Counts:
    def __init__(self) -> None:
        self.now, self.seen = 0, []

    def inc_num_ongoing_requests(self, request) -> None:
        assert request.is_direct_ingress
        self.now += 1

    def dec_num_ongoing_requests(self, request) -> None:
        self.now -= 1


class Replica:
    """As much of Serve's as is used."""

    def __init__(self, application, *, prefix: str = "/", own_thread: bool = False) -> None:
        self._metrics_manager = Counts()
        self._user_callable_asgi_app = application
        self._user_callable_wrapper = SimpleNamespace(_run_user_code_in_separate_thread=own_thread)
        self._route_prefix = prefix
        self.served: list[str] = []

    async def _direct_ingress_asgi(self, scope, receive, send) -> None:
        self.served.append(scope["path"])


def request(path: str, kind: str = "http") -> dict[str, str]:
    return {"type": kind, "path": path}


async def started(replica: Replica):
    """What the server of `replica` was started with."""
    servers = []

    async def start_asgi_http_server(app, options, *, event_loop):
        servers.append(app)
        return options, event_loop

    module = SimpleNamespace(
        start_asgi_http_server=start_asgi_http_server,
        RequestMetadata=lambda **facts: SimpleNamespace(**facts),
        RequestProtocol=SimpleNamespace(HTTP="HTTP"),
    )
    serve_requests.install(module)
    assert await module.start_asgi_http_server(
        replica._direct_ingress_asgi, "options", event_loop="loop"
    ) == ("options", "loop")
    return servers[0]


async def test_it_is_under_way_while_the_application_runs_and_serve_does_nothing_around_it():
    under_way = []

    async def application(scope, receive, send):
        under_way.append(replica._metrics_manager.now)

    replica = Replica(application)
    server = await started(replica)
    await server(request("/v1/pools"), None, None)
    assert (under_way, replica._metrics_manager.now, replica.served) == ([1], 0, [])


async def test_one_whose_client_hung_up_is_under_way_no_longer_and_raises_nothing():
    async def application(scope, receive, send):
        await asyncio.sleep(3600)

    replica = Replica(application)
    server = await started(replica)
    task = asyncio.create_task(server(request("/v1/pools"), None, None))
    await asyncio.sleep(0)
    assert replica._metrics_manager.now == 1
    task.cancel()
    await task
    assert replica._metrics_manager.now == 0


async def test_one_that_fails_is_under_way_no_longer():
    async def application(scope, receive, send):
        raise ZeroDivisionError

    replica = Replica(application)
    server = await started(replica)
    with pytest.raises(ZeroDivisionError):
        await server(request("/v1/pools"), None, None)
    assert replica._metrics_manager.now == 0


@pytest.mark.parametrize(
    ("scope", "facts"),
    [
        (request("/-/healthz"), {}),
        (request("/v1/pools", "websocket"), {}),
        (request("/below/v1/pools"), {"prefix": "/below"}),
        (request("/v1/pools"), {"own_thread": True}),
    ],
)
async def test_serve_does_what_is_its_own(scope, facts):
    replica = Replica(None, **facts)
    server = await started(replica)
    await server(scope, None, None)
    assert replica.served == [scope["path"]]


async def test_all_goes_serves_way_where_the_correction_is_off(monkeypatch):
    monkeypatch.setenv("DSPOOL_CORRECTIONS", "-serve-lean-request")
    replica = Replica(None)
    server = await started(replica)
    assert server == replica._direct_ingress_asgi
