"""The processes of a service, by what they are to it."""

from __future__ import annotations

import contextlib
import os

import psutil

ROLES = (
    ("fork parent", "dspool.runtime.forkserver"),
    ("worker", "WorkerActor"),
    ("supervisor", "SupervisorActor"),
    ("store", "StoreActor"),
    ("metrics", "MetricsActor"),
    ("answers", "AnswersActor"),
    ("ingress", "ServeReplica:"),
    ("controller", "ServeController"),
    ("proxy", "ProxyActor"),
    ("haproxy manager", "HAProxyManager"),
    ("haproxy", "haproxy"),
    ("gcs_server", "gcs_server"),
    ("raylet", "raylet/raylet"),
    ("log monitor", "log_monitor"),
    ("dashboard agent", "dashboard"),
    ("runtime env agent", "runtime_env"),
)
OURS = frozenset({"service", "client", "supervisor", "store", "metrics", "answers", "ingress", "fork parent"})
"""Of the ones that last. All else is Ray's. The first mark that is found counts: the command of the parent that Ray's
processes are forked from names some of them."""


def role_of(process: psutil.Process) -> str | None:
    """None: it has none, or is gone."""
    try:
        text = f"{process.name()} {' '.join(process.cmdline())}"
    except psutil.Error:
        return None
    return next((role for role, mark in ROLES if mark in text), None)


def family(pid: int) -> list[psutil.Process]:
    """All processes that `pid` and its children have started. Of one that leads a session also those whose parent is
    gone, as those that were forked from a process that has died."""
    with contextlib.suppress(psutil.Error):
        found = {process.pid: process for process in psutil.Process(pid).children(recursive=True)}
        with contextlib.suppress(OSError):
            if os.getsid(pid) == pid:
                found |= {
                    process.pid: process for process in psutil.process_iter() if _session(process.pid) == pid
                }
        return [process for process in found.values() if process.pid != pid]
    return []


def _session(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return None


def processes_of(pid: int) -> dict[str, list[int]]:
    """The pids of the `family` of `pid`, by role."""
    found: dict[str, list[int]] = {}
    for process in family(pid):
        if (role := role_of(process)) is not None:
            found.setdefault(role, []).append(process.pid)
    return found
