"""What a new worker process takes over from the one that Ray started, and how they talk over a Unix socket.

    shim                          parent                       child
     | ---- connect --------------> |
     | <--- ready ----------------- |       nothing is sent to a parent that hangs
     | ---- request, fds 0-2 -----> |
     |                              | ---- fork ------------> |
     | <--- started, its pid -------------------------------- |
     | ---- go ---------------------------------------------> |   never to two: Ray knows one process by this id
     | <--- going ------------------------------------------- |   else the child gave up before it heard it
     | <--- registered -------------------------------------- |   else the child died before Ray knew it

Either end may vanish or stall at any point. A child that hears no `go` in time exits; a shim that hears no `going`
starts the worker itself. So exactly one of both becomes the worker. The shim stays until Ray knows the child.
Standard library only: the shim imports this without site-packages.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import resource
import signal
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_LIMIT = 16 * 2**20
_CREDENTIALS = struct.Struct("3i")
_LENGTH = struct.Struct("!I")
_OOM = Path("/proc/self/oom_score_adj")
_LIMITS = ("RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_NPROC", "RLIMIT_AS", "RLIMIT_STACK")


class ForkRequest(NamedTuple):
    """Everything about a process that `exec` would keep."""

    argv: list[str]
    """The worker's program and its arguments."""
    environ: dict[str, str]
    cwd: str
    umask: int
    blocked: list[int]
    """Signals that Ray blocks in its workers."""
    ignored: list[int]
    nice: int
    oom: str
    limits: dict[str, tuple[int, int]]


def here(argv: Sequence[str]) -> ForkRequest:
    """This process as a request."""
    mask = os.umask(0o077)
    os.umask(mask)
    ignored = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]
    return ForkRequest(
        argv=list(argv),
        environ=dict(os.environ),
        cwd=os.getcwd(),
        umask=mask,
        blocked=[int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        ignored=[int(number) for number in ignored],
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        oom=_OOM.read_text().strip() if _OOM.exists() else "",
        limits={name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS},
    )


def take_on(request: ForkRequest) -> None:
    """Make this process like the one of the request, except for its standard streams.

    Raises:
        OSError: something of it is not to be had, such as a directory that is gone.
    """
    for name in set(os.environ) - set(request.environ):
        del os.environ[name]
    os.environ.update(request.environ)
    os.chdir(request.cwd)
    os.umask(request.umask)
    for name, (soft, hard) in request.limits.items():
        if resource.getrlimit(getattr(resource, name)) != (soft, hard):
            resource.setrlimit(getattr(resource, name), (soft, hard))
    if os.getpriority(os.PRIO_PROCESS, 0) != request.nice:
        os.setpriority(os.PRIO_PROCESS, 0, request.nice)
    if request.oom and _OOM.read_text().strip() != request.oom:
        _OOM.write_text(request.oom)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        handler: Any = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        if number in request.ignored:
            handler = signal.SIG_IGN
        # The C library refuses the signals that it keeps for itself.
        with contextlib.suppress(OSError, ValueError):
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked)


def send(connection: socket.socket, message: Any, descriptors: Sequence[int] = ()) -> None:
    """Raises: OSError: the other end is gone, or takes nothing for longer than the socket's time-out."""
    body = json.dumps(message).encode()
    if descriptors:
        socket.send_fds(connection, [_LENGTH.pack(len(body))], descriptors)
    else:
        connection.sendall(_LENGTH.pack(len(body)))
    connection.sendall(body)


def receive(connection: socket.socket, descriptors: int = 0) -> tuple[Any, list[int]]:
    """The next message, and at most so many descriptors; `exec` closes them.

    Raises:
        EOFError: the other end is gone.
        OSError: it said nothing for longer than the socket's time-out.
        ValueError: that was no message.
    """
    head, received = _head(connection, descriptors)
    try:
        (size,) = _LENGTH.unpack(head + _exactly(connection, _LENGTH.size - len(head)))
        if size > _LIMIT:
            raise ValueError(f"a message of {size} bytes is too long")
        return json.loads(_exactly(connection, size)), received
    except BaseException:
        for descriptor in received:
            os.close(descriptor)
        raise


def peer(connection: socket.socket) -> tuple[int, int]:
    """Process id and user id of the other end, as the kernel knows them."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return pid, uid


def _head(connection: socket.socket, descriptors: int) -> tuple[bytes, list[int]]:
    room = socket.CMSG_SPACE(descriptors * array.array("i").itemsize) if descriptors else 0
    data, ancillary, _, _ = connection.recvmsg(_LENGTH.size, room, socket.MSG_CMSG_CLOEXEC)
    received = array.array("i")
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(body[: len(body) - len(body) % received.itemsize])
    if not data:
        raise EOFError("the other end is gone")
    return data, list(received)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise EOFError("the other end is gone")
        parts += part
    return bytes(parts)
