"""From which source this process imported what programs are made of, and whether that is still on disk.

A process imports a module once: whoever edits its file and loads the program again silently gets the old code. So an
import finder takes the digest of each file as Python reads it (also in the process that workers are forked from), and
`imported_source` compares it with the file as it is now. Data files that a module reads are not covered.

Modules of a program's package that nothing has imported yet are held to what they were when the program was loaded: a
late import of one that was edited since fails, because a process never runs half of an edit.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType

from dspool.core.lifecycle.source import ImportedSource

_LIBRARIES = frozenset(sysconfig.get_paths().values())
_OURS = frozenset({"dspool", "dspool_serve", "dspool_console"})
MAX_FILES = 2000
"""A package with more files than this counts only by what is imported of it."""

_records: dict[str, tuple[str, str]] = {}
"""By name of module: its file and the file's digest; "" when the file could not be read."""
_unread: dict[str, tuple[str, str]] = {}
"""The same of modules that nothing has imported, as they were when their package was first asked for."""


class _Recorder(MetaPathFinder):
    """Lets the other finders find, and reads the file before the import system does.

    An edit between the two then shows as a change; the other way round it would go unnoticed.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec: ModuleSpec | None = find(name, path, target)
            if spec is not None:
                if file := _file_of(spec):
                    if type(spec.loader) is SourceFileLoader and _is_own(name, file):
                        spec.loader = _ExactLoader(name, file)
                    _record(name, file, digest_of(file))
                return spec
        return None


class _ExactLoader(SourceFileLoader):
    """Compiles what is in the file now. Python's own goes by the bytecode, which it holds for current when the source
    has the same size and was written in the same second: that would be old code under a new digest."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        _record(fullname, path, _digest(source))
        code: CodeType = self.source_to_code(source, path)
        return code


def _record(name: str, file: str, digest: str) -> None:
    pinned = _unread.get(name, ("", digest))[1]
    if digest != pinned:
        raise ImportError(
            f"{file} was edited after this process loaded the program, of which it is a part: it is not imported into "
            "the older rest; `dspool deploy` brings all of it into new processes",
            name=name,
            path=file,
        )
    _records[name] = file, digest


def record_imports() -> None:
    """Record every import from now on. An earlier one counts as read from the file `imported_source` first finds."""
    if not any(isinstance(finder, _Recorder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Recorder())


def record_of(module: str) -> tuple[str, str] | None:
    """The file that an imported module was read from, and the digest that the file had; None if none was recorded."""
    return _records.get(module)


def imported_source(paths: Iterable[str]) -> ImportedSource:
    """What this process imported of the packages of these import paths and of the modules beside them."""
    tops = {path.partition(":")[0].partition(".")[0] for path in paths}
    packages = _packages(tops)
    for name, module in sorted(sys.modules.items()):
        if (
            name.partition(".")[0] in packages
            and name not in _records
            and (file := _file_of(_spec_of(module)))
        ):
            _records[name] = file, digest_of(file)
    for top in tops & sys.modules.keys():
        for name, file in _files_of(top):
            if name not in _records and name not in _unread:
                _unread[name] = file, digest_of(file)
    modules: dict[str, str] = {}
    changed: dict[str, str] = {}
    for name, (file, digest) in sorted({**_unread, **_records}.items()):
        if name.partition(".")[0] in packages and (name in sys.modules or name in _unread):
            modules[name] = digest
            if digest_of(file) != digest:
                changed[name] = file
    return ImportedSource(modules, changed)


def digest_of(file: str) -> str:
    """The digest of a file's content; "" if it cannot be read. The file may be inside an archive."""
    try:
        if not os.path.isfile(file):
            return _digest(_from_archive(file))
        with open(file, "rb") as content:
            return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except (OSError, KeyError, zipfile.BadZipFile):
        return ""


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@functools.cache
def _is_own(name: str, file: str) -> bool:
    """Whether a module is a user's own: neither dspool's nor of a library."""
    if name.partition(".")[0] in _OURS or any(file.startswith(f"{home}{os.sep}") for home in _LIBRARIES):
        return False
    return not {"site-packages", "dist-packages"} & set(file.split(os.sep))


def _files_of(top: str) -> list[tuple[str, str]]:
    """The modules below a package of a user's own, by name and file."""
    spec = _spec_of(sys.modules.get(top))
    found: list[tuple[str, str]] = []
    for home in (spec.submodule_search_locations or ()) if spec is not None else ():
        if not _is_own(top, os.path.join(home, "")):
            continue
        for folder, folders, files in os.walk(home):
            folders[:] = sorted(one for one in folders if one.isidentifier() and one != "__pycache__")
            inner = os.path.relpath(folder, home).split(os.sep) if folder != home else []
            for file in sorted(files):
                stem, _, kind = file.rpartition(".")
                if kind == "py" and stem.isidentifier():
                    parts = [top, *inner, *([stem] if stem != "__init__" else [])]
                    found.append((".".join(parts), os.path.join(folder, file)))
            if len(found) > MAX_FILES:
                return []
    return found


def _from_archive(file: str) -> bytes:
    archive = os.path.dirname(file)
    while archive != os.path.dirname(archive) and not os.path.isfile(archive):
        archive = os.path.dirname(archive)
    with zipfile.ZipFile(archive) as content:
        return content.read(os.path.relpath(file, archive).replace(os.sep, "/"))


def _packages(tops: set[str]) -> set[str]:
    """`tops` and the top-level modules imported from the same directories, save where libraries are installed."""
    homes: set[str] = set()
    for top in tops:
        with contextlib.suppress(ImportError, ValueError):
            homes |= _homes(importlib.util.find_spec(top))
    homes = {home for home in homes if not _holds_libraries(home)}
    siblings = {
        name
        for name, module in list(sys.modules.items())
        if "." not in name and not homes.isdisjoint(_homes(_spec_of(module)))
    }
    return tops | siblings


def _homes(spec: ModuleSpec | None) -> set[str]:
    """The directories that hold a top-level module or package; several for a package without `__init__`."""
    if spec is None:
        return set()
    locations = spec.submodule_search_locations
    places = list(locations) if locations is not None else [file] if (file := _file_of(spec)) else []
    return {os.path.dirname(place) for place in places}


def _holds_libraries(home: str) -> bool:
    return home in _LIBRARIES or os.path.basename(home) in ("site-packages", "dist-packages")


def _spec_of(module: object) -> ModuleSpec | None:
    """Read from `__dict__`: some modules import others when asked for an attribute."""
    spec = module.__dict__.get("__spec__") if isinstance(module, ModuleType) else None
    return spec if isinstance(spec, ModuleSpec) else None


def _file_of(spec: ModuleSpec | None) -> str | None:
    """The file of a module; None if built in, frozen, made by a program, or a package without `__init__`."""
    return spec.origin if spec is not None and spec.has_location else None


record_imports()
