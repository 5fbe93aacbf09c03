"""Programs that DSPy saved whole (`program.save(directory, save_program=True)`), and what they were saved with.

Such a directory is a pickle: reading it runs whatever code it holds. So it is read only below a directory that the
operator lists in `allowed_program_dirs`, for a deployment or the configuration, and never for a session.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import cloudpickle  # type: ignore[import-untyped]
import dspy
import msgspec
from dspy.utils.saving import get_dependency_versions

from dspool.config import PoolConfig
from dspool.core.lifecycle.source import ImportedSource
from dspool.errors import InvalidRequest, NotAllowed
from dspool.messages import JSON
from dspool.programs.models.errors import translate_errors

_FILES: Final = ("metadata.json", "program.pkl")
MAX_SHOWN: Final = 40


class _Loaded(NamedTuple):
    digests: dict[str, str]
    """Of each file as it was read, by its path."""
    modules: frozenset[str]
    """Where the classes of the program come from."""


_loaded: dict[str, _Loaded] = {}


def load_directory(directory: str, config: PoolConfig) -> Any:
    """The program in the directory.

    Raises:
        NotAllowed: it does not lie within `allowed_program_dirs`, links followed.
        InvalidRequest: there is no saved program, or one of another Python.
        ProgramError: reading it raised.
    """
    contents = {name: _read(directory, name, config) for name in _FILES}
    metadata = _metadata(contents["metadata.json"])
    for package, saved, here in _mismatches(metadata):
        if package == "python":
            # The bytecode in it is of that Python: another one may crash on it.
            raise InvalidRequest(
                f"program_dir was saved by Python {saved}, and this is {here}: save it again, or deploy its code by "
                "import path and its state as JSON",
                field="program_dir",
            )
    with translate_errors():
        module = cloudpickle.load(io.BytesIO(contents["program.pkl"]))
    if not isinstance(module, dspy.Module):
        raise InvalidRequest(
            f"program_dir holds a {type(module).__name__}, no dspy.Module", field="program_dir"
        )
    modules = {type(part).__module__ for _, part in module.named_sub_modules()} - {"__main__"}
    digests = {f"{directory}/{name}": _digest(content) for name, content in contents.items()}
    _loaded[directory] = _Loaded(digests, frozenset(modules))
    return module


def directory_source(directory: str) -> tuple[ImportedSource, frozenset[str]]:
    """What this process read from the directory and what of it is different by now, and the modules that it needs."""
    loaded = _loaded.get(directory)
    if loaded is None:
        return ImportedSource(), frozenset()
    changed = {}
    for file, digest in loaded.digests.items():
        try:
            same = _digest(Path(file).read_bytes()) == digest
        except OSError:
            same = False
        if not same:
            changed[file] = file
    return ImportedSource(loaded.digests, changed), loaded.modules


def other_versions(state: Mapping[str, JSON] | None, directory: str | None) -> str:
    """With which other versions of Python or DSPy something was saved; empty if with none, or it does not say."""
    metadata: JSON = (state or {}).get("metadata")
    if directory is not None:
        metadata = _metadata(Path(directory, "metadata.json").read_bytes())
    found = _mismatches(metadata)
    relevant = [one for one in found if directory is not None or one[0] != "cloudpickle"]
    return "; ".join(f"{package} {saved}, here is {here}" for package, saved, here in relevant)


def _mismatches(metadata: JSON) -> list[tuple[str, str, str]]:
    versions = metadata.get("dependency_versions") if isinstance(metadata, dict) else None
    here = get_dependency_versions()
    return (
        [
            (package, str(versions[package])[:MAX_SHOWN], here[package])
            for package in sorted(here.keys() & versions.keys())
            if versions[package] != here[package]
        ]
        if isinstance(versions, dict)
        else []
    )


def _metadata(content: bytes) -> JSON:
    try:
        metadata: JSON = msgspec.json.decode(content)
    except msgspec.DecodeError:
        raise InvalidRequest("program_dir has no readable metadata.json", field="program_dir") from None
    return metadata


def _read(directory: str, name: str, config: PoolConfig) -> bytes:
    allowed = [Path(one).resolve() for one in config.allowed_program_dirs]
    path = Path(directory)
    # Where it is and where each file of it really is: a link may lead anywhere.
    for place in (path.resolve(), (path / name).resolve()):
        if not path.is_absolute() or not any(place.is_relative_to(one) for one in allowed):
            raise NotAllowed(
                f"program_dir {directory[:200]!r} does not lie within allowed_program_dirs, which has "
                f"{', '.join(map(str, config.allowed_program_dirs)) or 'nothing'}",
                field="program_dir",
            )
    try:
        return (path / name).read_bytes()
    except OSError as failed:
        raise InvalidRequest(
            f"program_dir {directory[:200]!r} is no program that DSPy saved whole: {name}: {failed.strerror}",
            field="program_dir",
        ) from None


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


__all__ = ["directory_source", "load_directory", "other_versions"]
