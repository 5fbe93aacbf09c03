"""Surroundings that belong to one run alone, as `tests.fresh` makes them, and what is new in them.

Only what nobody else writes to can be watched; without FRESH_PLACES nothing is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = "FRESH_PLACES"
"""Directories that are ours alone, as PATH names them."""
PROCESSES = "FRESH_PROCESSES"
"""Set where every process that can be seen is ours."""
# Of pytest itself; Pyodide, which the sandbox fetches once a machine.
KEPT = ("pytest-of-*", ".cache/deno")
"""What may stay in a place."""
ABOVE_KEPT = (".cache",)
KEPT_IN_CHECKOUT = (
    ".git",
    ".venv",
    "build",
    ".*_cache",
    ".hypothesis",
    "*.egg-info",
    "__pycache__",
    "*/__pycache__",
)
PATIENCE_S = "FRESH_PATIENCE_S"
"""How long what is ending by itself may take; by default as long as Ray's agents outlive a killed driver, and some."""
_PATIENCE_S = 90.0
_CHANGED_LONG_AGO_NS = 1_000_000_000
LEFT_BEHIND = 70
"""Exit code of what did well and left something."""


class Surroundings:
    """`new()` is what came into `places`, and into the table of processes, since this was made."""

    def __init__(
        self, places: Iterable[Path], processes: bool = False, patience_s: float = _PATIENCE_S
    ) -> None:
        self._patience_s = patience_s
        self._places = [str(place) for place in places]
        self._processes = processes
        self._listings: dict[str, tuple[int, list[tuple[str, str, bool]]]] = {}
        self._known: frozenset[str] = frozenset()
        self._known = frozenset(self._things(everything=True))

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Surroundings | None:
        """What `tests.fresh` says in `environ` is ours, and the checkout; None where it says nothing."""
        if not (named := environ.get(PLACES)):
            return None
        patience_s = float(environ.get(PATIENCE_S, _PATIENCE_S))
        return cls([*map(Path, named.split(os.pathsep)), ROOT], PROCESSES in environ, patience_s)

    def new(self) -> frozenset[str]:
        """Paths, and `process PID`; of a new directory the directory alone."""
        return frozenset(self._things()) - self._known

    def left(self, patience_s: float | None = None) -> list[str]:
        """What is new and does not go in time, in order."""
        until = time.monotonic() + (self._patience_s if patience_s is None else patience_s)
        while (new := self._lasting()) and time.monotonic() < until:
            time.sleep(0.1)
        return new

    def _lasting(self) -> list[str]:
        # A process that has ended is gone, whether somebody has asked for its exit code or not.
        return sorted(thing for thing in self.new() if not _ended(thing))

    def _things(self, everything: bool = False) -> Iterator[str]:
        for place in self._places:
            yield from self._below(place, "", KEPT_IN_CHECKOUT if place == str(ROOT) else KEPT, everything)
        if self._processes:
            yield from (f"process {name}" for name in os.listdir("/proc") if name.isdigit())

    def _below(self, place: str, within: str, kept: tuple[str, ...], everything: bool) -> Iterator[str]:
        for name, path, is_directory in self._listing(place, within, kept):
            passed = name in ABOVE_KEPT
            if not passed:
                yield path
            if is_directory and (everything or passed or path in self._known):
                yield from self._below(place, name, kept, everything)

    def _listing(self, place: str, within: str, kept: tuple[str, ...]) -> list[tuple[str, str, bool]]:
        """Name within the place, path, and whether it is a directory, of what may not stay.

        From memory while a directory is unchanged: some hundred of them are looked at after each test.
        """
        directory = os.path.join(place, within)
        try:
            changed_ns = os.stat(directory).st_mtime_ns
            known_ns, listing = self._listings.get(directory, (0, []))
            if known_ns == changed_ns:
                return listing
            listing = [
                (name, entry.path, entry.is_dir(follow_symlinks=False))
                for entry in os.scandir(directory)
                if entry.path not in self._places
                and not _one_of(kept, name := os.path.join(within, entry.name))
            ]
        except OSError:
            return []
        # What has just changed may change once more within one tick of the file system's clock.
        if time.time_ns() - changed_ns > _CHANGED_LONG_AGO_NS:
            self._listings[directory] = (changed_ns, listing)
        return listing


def taken(environ: MutableMapping[str, str]) -> dict[str, str]:
    """What `Surroundings.of` reads, which `environ` then has no more."""
    return {name: environ.pop(name) for name in (PLACES, PROCESSES, PATIENCE_S) if name in environ}


def described(thing: str) -> str:
    """`thing`, and for a process what it runs."""
    if not (pid := _pid(thing)):
        return thing
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return thing
    return f"{thing} ({command.strip()[:200]})"


def _pid(thing: str) -> str:
    word, _, pid = thing.partition(" ")
    return pid if word == "process" else ""


def _ended(thing: str) -> bool:
    if not (pid := _pid(thing)):
        return False
    try:
        # The state follows the name, which is in brackets and may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _one_of(patterns: Iterable[str], path: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)
