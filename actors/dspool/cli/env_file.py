"""Variables from a file in the form of `.env`, for the command that is told to read it."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from dspool.errors import ConfigError

_LONGEST: Final = 100_000
"""Linux starts no process with a variable of more than 128 KiB."""


def take_variables(path: Path, environ: MutableMapping[str, str]) -> list[str]:
    """Set in `environ` what the file sets and `environ` does not, without replacing `${...}`; the names of those.

    Raises:
        ConfigError: it cannot be read, or a line is none; the message has the line's number and not its content.
    """
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8") as file:
            bindings = list(parse_stream(file))
    except (OSError, UnicodeDecodeError) as unreadable:
        why = unreadable.strerror if isinstance(unreadable, OSError) else "it is no text in UTF-8"
        raise ConfigError(f"cannot read {path}: {why}", key="env_file", value=str(path)) from None
    found: dict[str, str] = {}
    for binding in bindings:
        line = f"{path} line {binding.original.line}"
        # No variable holds a NUL, and no name a `=`.
        if (
            binding.error
            or (binding.key is not None and (binding.value is None or "=" in binding.key))
            or "\0" in binding.original.string
        ):
            raise ConfigError(f"{line}: must be NAME=VALUE", key="env_file", value=str(path))
        if len(binding.original.string.encode()) > _LONGEST:
            raise ConfigError(
                f"{line}: longer than {_LONGEST} bytes, and no process could be started with it",
                key="env_file",
                value=str(path),
            )
        if binding.key is not None and binding.value is not None:
            found[binding.key] = binding.value
    taken = {name: value for name, value in found.items() if name not in environ}
    environ.update(taken)
    return sorted(taken)


__all__ = ["take_variables"]
