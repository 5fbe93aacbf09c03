"""Reads state that DSPy saved, from a file that the operator names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

_PICKLE = b"\x80"
"""How each pickle of Python 2 and later begins; no JSON does."""


def read_state(file: Path) -> dict[str, Any]:
    """The state in `file`.

    Raises:
        ValueError: it cannot be read, or is no JSON object; says what it is instead.
    """
    try:
        content = file.read_bytes()
    except IsADirectoryError:
        raise ValueError(
            "is a directory: a program that DSPy saved whole is a program_dir, not state"
        ) from None
    except OSError as failed:
        raise ValueError(f"cannot be read: {failed.strerror}") from None
    if file.suffix == ".pkl" or content.startswith(_PICKLE):
        raise ValueError(
            "is a pickle, which runs code when it is read: save the state as JSON, program.save('state.json')"
        )
    try:
        state = msgspec.json.decode(content)
    except msgspec.DecodeError as failed:
        raise ValueError(f"is not JSON: {failed}") from None
    if not isinstance(state, dict):
        raise ValueError(f"must hold a JSON object, it holds a {type(state).__name__}")
    return state


__all__ = ["read_state"]
