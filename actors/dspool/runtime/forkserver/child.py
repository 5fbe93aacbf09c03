"""From the fork to Ray's own worker program: a process in which nothing shows that it was forked."""

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
"""The connection to the process that asked for this one, until Ray knows it: its end before that says that it died."""


def settle(connection: socket.socket, request: handover.ForkRequest, streams: list[int]) -> bool:
    """Take the place of the process that asked, and tell it; False: it does not want this process any more."""
    # As Ray has it: a group of its own, so that `killpg` from a worker reaches no other, and the session of the raylet.
    # Not `setsid`: Linux shares processors out by session, and the worker and its client would compete.
    os.setpgid(0, 0)
    for target, descriptor in enumerate(streams):
        os.dup2(descriptor, target)
    handover.take_on(request)
    os.environ[HOW_VARIABLE] = "fork"
    _fresh_random()
    _close_all_but(connection.fileno(), *streams)
    connection.settimeout(_GO_S)
    try:
        handover.send(connection, {"started": os.getpid()})
        answer, _ = handover.receive(connection)
        if not answer.get("go"):
            return False
        # Without this a `go` that came just after the time was over would leave Ray waiting for nobody.
        handover.send(connection, {"going": True})
        _shims.append(connection.dup())
    except (EOFError, OSError, ValueError):
        return False
    finally:
        connection.close()
    return True


def registered() -> None:
    """Ray knows this process: whoever asked for it need not wait any longer."""
    while _shims:
        with contextlib.suppress(OSError), _shims.pop() as shim:
            shim.settimeout(_GO_S)
            handover.send(shim, {"registered": True})


def run(argv: list[str], code: CodeType | None = None) -> None:
    """Run a program as `python argv[0] ...` would."""
    program: Any = types.ModuleType("__main__")
    program.__file__ = argv[0]
    program.__builtins__ = sys.modules["builtins"]
    sys.modules["__main__"] = program
    sys.argv = argv
    sys.path[0] = os.path.dirname(argv[0])
    gc.enable()
    _tell_when_connected()
    if code is None:
        runpy.run_path(argv[0], run_name="__main__")
    else:
        exec(code, program.__dict__)


def _tell_when_connected() -> None:
    ray: Any = sys.modules.get("ray._private.worker")
    if ray is None:
        registered()
        return
    connect = ray.connect

    def telling(*args: Any, **named: Any) -> Any:
        ray.connect = connect
        done = connect(*args, **named)
        registered()
        return done

    ray.connect = telling


def _fresh_random() -> None:
    """Python seeds `random` anew in a child by itself; numpy's global generator has to be told."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def _close_all_but(*kept: int) -> None:
    """What may have come in besides: nothing of one worker may be open in another."""
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, 65536)
