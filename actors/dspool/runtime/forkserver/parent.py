"""The parent of forked workers: loads once what they all need, then forks one for each shim that asks.

Single-threaded. It ends with its raylet, when somebody removes its directory, after a while without a worker, and when
a source file that it loaded is no longer what it was: the next shim starts another one, and workers go on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from dspool.runtime.forkserver import child, handover
from dspool.runtime.forkserver.places import Place, Unavailable, listen
from dspool.runtime.forkserver.preload import Preloaded, Unshareable, changed, preload, running

IDLE_S = 30.0
"""After so long without a worker it ends: its job has probably ended too."""
_TICK_S = 1.0
_PATIENCE_S = 2.0
"""A shim that connects and then sends nothing must not keep the others waiting."""
_READY = 3


class Parent:
    def __init__(
        self,
        place: Place,
        *,
        raylet: int | None,
        idle_s: float = IDLE_S,
        listener: socket.socket | None = None,
        loaded: Preloaded | None = None,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        """`raylet` is the process to end with; `left_out` are modules that workers load by themselves, and why.

        `listener` is the place's socket, if somebody has opened it already.
        """
        self._loaded = loaded or Preloaded({}, {}, {})
        self._left_out = {**(left_out or {}), **self._loaded.failed}
        self._place = place
        self._idle_s = idle_s
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, int] = {}
        """Process ids of living children, by the descriptor that reports their end."""
        self._forked = 0
        self._used_at = time.monotonic()
        self._listener = listener or listen(place)
        self._inode = place.socket.stat().st_ino
        self._selector.register(self._listener, selectors.EVENT_READ, "asked")
        self._raylet = None if raylet is None else os.pidfd_open(raylet)
        if self._raylet is not None:
            self._selector.register(self._raylet, selectors.EVENT_READ, "raylet")

    def serve(self) -> handover.ForkRequest | None:
        """Answer until it is time to end. Returns None then, and in each child the request that it is to run."""
        while not self._over():
            for key, _ in self._selector.select(_TICK_S):
                if key.data == "raylet":
                    return None
                if key.data == "worker":
                    self._reap(key.fd)
                elif (request := self._answer()) is not None:
                    return request
        return None

    def close(self) -> None:
        # Before the listener closes: until then no other parent's socket can have its inode.
        self._place.remove(self._inode)
        self._listener.close()
        self._selector.close()

    def _let_go(self) -> None:
        """In a child: close what is the parent's, through its objects: they would else close the numbers again."""
        self._listener.close()
        self._selector.close()
        for descriptor in (*self._workers, self._raylet):
            if descriptor is not None:
                os.close(descriptor)
        self._workers.clear()

    def _over(self) -> bool:
        try:
            if self._place.socket.stat().st_ino != self._inode:
                return True
        except OSError:
            return True
        return not self._workers and time.monotonic() - self._used_at > self._idle_s

    def _answer(self) -> handover.ForkRequest | None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(_PATIENCE_S)
            try:
                return self._serve_one(connection)
            except (EOFError, OSError, ValueError) as failed:
                # The shim is gone, or sends nonsense: its worker starts by `exec`.
                print(f"a request failed: {type(failed).__name__}: {failed}", flush=True)
                return None

    def _serve_one(self, connection: socket.socket) -> handover.ForkRequest | None:
        _, uid = handover.peer(connection)
        if uid != os.geteuid():
            return None
        if file := changed(self._loaded.watched):
            # Unheard, the shim takes it that nobody is here, and starts the next parent.
            print(f"{file} was changed: this parent ends, another one loads it", flush=True)
            self._place.socket.unlink(missing_ok=True)
            return None
        if why := running():
            handover.send(connection, {"refused": why})
            return None
        handover.send(connection, {"ready": os.getpid()})
        message, streams = handover.receive(connection, descriptors=3)
        try:
            if "fork" in message and len(streams) == 3:
                return self._fork(connection, self._request(message["fork"]), streams)
            handover.send(connection, self._facts())
            return None
        finally:
            for descriptor in streams:
                os.close(descriptor)

    def _request(self, fields: dict[str, Any]) -> handover.ForkRequest:
        request = handover.ForkRequest(**fields)
        return request._replace(environ={**request.environ, **self._loaded.variables})

    def _fork(
        self, connection: socket.socket, request: handover.ForkRequest, streams: list[int]
    ) -> handover.ForkRequest | None:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            try:
                self._let_go()
                go = child.settle(connection, request, streams, how=how_forked(self._left_out))
            except BaseException as failed:
                with contextlib.suppress(OSError):
                    handover.send(connection, {"refused": f"{type(failed).__name__}: {failed}"})
                go = False
            if not go:
                os._exit(1)
            return request
        self._used_at = time.monotonic()
        self._forked += 1
        exit_descriptor = os.pidfd_open(pid)
        self._workers[exit_descriptor] = pid
        self._selector.register(exit_descriptor, selectors.EVENT_READ, "worker")
        return None

    def _reap(self, exit_descriptor: int) -> None:
        self._selector.unregister(exit_descriptor)
        os.close(exit_descriptor)
        os.waitpid(self._workers.pop(exit_descriptor), 0)
        self._used_at = time.monotonic()

    def _facts(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "forked": self._forked,
            "workers": sorted(self._workers.values()),
            "left_out": self._left_out,
        }


