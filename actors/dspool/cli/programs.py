"""Programs that `dspool up` is told to serve: `shop.answers:Answer`, or `qa=shop.answers:program`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from dspool.cli.named_source import check_source, find_module
from dspool.config import PoolConfig, load_config
from dspool.errors import ConfigError

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def flags_for(programs: list[str], file: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    """`flags`, and those that serve `programs` as well as what the other sources say.

    Raises:
        ConfigError: a program cannot be read, two have one name, or there is no such module.
    """
    named: dict[str, str] = {}
    for program in programs:
        name, path = _read(program)
        if name in named:
            raise ConfigError(
                f"two programs would be named {name!r}: give one another name, as in other={path}",
                key=f"programs.{name}",
                value=path,
            )
        named[name] = path
    modules = dict.fromkeys(path.partition(":")[0] for path in named.values())
    allowed = load_config(cli=flags, file=file).config.allowed_imports
    return {
        **flags,
        "programs": {name: {"import_path": path} for name, path in named.items()},
        "allowed_imports": list(dict.fromkeys([*allowed, *modules])),
    }


def find_here() -> None:
    """Let this process and its workers import what lies in the current directory."""
    here = os.getcwd()
    sys.path.insert(0, here)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))


def find_configured(config: PoolConfig) -> None:
    """As `find_here`, if a program of the configuration lies in the current directory and is found nowhere else."""
    paths = [program.import_path for program in config.programs.values() if program.import_path is not None]
    tops = {path.partition(":")[0].partition(".")[0] for path in paths}
    missing = [top for top in tops if find_module(top) is None]
    if any(Path(f"{top}.py").is_file() or Path(top).is_dir() for top in missing):
        find_here()


def _read(program: str) -> tuple[str, str]:
    """Its name in the pool, and its import path."""
    name, separator, path = program.rpartition("=")
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute) or (separator and not name):
        raise ConfigError(
            f"{program!r} names no program: package.module:Name, or name=package.module:Name",
            key="programs",
            value=program,
        )
    check_source(path)
    return name or _WORDS.sub("_", attribute).lower(), path


__all__ = ["find_configured", "find_here", "flags_for"]
