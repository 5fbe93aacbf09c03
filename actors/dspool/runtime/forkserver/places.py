"""Where a parent lives: one private directory for each job, node and environment, which its shims can find.

Standard library only: the shim imports this without site-packages.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

FOLDER = "forkserver"
"""Within Ray's session directory, which goes with the node's temporary files."""
HOW_VARIABLE = "_DSPOOL_START"
"""Tells a worker how it started: `fork`, or `exec: why`."""
PYTHON_VARIABLE = "_DSPOOL_PYTHON"
"""The Python of the installation that an upgrade chose for a pool's actors, whatever their node was started with."""

_PATH_LIMIT = 100
"""A socket's path has at most 107 bytes."""
_EXEC_FOR_S = 60.0
_MAKE_TRIES = 100
_CHANGING = frozenset({"_", "SHLVL", "OLDPWD", "PWD", HOW_VARIABLE})
"""Variables that do not change what a process loads."""


_LIBRARIES = frozenset({"site-packages", "dist-packages"})
_STANDARD_LIBRARY = os.path.dirname(os.__file__)


class Unavailable(Exception):
    """This worker cannot be forked, and must start by `exec`. The text says why."""


class Place:
    """The directory of one parent: its socket, its lock, and a note when forking is off for a while."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "s"
        self.log = directory / "log"
        self._lock = directory / "lock"
        self._note = directory / "exec-only"

    @classmethod
    def of(cls, worker: Sequence[str], environ: Mapping[str, str], load: str, python: str) -> Place:
        """The place for a worker with this command line and environment.

        Raises:
            Unavailable: Ray did not pass what identifies it, or the path is too long for a socket.
        """
        options = _options(worker)
        try:
            session = Path(options["temp-dir"]) / options["session-name"]
            identity = [options["node-id"], environ["RAY_JOB_ID"], environ["RAY_RAYLET_PID"], python, load]
        except KeyError as missing:
            raise Unavailable(f"Ray gave no {missing.args[0]}") from None
        variables = sorted((key, value) for key, value in environ.items() if key not in _CHANGING)
        key = hashlib.sha256(json.dumps([identity, variables]).encode()).hexdigest()[:12]
        place = cls(session / FOLDER / key)
        if len(os.fsencode(place.socket)) > _PATH_LIMIT:
            raise Unavailable(f"the path of Ray's session directory is too long for a socket: {session}")
        return place

    def make(self) -> None:
        """Create the directory, for this user alone.

        Raises:
            Unavailable: somebody else made it, or others may enter it.
        """
        for _ in range(_MAKE_TRIES):
            # A parent that ends meanwhile removes empty directories.
            with contextlib.suppress(FileNotFoundError):
                for directory in (self.directory.parent, self.directory):
                    _make_private(directory)
                return
        raise Unavailable(f"{self.directory} was taken away again and again")

    @contextlib.contextmanager
    def locked(self, timeout_s: float) -> Iterator[bool]:
        """Yields whether it got the lock in time. Starting and removing a parent need it."""
        deadline = time.monotonic() + timeout_s
        while (descriptor := self._lock_now()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _lock_now(self) -> int | None:
        """A descriptor that holds the lock, or None."""
        # Without the directory, which a parent may just have removed, this one would wait in vain.
        self.make()
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None
        if self._take_lock(descriptor):
            return descriptor
        os.close(descriptor)
        return None

    def _take_lock(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        # The holder before may have removed the file: then this is a lock on nothing.
        with contextlib.suppress(FileNotFoundError):
            return os.fstat(descriptor).st_ino == os.stat(self._lock).st_ino
        return False

    def exec_only(self) -> str | None:
        """Why workers here start by `exec` for now; None: they need not."""
        try:
            age_s = time.time() - self._note.stat().st_mtime
            return self._note.read_text() if 0 <= age_s < _EXEC_FOR_S else None
        except OSError:
            return None

    def give_up(self, why: str) -> None:
        """Have workers start by `exec` for a minute: only one worker waits for the time-out, not all."""
        with contextlib.suppress(OSError):
            self._note.write_text(why)

    def remove(self, inode: int) -> None:
        """Remove everything, unless a shim is about to use it or the socket is another parent's by now."""
        if not self._has(inode):
            return
        with contextlib.suppress(OSError, Unavailable), self.locked(0.0) as locked:
            if not locked or not self._has(inode):
                return
            for path in (self.socket, self.log, self._note, self._lock):
                path.unlink(missing_ok=True)
            self.directory.rmdir()
            self.directory.parent.rmdir()

    def _has(self, inode: int) -> bool:
        try:
            return self.socket.stat().st_ino == inode
        except OSError:
            return False


def listen(place: Place) -> socket.socket:
    """The socket of a parent at `place`, for this user alone."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(place.socket))
    finally:
        os.umask(before)
    listener.listen(128)
    return listener


def _make_private(directory: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise Unavailable(f"{directory} is not a directory that only this user may enter")


def is_library(path: str) -> bool:
    """Whether Python's own library or an installed package is there, and not what an author works on."""
    return path.startswith(_STANDARD_LIBRARY) or not _LIBRARIES.isdisjoint(Path(path).parts)


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """`--name=value` and `--name value` by name."""
    options = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            options[name] = value if equals else following
    return options
