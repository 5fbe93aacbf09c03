"""What our script makes of the configuration that Serve writes, on the real HAProxy and without Ray."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from dspool.corrections import haproxy_script
from dspool.errors import ConfigError
from dspool_serve.ingress import haproxy
from tests.serve.haproxy_front import OF_NONE, Front, answering, certificate, needs_haproxy

pytestmark = [pytest.mark.serve, needs_haproxy]
__all__ = ["certificate"]


async def test_the_deadline_reaches_the_replica_under_a_name_that_serve_leaves_alone(tmp_path):
    async with Front(tmp_path) as front, httpx.AsyncClient(trust_env=False) as http:
        url = f"http://127.0.0.1:{front.port}/"
        seen = (await http.get(url, headers={"x-request-timeout-seconds": "2.5"})).json()
        assert seen["x-dspool-timeout-seconds"] == "2.5"
        assert "x-request-timeout-seconds" not in seen
        assert "x-dspool-timeout-seconds" not in (await http.get(url)).json()


@pytest.mark.parametrize(
    ("known", "status", "code"),
    [("", 503, "rejected"), ("    use_backend replicas if { path_beg /known/ }\n", 404, "not_found")],
    ids=["just started", "of no application"],
)
async def test_what_no_application_is_known_for_is_a_problem_and_one_for_later_where_none_is_known_at_all(
    tmp_path, known, status, code
):
    routes = f"{known}    default_backend default_backend\n{OF_NONE}"
    async with Front(tmp_path, routes=routes) as front, httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"http://127.0.0.1:{front.port}/v1/pools")
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert ("retry-after" in answer.headers) == (status == 503)
        if known:
            assert (await http.get(f"http://127.0.0.1:{front.port}/known/path")).status_code == 200


@pytest.mark.parametrize(
    ("of_serve", "status", "code"),
    [
        (404, 404, "not_found"),
        (408, 504, "deadline_exceeded"),
        (500, 502, "ingress_failed"),
        (503, 503, "rejected"),
    ],
)
async def test_what_serve_says_in_plain_text_is_a_problem(tmp_path, of_serve, status, code):
    async with Front(tmp_path) as front, httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"http://127.0.0.1:{front.port}/plain/{of_serve}")
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert "secret" not in answer.text
        assert (await http.get(f"http://127.0.0.1:{front.port}/plain/200")).text == "secret"


async def test_where_no_replica_takes_or_ends_a_request_it_is_a_problem(tmp_path):
    async with Front(tmp_path) as front, httpx.AsyncClient(trust_env=False) as http:
        url = f"http://127.0.0.1:{front.port}"
        cut_off = await http.get(f"{url}/cut-off")
        front.replicas.close()
        refused = await http.get(url)
    for answer, status, code in ((cut_off, 502, "ingress_failed"), (refused, 503, "rejected")):
        assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_the_changes_are_made_once_however_often_it_is_started(tmp_path):
    async with Front(tmp_path) as front:
        text = front.config.read_text()
        assert text.count("http-request wait-for-body") == 2
        assert text.count("bind 127.0.0.1:") == 2


async def test_nobody_gets_a_port_that_was_chosen_for_haproxy_before_it_opens_it(tmp_path):
    held = haproxy.HeldPorts()
    chosen = held.hold()
    # Who connects somewhere, or listens anywhere, gets a port from the system: never this one.
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", chosen))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", chosen)
    held.release()
    async with Front(tmp_path) as front:
        # It opened both of its own although they are held, and one who comes second is refused as by any server.
        for port in (front.port, front.metrics_port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with pytest.raises(OSError, match="in use"):
                    other.bind(("127.0.0.1", port))


def test_a_serve_on_anothers_cluster_gets_ports_of_its_own_unless_the_environment_says_which():
    first, second = haproxy.joined_environment({}), haproxy.joined_environment({})
    ports = [int(value) for one in (first, second) for name, value in one.items() if name.endswith("_PORT")]
    assert len(set(ports)) == 6
    # Below what the system gives away, above Ray's and below Serve's.
    assert all(20_000 <= port < 30_000 for port in ports)
    given = {"RAY_SERVE_HAPROXY_STATS_PORT": "8404", "RAY_SERVE_HAPROXY_MAXCONN": "9", "HOME": "/"}
    told = haproxy.joined_environment(given)
    assert told["RAY_SERVE_HAPROXY_STATS_PORT"] == "8404"
    assert told["RAY_SERVE_HAPROXY_MAXCONN"] == "9"
    assert "HOME" not in told


PARENT = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"


async def test_a_parent_that_is_killed_takes_its_haproxy_along(tmp_path):
    async with Front(tmp_path) as front:
        port, metrics_port = haproxy.free_ports(2)
        config = tmp_path / "second.cfg"
        text = front.config.read_text().replace(f":{front.metrics_port}", f":{metrics_port}")
        config.write_text(text.replace(f":{front.port}", f":{port}"))
        command = [sys.executable, "-c", PARENT, str(tmp_path / "h" / "haproxy"), "-db", "-f", str(config)]
        parent = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
        await answering(port)
        (started,) = psutil.Process(parent.pid).children(recursive=True)
        assert started.name() == "haproxy"
        assert started.pid in haproxy_script.pids(tmp_path / "h")
        parent.kill()
        await parent.wait()
        await asyncio.to_thread(started.wait, 10)


SLOW_HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"
SLOW_BODY = SLOW_HEAD + b"content-length: 9\r\n\r\nabc"


@pytest.mark.parametrize("part", [SLOW_HEAD, SLOW_BODY])
async def test_a_request_that_comes_too_slowly_is_a_408_and_meets_no_replica(tmp_path, part):
    async with Front(tmp_path, request_s=1.0) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        began = time.monotonic()
        writer.write(part)
        answer = await asyncio.wait_for(reader.read(), 60)
        assert time.monotonic() - began > 0.8
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        if part == SLOW_BODY:
            # What is wrong with the head itself HAProxy answers in its own words, whatever it is told.
            assert b"application/problem+json" in head
            assert json.loads(body)["code"] == "request_too_slow"
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"\x00\xff\x16\x03\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"".join(b"h%d: v\r\n" % n for n in range(2000)) + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbig: " + b"v" * 40_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused_before_any_replica(tmp_path, sent):
    async with Front(tmp_path) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 60)
        assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
        writer.close()


async def test_with_a_certificate_it_speaks_tls_and_nothing_older_than_1_2(tmp_path, certificate):
    cert, key = certificate
    async with Front(tmp_path, tls=(cert, key)) as front:
        trust = ssl.create_default_context(cafile=str(cert))
        async with httpx.AsyncClient(trust_env=False, verify=trust) as http:
            answer = await http.get(f"https://127.0.0.1:{front.port}/")
        assert answer.status_code == 200
        assert answer.headers["strict-transport-security"].startswith("max-age=")
        async with httpx.AsyncClient(trust_env=False) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(f"http://127.0.0.1:{front.port}/", timeout=5)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, OSError)):
            await asyncio.open_connection("127.0.0.1", front.port, ssl=old)
        pem = front.directory / "h" / "tls.pem"
        assert pem.stat().st_mode & 0o777 == 0o600


def test_a_certificate_that_does_not_fit_its_key_or_a_key_that_all_can_read_is_refused(tmp_path, certificate):
    cert, key = certificate
    other = tmp_path / "other.pem"
    other.write_text("nonsense")
    for pair in ((cert, other), (other, key), (cert, tmp_path / "none.pem")):
        with pytest.raises(ConfigError):
            haproxy.environment(tmp_path / "h", tls=pair)
    loose = tmp_path / "loose.pem"
    loose.write_bytes(key.read_bytes())
    os.chmod(loose, 0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        haproxy.environment(tmp_path / "h", tls=(cert, loose))


async def test_the_replica_learns_the_clients_address_from_haproxy_alone(tmp_path):
    header = haproxy.new_client_header()
    assert header != haproxy.new_client_header()
    async with (
        Front(tmp_path, client_header=header) as front,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        forged = {header: "203.0.113.1", "x-forwarded-for": "203.0.113.1"}
        seen = (await http.get(f"http://127.0.0.1:{front.port}/", headers=forged)).json()
        assert seen[header] == "127.0.0.1"
