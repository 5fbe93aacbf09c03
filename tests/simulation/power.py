"""What a disk has kept when its machine loses power: what was synced, and any part of what was not.

SQLite itself says when it syncs: the process's way to files (its VFS) gets a sync of ours, which notes what the file
held. Sectors that were written later are kept or lost by chance, each on its own, as on a real disk.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import random
from collections.abc import Callable
from typing import Any

SECTOR = 512
_METHODS = 18
"""Pointers of sqlite3_io_methods, version 3, after its number."""
_SYNC = 4
_OK = 0

_Open = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)
_Sync = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("max_path", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("open", ctypes.c_void_p),
    )


class _Methods(ctypes.Structure):
    _fields_ = (("version", ctypes.c_int), ("pointers", ctypes.c_void_p * _METHODS))


class SyncedFiles:
    """What each file held at its last sync. It copies files at each sync, so only while a seed needs that."""

    def __init__(self) -> None:
        self.watched: str | None = None
        """The directory whose files are watched."""
        self._paths: dict[int, str] = {}
        self._methods: dict[int, tuple[_Methods, Any]] = {}
        self._kept: list[Any] = []
        self._synced: dict[str, bytes] = {}

    def watch(self, directory: str | None) -> None:
        self.watched = directory
        self._synced.clear()
        self._paths.clear()

    def synced(self, path: str) -> None:
        if self.watched is not None and path.startswith(self.watched):
            with open(path, "rb") as file:
                self._synced[path] = file.read()

    def after_loss(self, dice: random.Random) -> dict[str, bytes]:
        """The files as the disk has them if power fails now."""
        assert self.watched is not None
        found = {}
        for name in sorted(os.listdir(self.watched)):
            path = os.path.join(self.watched, name)
            if name.endswith("-shm"):
                continue  # memory, not a file: SQLite makes it anew
            with open(path, "rb") as file:
                written = file.read()
            found[path] = _torn(self._synced.get(path, b""), written, dice)
        return found

    def install(self) -> None:
        """Let every file that SQLite opens in this process from now on say when it is synced."""
        library = ctypes.CDLL(ctypes.util.find_library("sqlite3"))
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        vfs = library.sqlite3_vfs_find(None).contents
        original = _Open(vfs.open)

        # As addresses: SQLite goes on using the name's, so it must be the same.
        def open_file(own: int, name: int | None, file: int, flags: int, out: int) -> int:
            result = int(original(own, name, file, flags, out))
            if result == _OK and name is not None:
                self._paths[file] = os.fsdecode(ctypes.string_at(name))
                self._replace_sync(file)
            return result

        hook = _Open(open_file)
        self._kept += [library, vfs, original, hook]
        vfs.open = ctypes.cast(hook, ctypes.c_void_p)

    def _replace_sync(self, file: int) -> None:
        first = ctypes.c_void_p.from_address(file)
        if not first.value:
            return
        if first.value not in self._methods:
            methods = _Methods.from_buffer_copy(_Methods.from_address(first.value))
            original = _Sync(methods.pointers[_SYNC])
            sync = _Sync(self._syncing(original))
            methods.pointers[_SYNC] = ctypes.cast(sync, ctypes.c_void_p).value
            self._methods[first.value] = methods, (original, sync)
        first.value = ctypes.addressof(self._methods[first.value][0])

    def _syncing(self, original: Callable[[int, int], int]) -> Callable[[int, int], int]:
        def sync(file: int, flags: int) -> int:
            # Not on the real disk: nothing of a simulation has to survive it.
            if (path := self._paths.get(file)) is not None:
                self.synced(path)
            return _OK

        return sync


def _torn(synced: bytes, written: bytes, dice: random.Random) -> bytes:
    """Each sector as it was synced or as it was written since; the end of the file, too."""
    if synced == written:
        return synced
    kept = bytearray(synced)
    for start in range(0, len(written), SECTOR):
        new = written[start : start + SECTOR]
        if new != synced[start : start + SECTOR] and dice.random() < 0.5:
            if len(kept) < start:
                kept.extend(bytes(start - len(kept)))
            kept[start : start + len(new)] = new
    return bytes(kept)


files = SyncedFiles()
