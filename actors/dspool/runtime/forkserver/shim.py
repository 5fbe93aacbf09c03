"""What Ray runs in place of Python: has the worker forked from the parent, or becomes the worker itself.

    python -S -E shim.py LOAD default_worker.py --node-ip-address=...
    python -S -E shim.py DIRECTORY setup_worker.py default_worker.py --node-ip-address=...

The second form is for all workers of a node that has a parent of its own, in DIRECTORY (`node_parent`).
Runs without site-packages and imports nothing heavy: the worker's start waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # The package as a mere folder: its `__init__` and what that imports stay out.
    _package = types.ModuleType("dspool.runtime.forkserver")
    _package.__path__ = [str(Path(__file__).parent)]
    for _name in ("dspool", "dspool.runtime"):
        sys.modules[_name] = types.ModuleType(_name)
    sys.modules["dspool.runtime.forkserver"] = _package

from dspool.runtime.forkserver import handover
from dspool.runtime.forkserver.places import HOW_VARIABLE, Place, Unavailable

ANSWER_S = 5.0
"""A parent that is silent for so long hangs."""
GOING_S = 10.0
"""A child waits half as long for `go`."""
REGISTERED_S = 30.0
START_S = 25.0
"""Loading takes 2 s, with litellm 6 s, on an idle machine. There must be time left for a start by `exec`."""
PATIENT_S = 40.0
"""With packages of the user's own. Ray waits a minute for a worker."""
NODE_JOB = "01000000"
"""The job whose workers a node's parent forks: the first, of the process that started the node."""
_TRIES = 3
_FOR_SETUP = ("--serialized-runtime-env-context=", "--language=")
PROGRAM = "import sys; sys.path[0] = sys.argv[1]; from dspool.runtime.forkserver.parent import main; main()"


class Gone(Exception):
    """There is no parent, or it is about to end."""


def main() -> None:
    load, worker = sys.argv[1], sys.argv[2:]
    directory = Path(load) if os.path.isabs(load) else None
    if directory is not None:
        if _has_environment(worker):
            # Ray's own way: its program sets the environment up, and then starts the worker.
            os.execv(sys.executable, [sys.executable, *worker])
        # What that program would take for itself, and it.
        worker = [part for part in worker[1:] if not part.startswith(_FOR_SETUP)]
    try:
        fork_worker(load, worker, directory)
    except Unavailable as why:
        os.environ[HOW_VARIABLE] = f"exec: {why}"
    except Exception as failed:
        os.environ[HOW_VARIABLE] = f"exec: {type(failed).__name__}: {failed}"
    else:
        # Nothing is open that needs closing, and the worker must not wait for a tidy exit.
        os._exit(0)
    os.execv(sys.executable, [sys.executable, *worker])


def _has_environment(worker: Sequence[str]) -> bool:
    """Whether Ray is to start this worker in an environment of its own (`runtime_env`)."""
    option = _FOR_SETUP[0]
    return any(part.startswith(option) and part not in (option, option + "{}") for part in worker)


def fork_worker(load: str, worker: list[str], directory: Path | None = None) -> int:
    """Have the worker forked; its process id. Starts the parent if there is none.

    The node's parent in `directory`, or else the one of the job that has loaded `load`.

    Raises:
        Unavailable: it was not forked; nothing of it is left, and the caller may start it.
    """
    if any(argument.startswith("--enable-resource-isolation") for argument in worker):
        raise Unavailable("Ray's resource isolation accounts for each worker's memory by itself")
    program = next(number for number, part in enumerate(worker) if not part.startswith("-"))
    if directory is not None:
        load = _load_of(directory)
    if directory is not None and os.environ.get("RAY_JOB_ID") == NODE_JOB:
        place = Place(directory)
    else:
        place = Place.of(worker, os.environ, load, sys.executable)
    place.make()
    request = handover.here(worker[program:])
    # The directory of Ray's own worker program, as Python would have it in `sys.path`.
    path = os.path.dirname(worker[program])
    limit_s = _limit_s(load)
    for _ in range(_TRIES):
        if why := place.exec_only():
            raise Unavailable(why)
        try:
            # The node's parent is asked before it has loaded.
            patience_s = ANSWER_S if directory is None else limit_s
            return ask(place, request, patience_s, registered_s=REGISTERED_S)
        except Gone:
            _ensure(place, load, path)
    raise Unavailable("the parent ended again and again")


def _load_of(directory: Path) -> str:
    try:
        return (directory / "load").read_text()
    except OSError as failed:
        raise Unavailable(f"the node has no parent: {failed}") from failed


def _limit_s(load: str) -> float:
    """How long a parent may take to load."""
    facts = json.loads(load)
    return float(facts.get("limit_s") or (PATIENT_S if facts.get("patient") else START_S))


