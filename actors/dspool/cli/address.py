"""Where the service may listen."""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from dspool.causes import Obstacle, met
from dspool.config import ServiceConfig
from dspool.errors import ConfigError, NotAllowed
from dspool.tokens import TokenSource, from_environment


def checked_host(host: str, *, tokens: bool = False) -> str:
    """The IP address that `host` means; beyond loopback only if there are access `tokens`.

    Raises:
        NotAllowed: it is not loopback and there are no access tokens, so the network is kept out.
        ConfigError: not an address.
    """
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ConfigError(f"service.host must be an IP address or localhost, got {host!r}") from None
    if getattr(address, "scope_id", None):
        raise ConfigError(f"service.host must be an address without a scope id (`%...`), got {host!r}")
    # `::ffff:127.0.0.1` is loopback, and Python does not say so.
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_loopback and not tokens:
        raise NotAllowed(
            f"not listening on {host}: anybody who reaches it could run programs, and there are no access tokens; "
            "make one (`dspool token new`) and set service.tokens_file, or use 127.0.0.1",
            host=host,
        )
    return str(address)


def admitted_host(service: ServiceConfig, environ: Mapping[str, str]) -> tuple[str, int]:
    """The address that `service` is to listen on, and how many tokens let somebody in.

    Raises:
        ConfigError: the tokens cannot be read, or there are none where they should be.
        NotAllowed: an address beyond loopback without tokens.
    """
    tokens = len(TokenSource(service.tokens_file, from_environment(environ)))
    if service.tokens_file is not None and tokens == 0:
        raise ConfigError(
            f"{service.tokens_file} has no tokens: nobody could get in; make one with `dspool token new`",
            key="service.tokens_file",
        )
    return checked_host(service.host, tokens=tokens > 0), tokens


def checked_port(host: str, port: int) -> int:
    """`port`, free; or for 0 a free one.

    Raises:
        Conflict: something listens there already.
        NotAllowed: the system does not let us.
        ConfigError: this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # As the server will: connections of a service that has just ended do not count as "in use".
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as failed:
        raise _not_listening(failed, host, port).error() from failed


def _not_listening(failed: OSError, host: str, port: int) -> Obstacle:
    if failed.errno == errno.EADDRINUSE:
        return met("port_in_use", host=host, port=port)
    if failed.errno == errno.EACCES:
        return met("port_not_allowed", host=host, port=port)
    if ":" in host and not _has_ipv6():
        return met("no_ipv6", host=host)
    return met("no_such_address", host=host, why=failed.strerror)


def _has_ipv6() -> bool:
    """Whether any interface here has an address of IPv6."""
    try:
        return bool(Path("/proc/net/if_inet6").read_text().strip())
    except FileNotFoundError:
        return sys.platform != "linux" and socket.has_ipv6
