"""Whether a process that was written down still runs, and is not another one that has its number by now."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

import psutil

_WALL_CLOCK_FROM_S: Final = 1e9
"""No machine is up for thirty years."""
_SAME_S: Final = 1.0


def this_machine() -> str:
    """Where process ids mean the same: this boot of this host, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def process_start(pid: int) -> float:
    """When the process began, in seconds after the boot, which a clock that is set or runs wrong does not move; by the
    wall clock where the system says nothing else.

    Raises:
        psutil.Error: there is none, or it may not be seen.
    """
    wall = psutil.Process(pid).create_time()
    try:
        # Behind the name, which may hold anything: the twentieth of the fields from the state on.
        said = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19]
        return int(said) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return wall


def runs_since(pid: int, start: float) -> bool:
    """Whether the process that began at `start` runs: as `process_start` gave it on this machine since it was booted,
    or by the wall clock, as versions before wrote it down.

    Raises:
        psutil.AccessDenied: it may not be seen.
    """
    try:
        process = psutil.Process(pid)
        began = process.create_time() if start > _WALL_CLOCK_FROM_S else process_start(pid)
        return abs(began - start) < _SAME_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


__all__ = ["process_start", "runs_since", "this_machine"]
