"""The processes of a service, by what they are to it."""

from __future__ import annotations

import psutil

ROLES = (
    ("worker", "WorkerActor"),
    ("supervisor", "SupervisorActor"),
    ("store", "StoreActor"),
    ("metrics", "MetricsActor"),
    ("answers", "AnswersActor"),
    ("ingress", "ServeReplica:"),
    ("controller", "ServeController"),
    ("proxy", "ProxyActor"),
    ("haproxy", "haproxy"),
    ("gcs_server", "gcs_server"),
    ("raylet", "raylet/raylet"),
    ("fork parent", "dspool.runtime.forkserver"),
    ("log monitor", "log_monitor"),
    ("dashboard agent", "dashboard"),
    ("runtime env agent", "runtime_env"),
)
OURS = frozenset({"service", "client", "supervisor", "store", "metrics", "answers", "ingress", "fork parent"})
"""Of the ones that last. All else is Ray's."""


def role_of(process: psutil.Process) -> str | None:
    """None: it has none, or is gone."""
    try:
        text = f"{process.name()} {' '.join(process.cmdline())}"
    except psutil.Error:
        return None
    return next((role for role, mark in ROLES if mark in text), None)


def processes_of(pid: int) -> dict[str, list[int]]:
    """The pids of all processes that `pid` and its children have started, by role."""
    found: dict[str, list[int]] = {}
    try:
        everyone = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return found
    for process in everyone:
        if (role := role_of(process)) is not None:
            found.setdefault(role, []).append(process.pid)
    return found
