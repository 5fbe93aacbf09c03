"""What the kernel knows of a connection, and is told about it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}
"""With these a lost host shows after about ten seconds (by default after hours)."""

_TCP_INFO = struct.Struct("=8x16xI28xI")
"""Of Linux' `struct tcp_info` the segments that are not acknowledged, and milliseconds since the last that was."""


def unacknowledged_s(transport: asyncio.Transport | None) -> float | None:
    """For how long the other end's kernel has not acknowledged what was sent; 0: it has all. None: not known here."""
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        unacked, last_ack_ms = _TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return None
    return last_ack_ms / 1000 if unacked else 0.0


def keep_alive(sock: socket.socket | None) -> None:
    """Have it notice when the machine at the other end is gone."""
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
