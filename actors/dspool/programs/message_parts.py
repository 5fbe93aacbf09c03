"""Texts that DSPy would not send as text.

DSPy writes a value of a type of its own (an image, a file) into the prompt between two marks, and its adapters make
parts of the message of whatever stands between them: addresses that the model's side fetches, files of the operator's
account. In a text that somebody sends they would say what the operator's key is used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dspy.adapters.types import base_type

from dspool.errors import InvalidRequest
from dspool.messages import JSON

MARKS: Final = (base_type.CUSTOM_TYPE_START_IDENTIFIER, base_type.CUSTOM_TYPE_END_IDENTIFIER)


def refuse_message_parts(values: Mapping[str, JSON]) -> None:
    """Raises `InvalidRequest`, which names the value, if a text in `values` holds one of the marks, however deep."""
    for name, value in values.items():
        if _is_marked(name) or _is_marked(value):
            raise InvalidRequest(
                f"{name[:80]!r} holds a mark with which DSPy makes parts of a message that are no text",
                field=name[:80],
            )


def _is_marked(value: JSON) -> bool:
    kind = type(value)
    if kind is str:
        return any(mark in value for mark in MARKS)
    if kind is dict:
        return any(_is_marked(key) or _is_marked(inner) for key, inner in value.items())
    if kind is list or kind is tuple:
        return any(map(_is_marked, value))
    return False
