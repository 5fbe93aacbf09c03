"""The file of the audit log: lines are appended, and a full file makes room for a new one; the oldest goes.

Several ingress processes write to one file; a lock keeps them apart. Everything here may block: not for an event loop.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from dspool import private_files

READ_BYTES: Final = 2**20


class AuditFile:
    """`path`, and the full ones before it: `path.1` is the newest of them. At most `files` in all."""

    def __init__(self, path: Path, *, max_bytes: int, files: int) -> None:
        self.path, self._max_bytes, self._files = path, max_bytes, files
        private_files.make_directory(path.parent)
        with self._locked():  # it can be opened
            pass

    def append(self, lines: bytes) -> None:
        """All of `lines`, or nothing.

        Raises:
            OSError: nothing was written.
        """
        with self._locked() as descriptor:
            size = os.fstat(descriptor).st_size
            if not size or size + len(lines) <= self._max_bytes:
                _write(descriptor, lines, size)
                return
            for number in range(self._files - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self._numbered(number - 1), self._numbered(number))
        with self._locked() as descriptor:
            _write(descriptor, lines, os.fstat(descriptor).st_size)

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """The newest records, newest first. Reads no more than the last MiB."""
        found: list[dict[str, Any]] = []
        left = READ_BYTES
        for number in range(self._files):
            if len(found) >= limit or left <= 0:
                break
            try:
                with self._numbered(number).open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(max(0, size - left))
                    lines = file.read().splitlines()
            except OSError:
                break
            left -= size
            for line in reversed(lines):
                # The first one may lack its beginning.
                with contextlib.suppress(msgspec.DecodeError):
                    found.append(msgspec.json.decode(line, type=dict[str, Any]))
        return found[:limit]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        while True:
            descriptor = private_files.open_descriptor(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Another process may have made room in between: what we opened then has another name.
                if _inode(self.path) == os.fstat(descriptor).st_ino:
                    yield descriptor
                    return
            finally:
                os.close(descriptor)

    def _numbered(self, number: int) -> Path:
        return self.path if number == 0 else self.path.with_name(f"{self.path.name}.{number}")


def _inode(path: Path) -> int | None:
    try:
        return os.stat(path, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def _write(descriptor: int, lines: bytes, size: int) -> None:
    written = 0
    try:
        while written < len(lines):
            written += os.write(descriptor, lines[written:])
    except OSError:
        # A line that was torn apart would spoil the next one.
        os.ftruncate(descriptor, size)
        raise


__all__ = ["AuditFile"]
