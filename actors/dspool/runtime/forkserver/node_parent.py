"""The parent of a Ray node of our own: it is started before Ray, and loads while Ray starts.

All of the node's workers are forked from it, whatever runs in them: supervisor, store, metrics, Serve's actors.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from dspool.corrections import FORK_SERVER, active, unknown_version
from dspool.runtime.forkserver.places import FOLDER, Place, listen
from dspool.runtime.forkserver.shim import NODE_JOB, PROGRAM

NODE_VARIABLE: Final = "_DSPOOL_NODE_PARENT"
"""In the environment of all processes of such a node: the directory of its parent."""
LOAD: Final = "load"
"""The file there that says what the parent loads, as `forkserver.to_load` gives it."""
_ALSO: Final = "also"
_NAME: Final = "node"
_WAIT: Final = """
import ctypes, json, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
said = sys.stdin.buffer.read().split(b"\\n")
if len(said) == 2:
    command, environ = map(json.loads, said)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execve(command[0], command, environ)
"""
"""Ends with us, also when we are killed, as Ray has it for its raylet."""
CORRECTION: Final = "ray-lean-node"
TOKEN_FILE: Final = "ray_token"
ON_LOOPBACK: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's switch for clusters of several nodes, whatever the system: 0 means that a node's address is 127.0.0.1."""
_END_S: Final = 2.0

_SETTINGS: Final = {
    # Ray runs all actors at nice 15. On a busy machine that starves the pool behind its own clients: a pool under load
    # was whole again 162 ms (p50) and 342 ms (max) after a SIGKILL with it, 67 and 95 ms without.
    "RAY_worker_niceness": "0",
    # Else each of Ray's thirty threads takes memory from a heap of its own, where little of it can be given back.
    "MALLOC_ARENA_MAX": "2",
    # Of either Ray remembers thousands, with all that they were started with.
    "RAY_maximum_gcs_destroyed_actor_cached_count": "100",
    "RAY_maximum_gcs_dead_worker_cached_count": "100",
}
_UNSEEN: Final = {
    # Each worker that ever lived is a series of each process that called it, each call an event that the control plane
    # keeps: what only Ray's dashboard shows. The service has metrics of its own.
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
}


def why_not_forked(platform: str = sys.platform) -> str:
    """Why no worker can be forked on this machine; empty if they can."""
    if platform != "linux" or not hasattr(os, "pidfd_open"):
        return f"worker_start: fork needs Linux, this is {platform}"
    if why := unknown_version(FORK_SERVER.versions):
        return f"the fork server rests on details of Ray: {why}"
    return ""


class NodeParent:
    """The process, and the directory below `directory` where the node's workers find it.

    Ray's library reads the raylet's process id when it is imported, so that one has to be known before Ray starts: a
    process waits to become the raylet.
    """

    def __init__(self, directory: Path, load: Mapping[str, Any], also: Sequence[str] = ()) -> None:
        """`load` as `forkserver.to_load` gives it, and modules `also`, of what is to run beside the pool."""
        self.directory = directory / FOLDER / _NAME
        self._load = {**load, _ALSO: list(also)}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._raylet: subprocess.Popen[bytes] | None = None

    def start(self, environ: Mapping[str, str]) -> None:
        """Start it, in the environment that Ray's processes will have; it has loaded seconds from now.

        Raises:
            OSError: the directory cannot be written, or no process can be started.
        """
        place = Place(self.directory)
        place.make()
        (self.directory / LOAD).write_text(json.dumps(self._load))
        self._raylet = self._started(
            ["-S", "-E", "-c", _WAIT], environ, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        # Before anybody can ask: who connects waits until all is loaded.
        with listen(place) as listener, place.log.open("ab") as log:
            place.log.chmod(0o600)
            load = json.dumps({**self._load, "listener": listener.fileno()})
            variables = {"RAY_JOB_ID": NODE_JOB, "RAY_RAYLET_PID": str(self._raylet.pid)}
            self._started(
                ["-c", PROGRAM, _ray_workers(), str(self.directory), load],
                {**environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                pass_fds=(listener.fileno(),),
            )

    def _started(
        self, arguments: list[str], environ: Mapping[str, str], **options: Any
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=dict(environ),
            stderr=options["stdout"],
            # A Ctrl-C of the terminal is for us: we end it.
            process_group=0,
            **options,
        )
        self._processes.append(process)
        return process

    def become_raylet(self, command: Sequence[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Have the process that waits for it run `command`. Raises: OSError: it has died."""
        assert self._raylet is not None
        assert self._raylet.stdin is not None
        self._processes.remove(self._raylet)
        with self._raylet.stdin as pipe:
            pipe.write(json.dumps([*command]).encode() + b"\n" + json.dumps(dict(environ)).encode())
        return self._raylet

    def stop(self) -> None:
        """End it. Workers that it forked live on: they are Ray's."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._processes.clear()

    def show_in(self, session: Path) -> None:
        """Let it be found where the parents of other nodes are, in Ray's `session` directory."""
        folder = session / FOLDER
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        with contextlib.suppress(FileExistsError):
            (folder / self.directory.name).symlink_to(self.directory)

    def command(self) -> str:
        """What the raylet runs in place of Python; behind it stands Ray's own command for a worker."""
        shim = Path(__file__).with_name("shim.py")
        return subprocess.list2cmdline([sys.executable, "-S", "-E", str(shim), str(self.directory)])


@contextlib.contextmanager
def running_parent(
    directory: Path,
    load: Mapping[str, Any] | None = None,
    also: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[NodeParent | None]:
    """The parent of a node that starts in the block, with `variables` beside ours; None where nothing can be forked."""
    if why_not_forked() or not active(CORRECTION):
        yield None
        return
    parent = NodeParent(directory, load or {}, also)
    try:
        environ = {**os.environ, **(variables or {})}
        # The operator's, for another cluster; Ray would keep it.
        environ.pop("RAY_AUTH_TOKEN", None)
        parent.start(environ)
        yield parent
    finally:
        parent.stop()


def token_variables(directory: Path) -> dict[str, str]:
    """With these Ray asks for the token in `directory`, and knows it."""
    # The path, not the token: whatever a worker starts inherits its variables.
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(directory / TOKEN_FILE)}


def own_variables(directory: Path) -> dict[str, str]:
    """What the processes of a cluster of our own find in their environment beside ours: Ray reads it at its import."""
    return {**token_variables(directory), **ON_LOOPBACK}


def node_settings(environ: Mapping[str, str], *, dashboard: bool = False) -> dict[str, str]:
    """What a node of our own runs with, with or without Ray's dashboard, where `environ` says nothing else."""
    settings = _SETTINGS if dashboard else {**_SETTINGS, **_UNSEEN}
    return {name: value for name, value in settings.items() if name not in environ}


def is_shown_in(session: Path) -> bool:
    """Whether the node of Ray's `session` directory has such a parent."""
    return (session / FOLDER / _NAME).exists()


def node_load(environ: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """What the parent of this process's node loads for pools; None: the node has none."""
    directory = environ.get(NODE_VARIABLE)
    if directory is None:
        return None
    try:
        load: dict[str, Any] = json.loads(Path(directory, LOAD).read_text())
    except (OSError, ValueError):
        return None
    load.pop(_ALSO, None)
    return load


def _ray_workers() -> str:
    """The directory of Ray's own worker program. Does not import Ray."""
    found = find_spec("ray")
    assert found is not None
    assert found.submodule_search_locations
    return os.path.join(found.submodule_search_locations[0], "_private", "workers")
