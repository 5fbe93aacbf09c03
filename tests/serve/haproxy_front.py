"""Serve's HAProxy with our script in its place, in front of a replica that tells what reached it. No Ray."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess

import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from dspool_serve.ingress import haproxy

needs_haproxy = pytest.mark.skipif(
    haproxy.binary() is None, reason="Ray Serve brings no HAProxy for this system"
)

# The lines of Serve's template that the script looks for, around one backend.
TEMPLATE = """global
    log {log} local0 info
    maxconn {most}
    stats socket {admin} level admin
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    log global
    option httplog
    errorfile 502 {of_serve}
    errorfile 503 {of_serve}
    errorfile 504 {of_serve}
frontend prometheus
    bind :{metrics}
    mode http
frontend http_frontend
    bind 127.0.0.1:{port}
{routes}
backend replicas
    server one 127.0.0.1:{backend}
"""
ALL_TO_IT = "    default_backend replicas"
[OF_NONE] = re.findall(r"^backend default_backend\n.*", HAPROXY_CONFIG_TEMPLATE, re.MULTILINE)
"""What Serve's template does with a path of no application."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    home = tmp_path_factory.mktemp("tls")
    key, cert = home / "key.pem", home / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    key.chmod(0o600)
    return cert, key


class Replica:
    """Answers with the headers it got; below `/endless` without end; below `/held` when it is `let_go`."""

    def __init__(self):
        self.seen = []
        """The request lines that reached it."""
        self.let_go = asyncio.Event()
        self.left = asyncio.Event()
        """One who asked for an endless answer is gone."""

    async def __call__(self, reader, writer):
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()

    async def _answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        self.seen.append(lines[0])
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        if size := int(headers.get("content-length", 0)):
            await reader.readexactly(size)
        if "/held" in lines[0]:
            await self.let_go.wait()
        if "/cut-off" in lines[0]:
            return
        if found := re.search(r"/plain/(\d+)", lines[0]):
            head = b"HTTP/1.1 %b Of Serve\r\ncontent-type: text/plain; charset=utf-8\r\n" % found[1].encode()
            writer.write(head + b"content-length: 6\r\nconnection: close\r\n\r\nsecret")
            await writer.drain()
            return
        body = json.dumps(headers).encode()
        if "/endless" in lines[0]:
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
            while True:
                writer.write(bytes(65536))
                await writer.drain()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
        )
        await writer.drain()


class Front:
    """HAProxy, started as Serve would, in front of a `Replica`."""

    def __init__(self, directory, *, log=None, routes=ALL_TO_IT, **options):
        self.directory = directory
        self.log, self.routes = log, routes
        self.options = options

    async def __aenter__(self):
        self.replica = Replica()
        self.replicas = await asyncio.start_server(self.replica, "127.0.0.1", 0)
        self.held = haproxy.HeldPorts()
        self.port = self.held.hold(self.options.get("host", "127.0.0.1"))
        variables = haproxy.environment(self.directory / "h", self.held, **self.options)
        self.metrics_port = int(variables["RAY_SERVE_HAPROXY_METRICS_PORT"])
        of_serve = self.directory / "500.http"
        of_serve.write_bytes(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 6\r\n\r\nserve!")
        self.config = self.directory / "haproxy.cfg"
        self.config.write_text(
            TEMPLATE.format(
                metrics=self.metrics_port,
                most=variables["RAY_SERVE_HAPROXY_MAXCONN"],
                log=self.log or variables["RAY_SERVE_HAPROXY_LOG_TARGET"],
                admin=self.directory / "admin.sock",
                port=self.port,
                routes=self.routes,
                of_serve=of_serve,
                backend=self.replicas.sockets[0].getsockname()[1],
            )
        )
        script = variables["RAY_SERVE_HAPROXY_BINARY_PATH"]
        check = [script, "-c", "-f", str(self.config)]
        checked = await asyncio.to_thread(subprocess.run, check, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        self.process = await asyncio.create_subprocess_exec(
            script, "-db", "-dR", "-f", str(self.config), stderr=subprocess.DEVNULL
        )
        await answering(self.port, "::1" if self.options.get("host") == "::1" else "127.0.0.1")
        return self

    async def __aexit__(self, *_):
        self.process.kill()
        await self.process.wait()
        self.replicas.close()
        self.held.release()

    def table(self, name):
        """HAProxy's table of addresses."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.directory / "admin.sock"))
            admin.sendall(f"show table {name}\n".encode())
            return b"".join(iter(lambda: admin.recv(65536), b"")).decode()


async def answering(port, host="127.0.0.1"):
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return
        except OSError:
            await asyncio.sleep(0.05)
    raise AssertionError("HAProxy did not start")
