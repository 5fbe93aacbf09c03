"""The processes of a service, ended by what they are: nothing is found or ended by name patterns."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import psutil

from dspool.corrections import haproxy_script
from dspool.preflight import chosen_temporary_directory

STOP_GRACE_S = 5.0
SERVING = (
    "ray.serve._private.controller",
    "ray.serve._private.proxy",
    "ray.serve._private.haproxy",
    "ray.serve._private.replica",
    "dspool_serve.ingress.deployment",
    "dspool_console",
)
"""What Serve's actors and the ingress load: they are forked as well."""


def descendants() -> list[psutil.Process]:
    """Of this process, all generations."""
    return psutil.Process().children(recursive=True)


def haproxy_processes(temp_dir: Path) -> list[psutil.Process]:
    """The HAProxy processes that still run with a configuration below `temp_dir`."""
    found = []
    for pid in haproxy_script.pids(temp_dir / "h"):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if any(part.startswith(str(temp_dir)) for part in process.cmdline()):
                found.append(process)
    return found


def end_processes(processes: list[psutil.Process], grace_s: float = STOP_GRACE_S) -> None:
    """SIGTERM, then after `grace_s` SIGKILL."""
    _, alive = psutil.wait_procs(processes, timeout=min(grace_s, 1.0))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        _, alive = psutil.wait_procs(alive, timeout=grace_s)


def short_directory() -> str:
    """Where temporary directories have short names: a Unix socket's path ends at 107 characters."""
    return str(chosen_temporary_directory())
