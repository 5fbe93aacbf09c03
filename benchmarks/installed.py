"""dspool as people install it: from the wheel, into an environment that holds what the wheel asks for and nothing else.

What the wheel asks for comes by link from the environment that runs this: an environment costs a second, none of it is
this checkout, and a requirement that the wheel does not name is missing there as it would be elsewhere.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import uv
from packaging.requirements import Requirement

from benchmarks.common import ROOT

MB: Final = 1e6
UNUSED: Final = ("litellm",)
"""Of what DSPy asks for: it loads them for models that are asked through them, and for nothing else."""


def build_wheel(directory: Path, *, checkout: Path = ROOT) -> Path:
    """The wheel of `checkout`, as `make wheel` builds it but for the time that its files get."""
    environ = {**os.environ, "SOURCE_DATE_EPOCH": "1600000000"}
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)]
    subprocess.run(command, cwd=checkout, env=environ, check=True, capture_output=True)
    (wheel,) = directory.glob("dspool-*.whl")
    return wheel


def requirements(wheel: Path) -> list[Requirement]:
    """What the wheel itself asks for, without extras."""
    with zipfile.ZipFile(wheel) as content:
        (name,) = (name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        text = content.read(name).decode()
    return [
        requirement
        for line in re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE)
        if _counts(requirement := Requirement(line), frozenset())
    ]


def needed(
    asked: Iterable[Requirement], without: Iterable[str] = ()
) -> dict[str, importlib.metadata.Distribution]:
    """All distributions that `asked` brings in, by name; without those named and what only they ask for."""
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    left, refused = list(asked), {_canonical(name) for name in without}
    while left:
        requirement = left.pop()
        name, extras = _canonical(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen or name in refused:
            continue
        seen.add((name, extras))
        found[name] = distribution = importlib.metadata.distribution(name)
        left += [
            further for line in distribution.requires or () if _counts(further := Requirement(line), extras)
        ]
    return found


def size_mb(distributions: Mapping[str, importlib.metadata.Distribution]) -> dict[str, float]:
    """What each one's files take up, without compiled modules."""
    return {
        name: sum(file.size or 0 for file in one.files or () if file.suffix != ".pyc") / MB
        for name, one in distributions.items()
    }


def install(wheel: Path, directory: Path, *, without: Iterable[str] = ()) -> Path:
    """A new environment in `directory` with the wheel and what it needs; its Python."""
    # Not of the environment that runs this: the new one must not lean on it.
    interpreter = Path(sys.executable).resolve()
    subprocess.run([str(interpreter), "-I", "-m", "venv", "--without-pip", str(directory)], check=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    for distribution in needed(requirements(wheel), without).values():
        for entry in _entries(distribution):
            link = packages / entry.name
            if not link.is_symlink():
                link.symlink_to(entry.resolve())
    python = directory / "bin" / "python"
    flags = [
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-config",
        "--no-cache",
        "--link-mode",
        "copy",
        "--compile-bytecode",
    ]
    subprocess.run([uv.find_uv_bin(), "pip", "install", "--python", python, *flags, wheel], check=True)
    return python


def _entries(distribution: importlib.metadata.Distribution) -> Iterator[Path]:
    """What stands at the top of site-packages of it."""
    for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
        yield Path(str(distribution.locate_file(name)))


def _counts(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""})


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
