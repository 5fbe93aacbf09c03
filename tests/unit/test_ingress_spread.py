"""On which nodes the ingress runs, and where its replicas listen."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from types import SimpleNamespace

import pytest
import uvicorn

from dspool.config import PoolConfig
from dspool.corrections import serve_replica
from dspool.errors import ConfigError
from dspool_serve.ingress import haproxy
from dspool_serve.ingress.spreading import HEAD, spread_of


def config(host: str = "127.0.0.1", per_node: int = 0, replicas: int | None = None) -> PoolConfig:
    ingress = {"per_node": per_node, **({} if replicas is None else {"replicas": replicas})}
    return PoolConfig(service={"host": host, "replicas": 2}, ingress=ingress)


@pytest.mark.parametrize(
    ("config", "nodes", "has_tokens", "spread"),
    [
        (config(), 1, False, (2, None, "HeadOnly", False, {})),
        (config(replicas=3), 1, True, (3, None, "HeadOnly", False, {})),
        (config(per_node=4), 1, True, (4, None, "HeadOnly", False, {})),
        # Nothing of it may be open to the network: all is on the node with the proxy.
        (config(), 3, False, (2, None, "HeadOnly", False, HEAD)),
        (config(), 3, True, (2, None, "HeadOnly", True, {})),
        (config("10.0.0.1"), 3, True, (2, None, "HeadOnly", True, {})),
        # They listen everywhere as it is.
        (config("0.0.0.0"), 3, True, (2, None, "HeadOnly", False, {})),
        (config("0.0.0.0", per_node=2), 3, True, (6, 2, "EveryNode", False, {})),
        (config("127.0.0.1", per_node=1), 3, True, (3, 1, "EveryNode", True, {})),
    ],
)
def test_replicas_are_where_a_proxy_finds_them(config, nodes, has_tokens, spread):
    assert tuple(spread_of(config, nodes=nodes, has_tokens=has_tokens)) == spread


def test_what_could_not_be_reached_or_by_anybody_is_refused():
    with pytest.raises(ConfigError, match="address of one node"):
        spread_of(config("10.0.0.1", per_node=1), nodes=3, has_tokens=True)
    with pytest.raises(ConfigError, match="no access tokens"):
        spread_of(config(per_node=1), nodes=3, has_tokens=False)


async def serve(app, options, *, event_loop=None):
    """As Serve's own, as far as it matters here."""
    listener = socket.socket()
    listener.bind((options.host, options.port))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    server.install_signal_handlers = lambda: None
    return asyncio.ensure_future(server.serve(sockets=[listener])), server


class Options(SimpleNamespace):
    def model_copy(self, update):
        return Options(**{**vars(self), **update})


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def status(host: str, port: int) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.split()[1].decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_a_replica_that_has_to_be_reached_listens_on_loopback_and_at_its_node_and_ends_with_both():
    replica = SimpleNamespace(start_asgi_http_server=serve, add_port_to_grpc_server=None)
    serve_replica.install(replica, "127.0.0.2", is_reachable=True)
    port = free_port()
    task, server = await replica.start_asgi_http_server(app, Options(host="10.9.9.9", port=port))
    await task.dspool_second
    assert [await status(host, port) for host in ("127.0.0.1", "127.0.0.2")] == ["204", "204"]
    server.should_exit = True
    await task
    for host in ("127.0.0.1", "127.0.0.2"):
        with pytest.raises(OSError, match=r"refused|failed"):
            await status(host, port)


async def test_a_port_that_somebody_has_at_the_node_is_no_port_at_all():
    replica = SimpleNamespace(start_asgi_http_server=serve, add_port_to_grpc_server=None)
    serve_replica.install(replica, "127.0.0.2", is_reachable=True)
    with socket.create_server(("127.0.0.2", 0)) as taken, pytest.raises(RuntimeError, match="Failed to bind"):
        await replica.start_asgi_http_server(app, Options(host="127.0.0.1", port=taken.getsockname()[1]))


def test_one_that_has_not_is_left_as_it_is():
    replica = SimpleNamespace(start_asgi_http_server=serve, add_port_to_grpc_server=None)
    serve_replica.install(replica, "127.0.0.2")
    assert replica.start_asgi_http_server is serve


def test_what_is_under_way_to_a_node_that_is_gone_ends_and_does_not_wait():
    variables = haproxy.joined_environment({})
    assert variables["RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S"] == "1"
    # Serve writes all of it into one line.
    assert variables["RAY_SERVE_HAPROXY_HEALTH_CHECK_DOWNINTER"].endswith(" on-marked-down shutdown-sessions")
    given = {"RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "9"}
    assert haproxy.joined_environment(given)["RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S"] == "9"


@pytest.mark.skipif(haproxy.binary() is None, reason="there is no HAProxy for this system")
def test_haproxy_takes_that_line(tmp_path):
    variables = haproxy.joined_environment({})
    inter, downinter = (
        variables[f"RAY_SERVE_HAPROXY_HEALTH_CHECK_{name}"] for name in ("INTER", "DOWNINTER")
    )
    file = tmp_path / "haproxy.cfg"
    file.write_text(
        "defaults\n  mode http\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\n"
        "frontend f\n  bind 127.0.0.1:8799\n  default_backend b\n"
        f"backend b\n  default-server downinter {downinter} fall 2 rise 2 inter {inter} check\n"
        "  server s 127.0.0.1:9 check observe layer4 error-limit 3 on-error mark-down\n"
    )
    done = subprocess.run([haproxy.binary(), "-c", "-f", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ends_after", [3, 1000])
async def test_a_replica_stays_and_is_healthy_until_its_time_is_over_or_the_service_ends(
    monkeypatch, ends_after
):
    now, seen, drained = 0.0, 0, []

    async def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Replica:
        async def _drain_behind_haproxy(self, least_s: float) -> None:
            drained.append((now, least_s))

        async def _dataplane_health_check(self) -> tuple[bool, str]:
            return False, "DRAINING"

    async def ends() -> bool:
        nonlocal seen
        seen += 1
        assert await staying._dataplane_health_check() == (True, "success")
        return seen >= ends_after

    monkeypatch.setattr(serve_replica, "asyncio", SimpleNamespace(sleep=pass_time))
    monkeypatch.setattr(serve_replica, "time", SimpleNamespace(monotonic=lambda: now))
    serve_replica.stay(SimpleNamespace(Replica=Replica, HEALTHY_MESSAGE="success"), ends)
    staying = Replica()
    assert not (await staying._dataplane_health_check())[0]
    await staying._drain_behind_haproxy(0.5)
    assert not (await staying._dataplane_health_check())[0]
    [(ended_at, least_s)] = drained
    assert least_s == 0.0
    if seen < ends_after:
        assert ended_at >= serve_replica.STAY_S
    else:
        assert ended_at < 2.0
