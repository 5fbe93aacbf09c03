"""What `dspool dev` watches: the source and data of the programs, the configuration, `.env`. It never reads them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dspool.cli.named_source import find_module

if TYPE_CHECKING:
    from watchfiles import Change

_SKIPPED = {"__pycache__", "node_modules", "site-packages", "dist-packages", "build", "dist"}
_JUNK = (".pyc", ".pyo", ".swp", ".swx", ".tmp", "~", ".log", "-journal", "-wal", "-shm")
"""What editors, compilers and running programs write beside the files that they are about."""
_DEBOUNCE_MS = 300
_STEP_MS = 50
"""A burst of saves is one change: it ends when nothing more comes for a step, or after the first number."""


class Watch:
    """Tells of changes below the packages of `modules` and beside them, as a set of paths for each burst."""

    def __init__(self, modules: Iterable[str], files: Iterable[Path]) -> None:
        """`files` are watched by name, wherever they are."""
        self._modules = sorted({module.partition(".")[0] for module in modules})
        self._files = [file.absolute() for file in files]

    async def changes(self) -> AsyncIterator[set[Path]]:
        """Every burst of changes, for ever."""
        from watchfiles import awatch

        while True:
            folders = self.folders()
            flat = sorted({file.parent for file in self._files} | {Path.cwd(), *self._homes()})
            stop = asyncio.Event()
            found: asyncio.Queue[set[Path]] = asyncio.Queue()

            async def follow(places: list[Path], recursive: bool) -> None:
                async for burst in awatch(
                    *places,
                    watch_filter=lambda change, path: self.counts(Path(path)),
                    debounce=_DEBOUNCE_MS,
                    step=_STEP_MS,
                    recursive=recursive,
                    stop_event=stop,  # noqa: B023 - of this round
                    ignore_permission_denied=True,
                ):
                    if changed := self.changed(burst):
                        await found.put(changed)  # noqa: B023

            tasks = [asyncio.create_task(follow([one for one in flat if one.is_dir()], False))]
            if folders:
                tasks.append(asyncio.create_task(follow(folders, True)))
            try:
                while folders == self.folders():
                    yield await found.get()
            finally:
                stop.set()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def folders(self) -> list[Path]:
        """The packages of the programs, and the folders beside them in the current directory that hold source."""
        packages = [
            Path(place)
            for module in self._modules
            if (spec := find_module(module)) is not None
            for place in spec.submodule_search_locations or ()
        ]
        here = [
            entry
            for entry in sorted(Path.cwd().iterdir())
            if entry.is_dir() and not _is_skipped(entry.name) and not (entry / "pyvenv.cfg").exists()
        ]
        beside = [entry for entry in here if any(entry.glob("*.py")) or any(entry.glob("*/*.py"))]
        return sorted({one.absolute() for one in [*packages, *beside] if one.is_dir()})

    def counts(self, path: Path) -> bool:
        """Whether a change of `path` may change what the programs do."""
        if path in self._files:
            return True
        if path.name.endswith(_JUNK) or path.name.startswith((".", "#")) or path.name == "4913":
            return False
        here = Path.cwd()
        if path.parent == here and path.suffix != ".py" and here not in self._homes():
            return False
        try:
            parts = path.relative_to(here).parts
        except ValueError:
            parts = path.parts[-4:]
        return not any(_is_skipped(part) for part in parts) and not _is_output(path)

    def changed(self, burst: Collection[tuple[Change, str]]) -> set[Path]:
        """The paths of a burst, without files that came and went within it, as when an editor saves by renaming."""
        came = {path for change, path in burst if change.name == "added"}
        return {Path(path) for _, path in burst if path not in came or os.path.lexists(path)}

    def _homes(self) -> list[Path]:
        """Where modules lie that are single files."""
        return [
            Path(spec.origin).parent
            for module in self._modules
            if (spec := find_module(module)) is not None
            and spec.submodule_search_locations is None
            and spec.origin is not None
            and os.path.isfile(spec.origin)
        ]


def _is_output(path: Path) -> bool:
    """Whether what this process prints goes there: else each line would load the programs anew, which prints a line."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return True
    return False


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED or name.endswith(".egg-info")


__all__ = ["Watch"]
