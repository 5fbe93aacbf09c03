"""Workers forked from a preloaded parent instead of started one by one: faster, and they share their memory.

Ray runs `shim` in place of Python (`runtime_env={"py_executable": ...}`). The shim asks the `parent` of its job,
node and environment for a `child`, starts that parent if there is none, and becomes the worker itself when anything
fails. Linux only.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dspool.config import ImportModules, PoolConfig
from dspool.runtime.forkserver import handover
from dspool.runtime.forkserver.node_parent import node_load, why_not_forked
from dspool.runtime.forkserver.places import FOLDER, HOW_VARIABLE, PYTHON_VARIABLE, Place, is_library

__all__ = [
    "HOW_VARIABLE",
    "ParentReport",
    "StartMethod",
    "command",
    "how_started",
    "modules_of",
    "report",
    "start_method",
    "to_load",
    "with_store",
]

_OTHER_PYTHONS = ("py_executable", "pip", "uv", "conda", "container", "image_uri", "nsight", "rocprof_sys")
_STORE = ("dspool.runtime.store", "dspool.store.store", "sqlalchemy.dialects.sqlite.aiosqlite")
_ANSWER_S = 1.0


class StartMethod(NamedTuple):
    """How workers start: by this command in place of Python, as all of their node do, or by `exec` and why."""

    py_executable: str | None
    why_not: str = ""
    by_node: bool = False
    """Their node forks all workers from a parent that has loaded what these need."""


def start_method(
    config: PoolConfig,
    runtime_env: Mapping[str, Any],
    *,
    platform: str = sys.platform,
    environ: Mapping[str, str] = os.environ,
) -> StartMethod:
    """How workers of this pool start in a job with this runtime environment."""
    if config.worker_start == "exec":
        return StartMethod(None)
    if why := why_not_forked(platform):
        return StartMethod(None, why)
    load, is_chosen = to_load(config), bool(environ.get(PYTHON_VARIABLE))
    # An upgrade chose it, and it is that of this process; or this process was forked for the pool as well.
    ours = {"py_executable"} if is_chosen or _is_shim(str(runtime_env.get("py_executable"))) else set()
    if conflicts := sorted(key for key in _OTHER_PYTHONS if key not in ours and runtime_env.get(key)):
        return StartMethod(None, f"the job's runtime_env has its own Python: {', '.join(conflicts)}")
    if is_chosen:
        return StartMethod(command(with_store(config)))
    return StartMethod(command(load), by_node=not runtime_env and node_load(environ) == load)


def _is_shim(executable: str) -> bool:
    """Whether it runs our shim; what that loads depends on where the process that asked looks for modules."""
    return shlex.split(executable)[:-1] == shlex.split(command())[:-1]


def command(load: Mapping[str, Any] | None = None) -> str:
    """What Ray runs in place of Python; without site-packages, which the shim does not need. `load`: see `to_load`."""
    shim = Path(__file__).with_name("shim.py")
    return shlex.join([sys.executable, "-S", "-E", str(shim), json.dumps(load or {})])


def to_load(config: PoolConfig, path: Sequence[str] | None = None) -> dict[str, Any]:
    """What the parent loads beside the base, and where it looks for that: also where Ray has its workers look."""
    if not (modules := modules_of(config)):
        return {}
    path = sys.path if path is None else path
    places = [entry for entry in path if os.path.isabs(entry) and not is_library(entry)]
    return {"modules": modules, "path": list(dict.fromkeys(places)), "patient": bool(config.preload)}


def with_store(config: PoolConfig) -> dict[str, Any]:
    """As `to_load`, of a parent from which the store is forked too: one that takes over begins the sooner."""
    return {**to_load(config), "also": list(_STORE)}


def modules_of(config: PoolConfig) -> tuple[str, ...]:
    """The modules that the configuration has every worker import: the parent loads them."""
    modules = list(config.preload)
    modules += [
        module for step in config.warmup.steps if isinstance(step, ImportModules) for module in step.modules
    ]
    if any(profile.engine == "litellm" for profile in config.lm_profiles.values()):
        modules.append("litellm")
    return tuple(dict.fromkeys(modules))


def how_started(environ: Mapping[str, str] = os.environ) -> str:
    """How this worker started: `fork`, `fork: what it does not share`, `exec`, or `exec: why it was not forked`."""
    return environ.get(HOW_VARIABLE, "exec")


class ParentReport(NamedTuple):
    """One parent on this node."""

    directory: Path
    pid: int | None
    """None: it does not answer, or has ended."""
    forked: int
    """Number of workers so far."""
    workers: tuple[int, ...]
    """Process ids of the living ones."""
    exec_only: str | None
    """Why its workers start by `exec` for now."""
    left_out: Mapping[str, str] = {}
    """Modules that its workers load by themselves, and why."""


def report(session_dir: Path) -> list[ParentReport]:
    """The parents of one Ray node's session directory, for `dspool doctor` and tests."""
    folder = session_dir / FOLDER
    return [_report(Place(directory)) for directory in sorted(folder.iterdir())] if folder.is_dir() else []


def _report(place: Place) -> ParentReport:
    facts: dict[str, Any] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(str(place.socket))
            facts, _ = handover.receive(connection)
            if "ready" in facts:
                handover.send(connection, {"facts": True})
                facts, _ = handover.receive(connection)
        except (OSError, EOFError, ValueError):
            facts = {}
    return ParentReport(
        directory=place.directory,
        pid=facts.get("pid"),
        forked=facts.get("forked", 0),
        workers=tuple(facts.get("workers", ())),
        exec_only=facts.get("refused") or place.exec_only(),
        left_out=facts.get("left_out", {}),
    )
