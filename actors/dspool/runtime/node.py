"""The Ray node of a cluster of our own: the processes of Ray that a pool needs, and workers that are forked."""

from __future__ import annotations

import contextlib
import functools
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import ray
from ray._private import node as ray_node
from ray._private import ray_constants, services

from dspool.corrections import active
from dspool.runtime.forkserver.node_parent import CORRECTION, NODE_VARIABLE, NodeParent, is_shown_in

START_S: Final = 60.0
_WORKER_COMMAND: Final = "--python_worker_command="
_PRESTARTED: Final = "--num_prestart_python_workers="
_POLL_S: Final = 0.02


_AGENT_PORTS: Final = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)
"""Unless they are chosen before, the raylet waits for its agents to name them, and aborts after 15 s."""
_TEMP_DIR: Final = "--temp-dir="
_AGENT_COMMANDS: Final = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
_PORTS: Final = range(20_000, 30_000)
"""Below what Linux gives away by itself (from 32768), and not what Ray (10002 to 19999) and Serve (from 30000) use."""


class _LeanNode(ray_node.Node):
    """Without the autoscaler, which has nothing to scale here, and the log monitor, which prints workers' logs at the
    driver; without the dashboard's server unless there is to be a dashboard. Each takes a second of processor time."""

    def __init__(self, ray_params: Any, *args: Any, **kwargs: Any) -> None:
        for name, port in zip(_AGENT_PORTS, _free_ports(len(_AGENT_PORTS)), strict=True):
            if not getattr(ray_params, name):
                setattr(ray_params, name, port)
        super().__init__(ray_params, *args, **kwargs)

    def start_monitor(self) -> None:
        pass

    def start_log_monitor(self) -> None:
        pass

    def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
        if include_dashboard:
            super().start_api_server(include_dashboard=include_dashboard, raise_on_failure=raise_on_failure)


@contextlib.contextmanager
def own_node(parent: NodeParent | None, *, patience_s: float = START_S) -> Iterator[None]:
    """A node that `ray.init(address="local")` starts in the block is lean, and its workers are forked from `parent`.

    It may take `patience_s` to start: Ray itself gives up after 30 s, too soon on a busy machine. Without the
    correction it starts as Ray has it.
    """
    if not active(CORRECTION):
        yield
        return
    theirs: Any = services
    node: Any = ray_node
    node_class, start, find, popen = node.Node, theirs.start_ray_process, theirs.get_node, theirs.ConsolePopen

    def become_raylet(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        assert parent is not None
        return parent.become_raylet(command, env)

    def start_process(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        if process_type == ray_constants.PROCESS_TYPE_DASHBOARD:
            # Ray kills it: what it keeps among temporary files goes with Ray's own directory.
            (place,) = (part for part in command if part.startswith(_TEMP_DIR))
            kwargs["env_updates"] = {"TMPDIR": place.removeprefix(_TEMP_DIR)}
        if process_type != ray_constants.PROCESS_TYPE_RAYLET:
            # What is sent to our process group, as `timeout` and systemd do, is for us: we end them in order.
            theirs.ConsolePopen = functools.partial(popen, start_new_session=True)
            try:
                return start(command, process_type, *args, **kwargs)
            finally:
                theirs.ConsolePopen = popen
        command = lean_command(command, parent)
        if parent is None:
            return start(command, process_type, *args, **kwargs)
        variables = kwargs.pop("env_updates", None) or {}
        variables = {**variables, NODE_VARIABLE: str(parent.directory)}
        theirs.ConsolePopen = become_raylet
        try:
            return start(command, process_type, *args, env_updates=variables, **kwargs)
        finally:
            theirs.ConsolePopen = popen

    def find_patiently(*args: Any, **kwargs: Any) -> Any:
        until = time.monotonic() + patience_s
        while True:
            try:
                return find(*args, **kwargs)
            except RuntimeError:
                if time.monotonic() > until:
                    raise
                time.sleep(_POLL_S)

    node.Node, theirs.start_ray_process, theirs.get_node = _LeanNode, start_process, find_patiently
    try:
        yield
    finally:
        node.Node, theirs.start_ray_process, theirs.get_node = node_class, start, find
    if parent is not None:
        parent.show_in(_session_directory())


def forks_by_itself() -> bool:
    """Whether this process's node forks what Ray starts on it without being asked: those of `own_node` do."""
    return is_shown_in(_session_directory())


def _session_directory() -> Path:
    node: Any = ray._private.worker._global_node
    return Path(node.get_session_dir_path())


def lean_command(
    command: Sequence[str], parent: NodeParent | None, *, nice: str | None = shutil.which("nice")
) -> list[str]:
    """The raylet's command as Ray has it, for a node whose workers are forked from `parent`."""
    lean = [_later(part, nice) for part in command]
    if parent is not None:
        lean = [_forking(part, parent) for part in lean]
    # Ray tells its agent of this port, but has the raylet wait for it.
    if said := re.search(r"--listen-port=(\d+)", " ".join(command)):
        lean.append(f"--dashboard_agent_listen_port={said[1]}")
    return lean


def _later(part: str, nice: str | None) -> str:
    """The argument with an agent's command: what it loads can wait for what is being started."""
    for option in _AGENT_COMMANDS:
        if nice and part.startswith(option):
            return f"{option}{subprocess.list2cmdline([nice, '-n', '10'])} {part.removeprefix(option)}"
    return part


def _free_ports(count: int) -> list[int]:
    """Free ports of 127.0.0.1 that the system gives to nobody who does not ask for them by number."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
            if len(found) == count:
                return found
    return [0] * count


def _forking(part: str, parent: NodeParent) -> str:
    """The argument with the command for workers: in front of Ray's own stands the shim."""
    if part.startswith(_PRESTARTED):
        # Those would belong to no job, and to no parent. A forked one is there as soon as it is wanted.
        return f"{_PRESTARTED}0"
    if not part.startswith(_WORKER_COMMAND):
        return part
    python = subprocess.list2cmdline([sys.executable])
    own = part.removeprefix(_WORKER_COMMAND)
    assert own.startswith(python)
    return _WORKER_COMMAND + parent.command() + own.removeprefix(python)


__all__ = ["START_S", "lean_command", "own_node"]
