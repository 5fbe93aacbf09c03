"""The logs of a Ray of our own, kept short: Ray writes to a process's log without end, and never removes one.

Ray's own rotation (`RAY_ROTATION_MAX_BYTES`) puts a pipe between each process and its log: what it wrote last is lost
when it is killed, and it cannot find its own log. Files are opened for appending, so a long one is emptied in place.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

log = logging.getLogger("dspool.runtime")

EVERY_S: Final = 10.0
FILE_BYTES: Final = 16 * 2**20
"""A log that grows past this is emptied."""
KEPT_BYTES: Final = 4 * 2**20
"""Of that, the end is kept beside it, as `NAME.old`."""
ENDED_FILES: Final = 300
"""Logs of processes that have ended; the oldest go. A worker leaves three."""
ENDED_BYTES: Final = 256 * 2**20
"""Of them together."""
_OLD: Final = ".old"
_OF_PROCESS: Final = re.compile(r"[-_.](\d+)\.(?:out|err|log|\d+\.std(?:out|err)\.log)(?:\.old)?")


@contextlib.contextmanager
def kept_short(directory: Path) -> Iterator[None]:
    """During the block a thread keeps the logs below `directory` short."""
    end = threading.Event()

    def keep() -> None:
        while not end.wait(EVERY_S):
            try:
                shorten(directory)
            except OSError as failed:
                log.warning("the logs in %s were not looked at: %s", directory, failed.strerror)

    thread = threading.Thread(target=keep, name="dspool-logs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def shorten(
    directory: Path,
    *,
    file_bytes: int = FILE_BYTES,
    kept_bytes: int = KEPT_BYTES,
    ended_files: int = ENDED_FILES,
    ended_bytes: int = ENDED_BYTES,
) -> None:
    """Empty what is too long, and remove the oldest logs of processes that have ended."""
    ended: list[tuple[float, int, Path]] = []
    for path in _logs(directory):
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            if about.st_size > file_bytes and path.suffix != _OLD:
                _empty(path, about.st_size, kept_bytes)
                about = path.stat()
            process = _OF_PROCESS.search(path.name)
            if process is not None and not psutil.pid_exists(int(process[1])):
                ended.append((about.st_mtime, about.st_size, path))
    total = 0
    for number, (_, size, path) in enumerate(sorted(ended, reverse=True), 1):
        total += size
        if number > ended_files or total > ended_bytes:
            path.unlink(missing_ok=True)


def _logs(directory: Path) -> Iterator[Path]:
    """Of Ray and Serve, of the fork server, of HAProxy."""
    for session in directory.glob("ray/session_2*"):
        yield from (path for path in session.glob("logs/**/*") if path.is_file() and not path.is_symlink())
        yield from session.glob("forkserver/*/log*")
    yield from directory.glob("h/**/*.log")


def _empty(path: Path, size: int, kept_bytes: int) -> None:
    with path.open("r+b") as file:
        file.seek(max(0, size - kept_bytes))
        end = file.read(kept_bytes)
        old = path.with_name(path.name + _OLD)
        old.touch(mode=0o600)
        old.write_bytes(end)
        # What comes between is lost. Whoever writes goes on at the new end: it appends.
        file.truncate(0)


__all__ = ["kept_short", "shorten"]
