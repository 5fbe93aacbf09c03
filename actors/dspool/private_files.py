"""Files and directories of ours that no other user of the machine may open: state, tokens, logs, run files.

Everything that dspool writes there goes through here. A new file is 0600 and a new directory 0700 from its first
moment, whatever the umask; one that is there and is wider is narrowed. What is another user's, or a link that another
user could have placed, is refused: whoever owns a file may read it, whatever its mode.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700

_SHARED = frozenset(
    Path("/", name)
    for name in (
        *(
            "",
            "bin",
            "boot",
            "dev",
            "dev/shm",
            "etc",
            "home",
            "lib",
            "media",
            "mnt",
            "opt",
            "proc",
            "root",
            "run",
        ),
        *("sbin", "srv", "sys", "tmp", "usr", "usr/local", "var", "var/lib", "var/log", "var/run", "var/tmp"),
    )
)
"""Directories of the system. Narrowing one would shut others out of what is theirs."""


class NotPrivate(OSError):
    """It cannot be made private; `strerror` says why."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(None, why, str(path))
        self.strerror = why


def make_directory(path: Path) -> None:
    """Make `path` and what is missing above it; one that is there becomes 0700.

    One of root's that others cannot write to stays as it is: a container's volume, which root may read anyway.

    Raises:
        NotPrivate: it is another user's, shared by many, or the user's home.
        OSError: it cannot be made.
    """
    missing = []
    place = path
    while not place.exists() and not place.is_symlink():
        missing.append(place)
        place = place.parent
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=DIRECTORY_MODE)
    _hold_private(path, change=True)


def check_directory(path: Path) -> None:
    """Whether `make_directory` would take `path`, which is there; changes nothing.

    Raises: as `make_directory`.
    """
    _hold_private(path, change=False)


def _hold_private(path: Path, *, change: bool) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.geteuid()):
        raise NotPrivate(path, "it is another user's link")
    # Through the descriptor: what is looked at is what is changed.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid():
            if status.st_uid != 0 or mode & stat.S_IWOTH:
                raise NotPrivate(path, "it is another user's directory")
            return
        if mode & 0o077:
            if mode & stat.S_ISVTX or path.resolve() in _SHARED | {_home()}:
                raise NotPrivate(path, "others use it too; name a directory of its own")
            if change:
                os.fchmod(descriptor, DIRECTORY_MODE)
    finally:
        os.close(descriptor)


def open_descriptor(path: str | Path, flags: int) -> int:
    """As `os.open`, for use as `opener` too. The file is a plain one of ours, 0600; new if `flags` say so.

    Raises:
        NotPrivate: it is another user's, a link or no plain file.
        OSError: it cannot be opened.
    """
    path = Path(path)
    if path.is_symlink():
        raise NotPrivate(path, "it is a link")
    # Not blocking: a FIFO in its place would hold us for ever.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE_MODE)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotPrivate(path, "it is no plain file")
        if status.st_uid != os.geteuid():
            raise NotPrivate(path, "it is another user's file")
        if stat.S_IMODE(status.st_mode) != FILE_MODE:
            os.fchmod(descriptor, FILE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def narrow(path: Path) -> None:
    """Make the file 0600 if it is there. Raises: as `open_descriptor`."""
    with contextlib.suppress(FileNotFoundError):
        os.close(open_descriptor(path, os.O_RDONLY))


def replace(path: Path, content: bytes) -> None:
    """Put `content` in the place of `path`, in one step and durably: nobody ever reads half of it.

    One writer at a time.

    Raises:
        OSError: it could not be written; the old file is there.
    """
    # Always the same name: each process that was killed while it wrote would leave another.
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(open_descriptor(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _home() -> Path | None:
    try:
        return Path.home().resolve()
    except RuntimeError:
        return None


__all__ = ["NotPrivate", "check_directory", "make_directory", "narrow", "open_descriptor", "replace"]