def ask(
    place: Place, request: handover.ForkRequest, timeout_s: float = ANSWER_S, registered_s: float = 0.0
) -> int:
    """Ask the parent for a worker; its process id, as soon as Ray knows it, or after `registered_s` without a word.

    Raises:
        Gone: there is no parent.
        Unavailable: it refused, hangs, or what it forked died before Ray knew it. A parent that hangs is killed, so no
            other worker waits for it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(place.socket))
        except (FileNotFoundError, ConnectionRefusedError):
            raise Gone from None
        except OSError as failed:
            raise Unavailable(f"the parent cannot be reached: {failed}") from failed
        pid, uid = handover.peer(connection)
        if uid != os.geteuid():
            raise Unavailable(f"the parent belongs to user {uid}")
        asked = False
        try:
            ready, _ = handover.receive(connection)
            if "ready" in ready:
                asked = True
                handover.send(connection, {"fork": request._asdict()}, (0, 1, 2))
                ready, _ = handover.receive(connection)
            if "started" not in ready:
                raise Unavailable(str(ready.get("refused", "the parent gave no answer")))
            child = int(ready["started"])
            _go(connection, child)
            if registered_s:
                _until_registered(connection, child, registered_s)
            return child
        except TimeoutError:
            why = f"the parent (process {pid}) did not answer in {timeout_s:g} s"
            place.give_up(why)
            _kill(pid)
            raise Unavailable(why) from None
        except (EOFError, OSError, ValueError) as failed:
            if not asked:
                raise Gone from None
            raise Unavailable(f"the parent (process {pid}) died over it: {failed}") from failed


def _go(connection: socket.socket, child: int) -> None:
    """Let the child become the worker.

    Raises:
        Unavailable: it did not take over, and never will.
        OSError, EOFError: it is gone.
    """
    handover.send(connection, {"go": True})
    connection.settimeout(GOING_S)
    try:
        handover.receive(connection)
    except TimeoutError:
        # It may have read `go` and stall: it must not come back to life beside the worker that starts now.
        _kill(child)
        raise Unavailable(f"the forked process {child} did not take over in {GOING_S:g} s") from None


def _until_registered(connection: socket.socket, child: int, timeout_s: float) -> None:
    # Ray itself notices only after a minute that a worker died before it registered, and callers of the worker wait as
    # long. If Ray knows it after all, it turns away the one that comes second.
    connection.settimeout(timeout_s)
    try:
        handover.receive(connection)
    except TimeoutError:
        # It lives, and may only be slow.
        return
    except (EOFError, OSError, ValueError):
        raise Unavailable(f"the forked process {child} died before Ray knew it") from None


def _ensure(place: Place, load: str, path: str) -> None:
    """Start a parent unless another worker's shim just did.

    Raises: Unavailable: it did not come up; then no other worker tries for a while.
    """
    limit_s = _limit_s(load)
    with place.locked(limit_s) as mine:
        if not mine:
            raise Unavailable(f"the parent was not ready in {limit_s:g} s")
        if place.exec_only() or _is_up(place):
            return
        why = _start(place, load, path, limit_s)
        if why:
            place.give_up(why)
            raise Unavailable(why)


def _is_up(place: Place) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_S)
        try:
            connection.connect(str(place.socket))
            return True
        except OSError:
            return False


def _start(place: Place, load: str, path: str, limit_s: float) -> str:
    """Start the parent and wait until it is ready. Returns what went wrong, or nothing."""
    place.socket.unlink(missing_ok=True)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    first = os.fork()
    if first == 0:
        try:
            if os.fork() == 0:
                # Not `setsid`, see `child`.
                os.setpgid(0, 0)
                _become_parent(place, load, path, writing)
        finally:
            os._exit(1)
    os.close(writing)
    os.waitpid(first, 0)
    return _said(reading, limit_s)


def _become_parent(place: Place, load: str, path: str, ready: int) -> None:
    """Does not return. The parent is no child of this process, which Ray watches, but of nobody."""
    quiet = os.open(os.devnull, os.O_RDONLY)
    log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, descriptor in enumerate((quiet, log, log)):
        os.dup2(descriptor, target)
    os.dup2(ready, 3)
    os.set_inheritable(3, True)
    # Ray's own descriptors: its workers inherit them by accident.
    os.closerange(4, 65536)
    arguments = ["-c", PROGRAM, path, str(place.directory), load]
    os.execv(sys.executable, [sys.executable, *arguments])


def _said(reading: int, limit_s: float) -> str:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    until = time.monotonic() + limit_s
    said = b""
    try:
        while poll.poll(max(0.0, until - time.monotonic()) * 1000):
            part = os.read(reading, 4096)
            if not part:
                break
            said += part
        else:
            return f"the parent was not ready in {limit_s:g} s"
    finally:
        os.close(reading)
    if said == b"ready":
        return ""
    return said.decode(errors="replace") or "the parent died while it was loading"


def _kill(pid: int) -> None:
    # 0 is a process of another namespace, and would mean this process's own group.
    if pid > 1:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
