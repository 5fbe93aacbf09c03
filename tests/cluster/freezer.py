"""Stops all processes of a group at one moment, and lets them go on: a cgroup of version 1 or 2.

Nobody is told: no parent sees a stopped child, and the kernel goes on to acknowledge what the network brings.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_V1, _V2 = _ROOT / "freezer", (_ROOT, _ROOT / "unified")
_NAME: Final = "dspool-bench-"
_OLD_S: Final = 3600.0


class Freezer:
    """A group named `name`; a process enters it before it starts what belongs in it."""

    def __init__(self, name: str) -> None:
        parent = _hierarchy()
        # Of runs that were killed. A group that has processes stays, and one of another run that has none yet.
        for old in parent.glob(f"{_NAME}*"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_ctime > _OLD_S:
                    old.rmdir()
        self._group = parent / f"{_NAME}{name}"
        self._group.mkdir()
        self._is_v1 = parent == _V1

    def enter(self) -> None:
        """Take the calling process in."""
        (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def freeze(self) -> None:
        self._write("FROZEN" if self._is_v1 else "1")
        state, wanted = ("freezer.state", "FROZEN") if self._is_v1 else ("cgroup.events", "frozen 1")
        # The kernel stops them one by one.
        while wanted not in (self._group / state).read_text():
            time.sleep(0.001)

    def thaw(self) -> None:
        self._write("THAWED" if self._is_v1 else "0")

    def close(self) -> None:
        """Once none of its processes is left; the kernel may take a moment for the last one."""
        for _ in range(1000):
            try:
                return self._group.rmdir()
            except FileNotFoundError:
                return None
            except OSError:
                time.sleep(0.005)
        return None

    def _write(self, state: str) -> None:
        (self._group / ("freezer.state" if self._is_v1 else "cgroup.freeze")).write_text(state)


def _hierarchy() -> Path:
    if (_V1 / "cgroup.procs").exists():
        return _V1
    return next(root for root in _V2 if (root / "cgroup.controllers").exists())
