"""Which installation this process is of, and how Ray starts actors with the code of another one.

Does not import Ray: who asks may not know yet on which cluster it is.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msgspec import Struct

from dspool.config import PoolConfig
from dspool.core.lifecycle.upgrades import Installation
from dspool.messages.versioned_pickle import Message
from dspool.release import VERSION
from dspool.runtime import forkserver
from dspool.runtime.forkserver.node_parent import why_not_forked
from dspool.runtime.forkserver.places import PYTHON_VARIABLE
from dspool.wire.handshake import VERSION as EXCHANGE


def installation() -> Installation:
    """Of this process."""
    try:
        ray = version("ray")
    except PackageNotFoundError:
        ray = ""
    return Installation(
        dspool=VERSION,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        ray=ray,
        exchange=EXCHANGE,
        environment=sys.prefix,
        code=str(Path(__file__).parent.parent),
    )


def code_mark(environ: Mapping[str, str] = os.environ) -> str:
    """The code of this process, where an upgrade chose it; empty: it is that with which its node was started."""
    return f"{VERSION} {sys.prefix}" if environ.get(PYTHON_VARIABLE) else ""


class StartCommand(Message, Struct, frozen=True, kw_only=True):
    """How Ray starts the actors of a pool with the code of one installation, and not with that of its nodes."""

    python: str
    command: str
    """What runs in place of Ray's own Python."""

    @classmethod
    def of_this_process(cls, config: PoolConfig) -> StartCommand:
        """From a parent of this installation, which each node starts once, or by exec where nothing is forked."""
        forks = config.worker_start != "exec" and not why_not_forked()
        command = forkserver.command(forkserver.with_store(config)) if forks else shlex.join([sys.executable])
        return cls(python=sys.executable, command=command)

    def runtime_env(self) -> dict[str, Any]:
        return {"py_executable": self.command, "env_vars": {PYTHON_VARIABLE: self.python}}

    def exec_env(self) -> dict[str, Any]:
        """Of what is not forked: Serve's replicas are of a job of its own."""
        return {**self.runtime_env(), "py_executable": shlex.join([self.python])}


__all__ = ["StartCommand", "code_mark", "installation"]
