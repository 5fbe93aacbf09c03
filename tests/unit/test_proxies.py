"""Proxies of the environment: never between dspool and its own machine; an error says through which a call went."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from dspool.config import PoolConfig
from dspool.errors import ModelError, ModelUnreachable
from dspool.messages import JSON, Deployment, ExecuteProgram
from dspool.programs.sessions.host import CommandResult, SessionHost
from dspool.proxies import is_loopback, keep_loopback_direct, proxy_for
from dspool.remote.service import HttpService
from dspool.testing.lm_server import LMServer, Reply

ASKED = {"question": "Rome is big. What is big?"}
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        for spelling in (name, name.upper()):
            # Set first, so that what a test leaves there goes.
            monkeypatch.setenv(spelling, "")
            monkeypatch.delenv(spelling)


@pytest.fixture
def model() -> Iterator[LMServer]:
    with LMServer() as server:
        yield server


@pytest.fixture
def proxy() -> Iterator[LMServer]:
    """It answers for whatever it is asked to reach."""
    with LMServer(text="[[ ## answer ## ]]\nfrom the proxy\n\n[[ ## completed ## ]]") as server:
        yield server


def host_of(endpoint: str, **more: Any) -> SessionHost:
    profile = {"model": "openai/test", "endpoint": endpoint, "max_rate_limit_wait_s": 0, **more}
    host = SessionHost(PoolConfig(lm_profiles={"test": profile}))
    host.deploy(Deployment("ask", 1, spec={"signature": "question -> answer"}))
    return host


async def ran(host: SessionHost) -> CommandResult:
    return await host.run_async(ExecuteProgram("ask", ASKED), None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2", "[::1]"])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
async def test_a_model_on_this_machine_is_never_asked_through_a_proxy(
    proxy: LMServer, monkeypatch: pytest.MonkeyPatch, name: str, host: str
):
    monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    with LMServer(host="::1" if host == "[::1]" else "127.0.0.1" if host == "localhost" else host) as model:
        done = await ran(host_of(f"http://{host}:{model.port}/v1"))
        assert done.value["outputs"]["answer"] == "Rome is big."
        assert (proxy.requests, model.requests) == (0, 1)


async def test_neither_does_litellm(model: LMServer, proxy: LMServer, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("litellm")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    await ran(host_of(model.url, engine="litellm"))
    assert (proxy.requests, model.requests) == (0, 1)


async def test_a_model_elsewhere_is_asked_through_the_proxy_unless_no_proxy_names_it(
    proxy: LMServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", "intern.test")
    done = await ran(host_of("http://model.test:8/v1"))
    assert done.value["outputs"]["answer"] == "from the proxy"
    with pytest.raises(ModelUnreachable) as error:
        await ran(host_of("http://intern.test:8/v1"))
    assert "proxy" not in error.value.details
    assert proxy.requests == 1


async def test_an_error_names_the_proxy_and_no_password(proxy: LMServer, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("HTTP_PROXY", f"http://ada:pass@{place}")
    with pytest.raises(ModelUnreachable, match=f"through the proxy {place}") as unreachable:
        await ran(host_of("http://model.test/v1"))
    assert unreachable.value.proxy == place
    assert "pass" not in str(unreachable.value.to_wire())
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    proxy.script(Reply(status=407))
    with pytest.raises(ModelError, match="through the proxy"):
        await ran(host_of("http://other.test/v1"))


async def test_the_remote_pool_and_the_commands_ask_a_service_on_this_machine_directly(
    proxy: LMServer, model: LMServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    service = HttpService(f"http://127.0.0.1:{model.port}", timeout_s=10)
    try:
        assert (await service.get("/stats", dict[str, JSON]))["requests"] == 0
    finally:
        await service.close()


def test_what_no_proxy_says_stays():
    environ = {"HTTP_PROXY": "http://p:1", "NO_PROXY": "a.test, b.test"}
    keep_loopback_direct(["http://127.0.0.9:1/v1", "http://model.test/v1", None], environ)
    wanted = "a.test,b.test,localhost,127.0.0.1,::1,127.0.0.9"
    assert environ == {"HTTP_PROXY": "http://p:1", "NO_PROXY": wanted, "no_proxy": wanted}
    before = dict(environ)
    keep_loopback_direct((), environ)
    assert environ == before


@pytest.mark.parametrize("environ", [{}, {"NO_PROXY": "a"}, {"https_proxy": "http://p:1", "no_proxy": "*"}])
def test_an_environment_without_a_proxy_for_this_machine_is_left_alone(environ: dict[str, str]):
    before = dict(environ)
    keep_loopback_direct(["http://127.0.0.1:1"], environ)
    assert environ == before


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("Model.LocalHost.", True),
        ("127.255.0.1", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("128.0.0.1", False),
        ("localhost.test", False),
        ("127.0.0.1.test", False),
        ("", False),
    ],
)
def test_this_machine_has_these_names(host: str, local: bool):
    assert is_loopback(host) is local


def test_without_a_proxy_there_is_none():
    assert proxy_for("https://api.test/v1") is None
    assert proxy_for(None) is None
