"""A file system of a few megabytes, for tests of what happens when it is full. Only root can have one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FILLING = "filling"


@contextlib.contextmanager
def small_disk(directory: Path, size_mb: int = 8, options: str = "") -> Iterator[Path]:
    """A new one in a directory of `directory`; skips the test where the system does not allow that."""
    place = directory / "small disk"
    place.mkdir()
    options = f"size={size_mb}m,mode=700{options}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte of it free."""
    with (disk / FILLING).open("ab", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def make_room(disk: Path) -> None:
    (disk / FILLING).unlink()
