"""Where the service may listen."""

from __future__ import annotations

import errno
import ipaddress
import socket

from dspool.errors import ConfigError, Conflict, NotAllowed


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
    # `::ffff:127.0.0.1` is loopback, and Python does not say so.
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_loopback and not tokens:
        raise NotAllowed(
            f"not listening on {host}: anybody who reaches it could run programs, and there are no access tokens; "
            "make one (`dspool token new`) and set service.tokens_file, or use 127.0.0.1",
            host=host,
        )
    return str(address)


def checked_port(host: str, port: int) -> int:
    """`port`, free; or for 0 a free one.

    Raises:
        Conflict: something listens there already.
        NotAllowed: the system does not let us.
        ConfigError: this machine has no such address.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the server will: connections of a service that has just ended do not count as "in use".
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as failed:
            if failed.errno == errno.EADDRINUSE:
                raise Conflict(
                    f"port {port} on {host} is in use; stop what listens there, or choose another with --port "
                    "(--port 0 takes a free one)",
                    port=port,
                ) from failed
            if failed.errno == errno.EACCES:
                raise NotAllowed(
                    f"the system does not allow listening on port {port}; choose one above 1023 with --port",
                    port=port,
                ) from failed
            raise ConfigError(
                f"cannot listen on {host}: {failed.strerror}; choose another --host"
            ) from failed
        return int(probe.getsockname()[1])