def how_forked(left_out: Mapping[str, str]) -> str:
    """What a worker says of its start."""
    reasons = "; ".join(f"{module} is not shared: {why}" for module, why in left_out.items())
    return f"fork: {reasons}" if reasons else "fork"


def main() -> None:
    """`python -c ... PATH DIRECTORY LOAD`; writes `ready` to descriptor 3, or why it is not.

    LOAD is `forkserver.to_load` as JSON; with `left_out` it comes from a process before that could not be forked.
    With a `listener` it is the parent of a node: that descriptor is its socket, and nobody waits to hear that it is
    ready.
    """
    path, directory, load = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    place = Place(Path(directory))
    left_out: dict[str, str] = load.get("left_out", {})
    # Both as Ray does in a worker, but only once that runs. With more, importing numpy would start threads.
    sys.path[1:1] = [entry for entry in load.get("path", ()) if entry not in sys.path]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    listener = socket.socket(fileno=load["listener"]) if "listener" in load else None
    try:
        raylet = int(os.environ["RAY_RAYLET_PID"])
        code = compile(
            Path(path, "default_worker.py").read_bytes(), str(Path(path, "default_worker.py")), "exec"
        )
        also, modules = (
            [module for module in load.get(kind, ()) if module not in left_out]
            for kind in ("also", "modules")
        )
        loaded = preload(modules, also)
        parent = Parent(
            place,
            raylet=raylet,
            idle_s=IDLE_S if listener is None else math.inf,
            listener=listener,
            loaded=loaded,
            left_out=left_out,
        )
    except Unshareable as refused:
        print(f"{refused.module} is left to each worker: {refused}", flush=True)
        keep = -1 if listener is None else listener.fileno()
        _again(keep, {**load, "left_out": {**left_out, refused.module: str(refused)}})
    except Exception as failed:
        why = str(failed) if isinstance(failed, Unavailable) else f"{type(failed).__name__}: {failed}"
        if listener is None:
            os.write(_READY, f"the parent cannot fork: {why}".encode())
        else:
            place.give_up(f"the parent cannot fork: {why}")
        raise
    if listener is None:
        os.write(_READY, b"ready")
        os.close(_READY)
    request = parent.serve()
    if request is None:
        parent.close()
        return
    # A forked worker from here on.
    child.run(request.argv, code if request.argv[0] == code.co_filename else None)


def _again(keep: int, load: Mapping[str, Any]) -> NoReturn:
    """Begin anew in this process, which then has neither threads nor anything open but the descriptor `keep`."""
    os.closerange(_READY + 1, max(keep, _READY + 1))
    os.closerange(max(keep, _READY) + 1, 65536)
    own = sys.orig_argv
    os.execv(sys.executable, [*own[:-1], json.dumps(load)])
