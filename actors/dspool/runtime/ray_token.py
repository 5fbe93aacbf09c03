"""The token that a Ray cluster of our own asks for: a new one for each cluster, for our own eyes.

Left to itself Ray keeps one token for all clusters of a user in `~/.ray/auth_token`, where every user of the machine
may read it (mode 0644), and does not start where the home cannot be written to.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = "ray_token"
_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextmanager
def own_token(directory: Path) -> Iterator[Path]:
    """What this process and its children start or join in the block asks for a new token; the file that holds it.

    `directory` is one that only we can enter. Afterwards the file is gone and the operator's own variables hold again.
    """
    path = directory / FILE
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    before = {name: os.environ.get(name) for name in _VARIABLES}
    try:
        # The path and not the token: variables are handed on to whatever a worker starts.
        _set({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(path)})
        yield path
    finally:
        _set(before)
        path.unlink(missing_ok=True)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ray read the mode when it was imported, and keeps the first token it finds.
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
