"""Programs that `dspool up` is told to serve: `shop.answers:Answer`, or `qa=shop.answers:program`."""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dspool.config import load_config
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
    top = module.partition(".")[0]
    if top not in sys.modules and (not top.isidentifier() or find_spec(top) is None):
        raise ConfigError(
            f"there is no module {top!r}, neither in {os.getcwd()} nor among what is installed",
            key="programs",
            value=program,
        )
    return name or _WORDS.sub("_", attribute).lower(), path


__all__ = ["find_here", "flags_for"]
