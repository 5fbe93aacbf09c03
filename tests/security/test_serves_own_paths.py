"""What Ray Serve answers by itself, beside the application, tells nobody more than that it lives."""

from __future__ import annotations

import httpx
import pytest
import uvicorn
from ray.serve._private.http_util import validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path
from uvicorn.config import HTTP_PROTOCOLS

from dspool.corrections import uvicorn_connections
from dspool_serve.ingress import haproxy
from dspool_serve.ingress.middleware import CALLBACK


async def serves_own(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@pytest.fixture(autouse=True)
def uvicorn_as_it_was(monkeypatch):
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    monkeypatch.setattr(uvicorn.Server, "startup", uvicorn.Server.startup)


def wrapped(app):
    for one in validate_http_proxy_callback_return(call_function_from_import_path(CALLBACK)):
        app = one.cls(app, *one.args, **one.kwargs)
    return app


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/-/routes", 404),
        ("/%2d/routes", 404),
        ("/-/x", 404),
        ("/-/healthz", 200),
        ("/v1/pools", 200),
        ("/", 200),
    ],
)
async def test_a_replica_and_the_fallback_proxy_tell_only_that_they_live(path, status):
    transport = httpx.ASGITransport(app=wrapped(serves_own))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        answer = await http.get(path)
    assert answer.status_code == status
    if status == 404:
        assert answer.json()["code"] == "not_found"


def test_every_http_server_of_a_serve_of_ours_is_told_so(tmp_path):
    assert haproxy.environment(tmp_path / "h")["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == CALLBACK


def test_serves_own_proxy_gives_up_who_is_silent_and_a_replica_keeps_all_of_its_corrections(monkeypatch):
    HTTP_PROTOCOLS["auto"] = "uvicorn.protocols.http.auto:AutoHTTPProtocol"
    installed = []
    monkeypatch.setattr(uvicorn_connections, "install", installed.append)
    call_function_from_import_path(CALLBACK)
    assert installed == [["uvicorn-silence"]]
    HTTP_PROTOCOLS["auto"] = "dspool.corrections.uvicorn_connections:Protocol"
    call_function_from_import_path(CALLBACK)
    assert len(installed) == 1


def test_a_silent_connection_ends_in_a_minute_where_our_rules_are_not_in_front():
    assert haproxy.joined_environment({})["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == "60"
