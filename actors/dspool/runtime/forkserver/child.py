"""From the fork to Ray's own worker program: a process that does not show that it was forked."""

from __future__ import annotations

import contextlib
import gc
import os
import runpy
import socket
import sys
import types
from types import CodeType
from typing import Any

from dspool.runtime.forkserver import handover
from dspool.runtime.forkserver.places import HOW_VARIABLE

_GO_S = 5.0
_shims: list[socket.socket] = []
"""The connection to the shim that asked for this process, until Ray knows it: if it ends earlier, the process died."""


def settle(
    connection: socket.socket, request: handover.ForkRequest, streams: list[int], *, how: str = "fork"
) -> bool:
    """Take the place of the shim that asked, and tell it; False: it does not want this process any more.

    `how` is what the worker says of its start.
    """
    # As Ray does: a group of its own, so that `killpg` of a worker reaches no other, but the session of the raylet.
    # Not `setsid`: Linux shares processors out by session, and the worker and its client would compete.
    os.setpgid(0, 0)
    for target, descriptor in enumerate(streams):
        os.dup2(descriptor, target)
    handover.take_on(request)
    os.environ[HOW_VARIABLE] = how
    _fresh_random()
    _close_all_but(connection.fileno(), *streams)
    connection.settimeout(_GO_S)
    try:
        handover.send(connection, {"started": os.getpid()})
        answer, _ = handover.receive(connection)
        if not answer.get("go"):
            return False
        # Without this Ray would wait for nobody after a `go` that came just too late.
        handover.send(connection, {"going": True})
        _shims.append(connection.dup())
    except (EOFError, OSError, ValueError):
        return False
    finally:
        connection.close()
    return True


def registered() -> None:
    """Ray knows this process: the shim that asked for it need not wait any longer."""
    while _shims:
        with contextlib.suppress(OSError), _shims.pop() as shim:
            shim.settimeout(_GO_S)
            handover.send(shim, {"registered": True})


def run(argv: list[str], code: CodeType | None = None) -> None:
    """Run a program as `python argv[0] ...` would. `code` is the compiled program, if there is one."""
    program: Any = types.ModuleType("__main__")
    program.__file__ = argv[0]
    program.__builtins__ = sys.modules["builtins"]
    sys.modules["__main__"] = program
    sys.argv = argv
    sys.path[0] = os.path.dirname(argv[0])
    gc.enable()
    _register_when_connected()
    if code is None:
        runpy.run_path(argv[0], run_name="__main__")
    else:
        exec(code, program.__dict__)


def _register_when_connected() -> None:
    ray: Any = sys.modules.get("ray._private.worker")
    if ray is None:
        registered()
        return
    connect = ray.connect

    def connect_and_register(*args: Any, **kwargs: Any) -> Any:
        ray.connect = connect
        result = connect(*args, **kwargs)
        registered()
        return result

    ray.connect = connect_and_register


def _fresh_random() -> None:
    """Python itself seeds `random` anew in a child, but not numpy's global generator."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def _close_all_but(*descriptors: int) -> None:
    """Close what else the fork inherited: nothing of one worker may be open in another."""
    first = 3
    for descriptor in sorted(descriptors):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, 65536)
