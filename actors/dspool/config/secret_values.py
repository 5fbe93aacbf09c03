"""Secrets as they come from outside: by a variable, or by a file that a variable or the configuration names.

No message here holds a value: only the name of what held it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dspool.errors import ConfigError

FILE_SUFFIX: Final = "_FILE"
"""`DSPOOL_TOKEN_FILE` names the file that holds what `DSPOOL_TOKEN` would."""
LONGEST: Final = 65_536
"""Bytes of a file with a secret."""
MOUNTED: Final = (Path("/run/secrets"), Path("/var/run/secrets"))
"""Where Docker, Podman and Kubernetes put secrets. Their owner and mode are the engine's choice."""

UNSENDABLE: Final = ("not empty", "no white space", "ASCII", "UTF-8")
"""The rules of a secret that no header would change or refuse."""


def checked_secret(text: str, source: str, *, for_header: bool = True) -> str:
    """`text`, which no header would change or refuse; not `for_header`, it may hold what is not ASCII.

    Raises:
        ConfigError: it is empty, or holds white space or a control character. `source` is named, the value is not.
    """
    if not text:
        raise ConfigError(f"{source} is empty", key=source, rule=UNSENDABLE[0])
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ConfigError(
            f"{source} holds white space or a control character, perhaps at its end; a key or token has none",
            key=source,
            rule=UNSENDABLE[1],
        )
    if for_header and not text.isascii():
        raise ConfigError(
            f"{source} holds a character beyond ASCII, perhaps a dash or a quote that a text editor put there; no "
            "header takes it",
            key=source,
            rule=UNSENDABLE[2],
        )
    return text


def read_secret(path: Path, source: str) -> str:
    """The text of the file without the one line end that editors and `echo` put there; `source` is who names it.

    Raises:
        ConfigError: it cannot be read, is too long or no text.
    """
    # Else it may be the secret itself, where the name of its file belongs.
    is_path = path.is_absolute() or os.path.exists(path)
    where = f"{path} ({source})" if is_path else f"the file that {source} names"
    try:
        # A FIFO in its place would hold us for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{where} is no plain file", key=source, rule="a readable file")
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except (OSError, ValueError) as failed:
        why = failed.strerror if isinstance(failed, OSError) else "no path holds a NUL"
        raise ConfigError(f"{where} cannot be read: {why}", key=source, rule="a readable file") from None
    if len(content) > LONGEST:
        raise ConfigError(f"{where} is longer than {LONGEST} bytes", key=source, rule="a short file")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is no text in UTF-8", key=source, rule=UNSENDABLE[3]) from None
    return text.removesuffix("\n").removesuffix("\r")


def secret_of(environ: Mapping[str, str], name: str) -> str | None:
    """The secret in the variable `name`, or in the file that `name`_FILE names; None where neither is set.

    Raises:
        ConfigError: both are set, the file cannot be read, or it is no secret that could be sent.
    """
    value = text_of(environ, name)
    return None if value is None else checked_secret(value, said_by(environ, name))


def text_of(environ: Mapping[str, str], name: str) -> str | None:
    """As `secret_of`, for what may hold white space. Raises: ConfigError."""
    value, file = environ.get(name) or None, environ.get(name + FILE_SUFFIX) or None
    if file is None:
        return value
    if value is not None:
        raise ConfigError(
            f"{name} and {name}{FILE_SUFFIX} are both set; set one", key=name, rule="one of the two"
        )
    return read_secret(Path(file), name + FILE_SUFFIX)


def said_by(environ: Mapping[str, str], name: str) -> str:
    """The variable that has the say for `name`: itself, or the one that names a file."""
    return name if environ.get(name) or not environ.get(name + FILE_SUFFIX) else name + FILE_SUFFIX


def is_mounted(path: Path) -> bool:
    """Whether a container engine put this file there."""
    return any(path.absolute().is_relative_to(place) for place in MOUNTED)


__all__ = [
    "FILE_SUFFIX",
    "UNSENDABLE",
    "checked_secret",
    "is_mounted",
    "read_secret",
    "said_by",
    "secret_of",
    "text_of",
]
