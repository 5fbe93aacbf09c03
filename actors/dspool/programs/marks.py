"""The marks with which DSPy makes parts of a message that are no text: an image by URL, a file of the operator.

Who could write one into a prompt would send such parts, so no value of a caller or of a model holds one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import msgspec
import pydantic
from dspy.adapters.types import base_type

from dspool.messages import JSON

MARKS: Final = (base_type.CUSTOM_TYPE_START_IDENTIFIER, base_type.CUSTOM_TYPE_END_IDENTIFIER)
_START, _END = MARKS
_FIRST: Final = "<"
assert all(mark.startswith(_FIRST) for mark in MARKS)
_NUMBERS: Final = frozenset({int, float, bool, type(None)})
_LEAVES: Final = _NUMBERS | {str, bytes}
_AS_BYTES: Final = tuple(mark.encode() for mark in MARKS)
_pack: Final = msgspec.msgpack.Encoder().encode


def is_marked(value: Any) -> bool:
    """Whether a text within `value`, or a key, holds one of `MARKS`."""
    # No generators for JSON: every input and output of every operation comes here.
    kind = type(value)
    if kind is str:
        return has_mark(value)
    if kind is dict:
        return any(map(is_marked, value)) or any(map(is_marked, value.values()))
    if kind is list or kind is tuple:
        return any(map(is_marked, value))
    return kind not in _NUMBERS and any(map(has_mark, within(value)))


def is_marked_json(value: JSON) -> bool:
    """The same of what came over a wire, in a fraction of the time where it is large and has no mark."""
    if type(value) is dict or type(value) is list:
        try:
            # msgpack has each text as it is, in one piece. Numbers may look like a mark; a mark never looks else.
            packed = _pack(value)
        except Exception:  # a large integer, half of a surrogate pair, what is no JSON
            return is_marked(value)
        if _AS_BYTES[0] not in packed and _AS_BYTES[1] not in packed:
            return False
    return is_marked(value)


def within(value: Any) -> Iterator[Any]:
    """`value` and all that it holds: keys, items, fields of models and dataclasses; each object once."""
    pending, seen = [value], set()
    while pending:
        part = pending.pop()
        yield part
        inner = _held(part)
        if inner is not None and id(part) not in seen:
            seen.add(id(part))
            pending.extend(inner)


def _held(part: Any) -> Collection[Any] | None:
    # The abstract classes take long to ask.
    kind = type(part)
    if kind in _LEAVES:
        return None
    if kind is list or kind is tuple:
        return part
    if kind is dict:
        return [*part, *part.values()]
    if isinstance(part, str | bytes | bytearray):
        return None
    if isinstance(part, Mapping):
        return [*part.keys(), *part.values()]
    if isinstance(part, pydantic.BaseModel):
        return [*vars(part).values(), *(part.model_extra or {}).items()]
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return [getattr(part, field.name, None) for field in dataclasses.fields(part)]
    return part if isinstance(part, Collection) else None


def has_mark(part: Any) -> bool:
    """The same of a text or of bytes alone."""
    if isinstance(part, str):
        # One character is found several times as fast as a word, and most texts have none.
        return _FIRST in part and (_START in part or _END in part)
    # Bytes stand in a prompt as the text that they are in UTF-8.
    return isinstance(part, bytes | bytearray) and any(mark in part for mark in _AS_BYTES)


__all__ = ["MARKS", "has_mark", "is_marked", "is_marked_json", "within"]
