"""Any value of Python as plain JSON: what programs return, and what callers pass by Python.

| value | JSON |
| --- | --- |
| text | itself; half of a surrogate pair becomes U+FFFD |
| integers of any size | a number |
| numbers that are not finite | none: refused |
| models, dataclasses, structs, `dspy.Example`s, types of DSPy | an object of their fields, or what they serialize to |
| numpy | numbers and lists of them |
| bytes | base64 |
| dates, times, UUIDs, decimals, paths, addresses | text, as pydantic writes it |
| enumerations | their value |
| lists, tuples, sets, queues | a list |
| keys that are no text | as JSON writes them: `true`, `null`, `3`; tuples as `a,b` |
| generators, functions, anything else | none: refused |
"""

from __future__ import annotations

import base64
import dataclasses
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from decimal import Decimal
from enum import Enum
from typing import Any, Final

import msgspec
import pydantic
import pydantic_core

from dspool.messages.commands import JSON

MAX_DEPTH: Final = 100
"""Of nested lists and objects. What decodes them recurses, and its own limit depends on how deep its stack is."""
MAX_VALUES: Final = 5_000_000
"""More take seconds to look at. Values that occur in several places count in each."""
_MAX_BITS: Final = 14_000
"""Python itself writes no integer of more than 4,300 digits."""
_LONGEST_PATH: Final = 200


class NotPlain(Exception):
    """A value that no JSON stands for. `path` leads to it from where the conversion began, without content."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.path = ""

    def within(self, part: str) -> NotPlain:
        """The same, one level further up."""
        self.path = (part + self.path)[:_LONGEST_PATH]
        return self


def plain(value: Any) -> JSON:
    """`value` as plain JSON. It may run code of the value's class.

    Raises:
        NotPlain: there is no JSON for it; says where.
    """
    return _plain(value, _Count(MAX_VALUES), 0)


def plain_text(text: str) -> str:
    """`text` as it can be sent: what stood in the place of half a surrogate pair is replaced."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class _Count:
    """How many values may still come: a value may hold itself, or the next one twice."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise NotPlain(f"more than {MAX_VALUES:,} values")


def _plain(value: Any, count: _Count, depth: int) -> JSON:
    kind = type(value)
    if kind is str:
        return value if value.isascii() else plain_text(value)
    if kind is int:
        return value if value.bit_length() <= _MAX_BITS else _refuse("an integer of more than 4,200 digits")
    if kind is float:
        return value if math.isfinite(value) else _refuse(f"{value}, which is no number in JSON")
    if value is None or kind is bool:
        return value
    if depth >= MAX_DEPTH:
        raise NotPlain(f"more than {MAX_DEPTH} levels of nesting")
    if kind is list or kind is tuple:
        return _list(value, count, depth)
    if kind is dict:
        return _object(value.items(), count, depth, "{}")
    try:
        return _other(value, kind, count, depth)
    except NotPlain:
        raise
    except BaseException as raised:  # its class may do anything
        raise NotPlain(f"{_name(kind)}, which raised {_name(type(raised))} when it was read") from raised


def _refuse(why: str) -> JSON:
    raise NotPlain(why)


def _list(values: Iterable[Any], count: _Count, depth: int) -> list[JSON]:
    items: list[JSON] = []
    for value in values:
        count.take(1)
        try:
            items.append(_plain(value, count, depth + 1))
        except NotPlain as refused:
            raise refused.within(f"[{len(items)}]") from refused.__cause__
    return items


def _object(items: Iterable[tuple[Any, Any]], count: _Count, depth: int, part: str = "") -> dict[str, JSON]:
    """`part` stands for every key in a path: keys may be content. Without one, a key is a field's name."""
    found: dict[str, JSON] = {}
    for key, value in items:
        count.take(1)
        try:
            name = plain_text(key) if type(key) is str else _key(key, count, depth)
            if name in found:
                raise NotPlain("two keys that are the same in JSON")
            found[name] = _plain(value, count, depth + 1)
        except NotPlain as refused:
            raise refused.within(part or f".{key}") from refused.__cause__
    return found


def _key(key: Any, count: _Count, depth: int) -> str:
    text = _plain(key, count, depth + 1)
    if type(text) is bool or text is None:
        return {True: "true", False: "false", None: "null"}[text]
    if type(text) is list and not any(isinstance(part, list | dict) for part in text):
        return ",".join(map(str, text))
    if isinstance(text, list | dict):
        raise NotPlain(f"a key that is a {_name(type(key))}")
    return str(text)


def _other(value: Any, kind: type, count: _Count, depth: int) -> JSON:
    """Of a class that JSON knows nothing of. May raise anything."""
    if isinstance(value, Enum):
        return _plain(value.value, count, depth)
    for exact, read in _EXACT:
        if isinstance(value, exact):
            return _plain(read(value), count, depth)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return _numpy(value, numpy, count, depth)
    if isinstance(value, pydantic.BaseModel):
        return _model(value, count, depth)
    dspy = sys.modules.get("dspy")
    if dspy is not None and isinstance(value, dspy.Example | dspy.primitives.prediction.Completions):
        return _object(value.items(), count, depth)
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        return _object(((name, getattr(value, name)) for name in fields), count, depth)
    if isinstance(value, msgspec.Struct):
        return _struct(value, count, depth)
    if hasattr(kind, "__attrs_attrs__"):
        names = [attribute.name for attribute in kind.__attrs_attrs__]
        return _object(((name, getattr(value, name)) for name in names), count, depth)
    if isinstance(value, Mapping):
        return _object(value.items(), count, depth, "{}")
    if isinstance(value, Sequence | Set | deque | ValuesView):
        return _list(value, count, depth)
    if isinstance(value, Iterator) or callable(value):
        # What it would give may never end, and may be somebody's else to read.
        raise NotPlain(f"{_name(kind)}, which is no JSON value")
    if isinstance(value, Decimal) and not value.is_finite():
        raise NotPlain(f"{value}, which is no number in JSON")
    try:
        return _plain(pydantic_core.to_jsonable_python(value), count, depth + 1)
    except pydantic_core.PydanticSerializationError:
        raise NotPlain(f"{_name(kind)}, which is no JSON value") from None


_EXACT: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
)
"""How to read what a subclass of these is, whatever it says of itself."""


def _numpy(value: Any, numpy: Any, count: _Count, depth: int) -> JSON:
    if value.dtype.kind in "Mm":  # in nanoseconds they would become integers
        return _plain(value.astype(str).tolist(), count, depth)
    count.take(value.size)
    own = {"f": numpy.dtype(float), "c": numpy.dtype(complex)}.get(value.dtype.kind)
    if own is not None and value.dtype.itemsize > own.itemsize:
        # Longer than Python's own: a list would have them as they are.
        value = value.astype(own)
    items = value.tolist()
    if value.dtype.kind in "iub" or (value.dtype.kind == "f" and bool(numpy.isfinite(value).all())):
        return items
    return _plain(items, count, depth)


def _model(value: pydantic.BaseModel, count: _Count, depth: int) -> JSON:
    """What its own serializers make of it, under the names that its schema has, without what it excludes; but bytes are
    base64, and DSPy's types their fields.
    """
    types = sys.modules.get("dspy.adapters.types.base_type")
    mark = None if types is None else types.CUSTOM_TYPE_START_IDENTIFIER
    # Without warnings, which quote the value.
    try:
        dumped = value.model_dump(mode="json", by_alias=True, warnings=False)
    except (pydantic_core.PydanticSerializationError, UnicodeError):
        # Bytes that are no text, or a value that only we can write.
        dumped = value.model_dump(by_alias=True, warnings=False)
    else:
        dumped = _with_bytes(dumped, value)
    if mark is not None and _holds(dumped, mark, depth):
        # Types of DSPy write themselves as a part of a prompt, which nobody else can read.
        dumped = _without_marks(value, dumped, mark, depth)
    return _plain(dumped, count, depth + 1)


def _without_marks(value: pydantic.BaseModel, dumped: Any, mark: str, depth: int) -> Any:
    if isinstance(value, pydantic.RootModel):
        return value.root
    if not isinstance(dumped, dict):
        return _held(value)
    shown = _shown(value)
    return {
        key: getattr(value, shown.get(key) or key, part) if _holds(part, mark, depth) else part
        for key, part in dumped.items()
    }


def _shown(value: pydantic.BaseModel) -> dict[str, str]:
    """Its fields that are sent, by the names under which they are."""
    return {
        f.serialization_alias or f.alias or name: name
        for name, f in type(value).model_fields.items()
        if not f.exclude
    }


def _with_bytes(dumped: Any, own: Any) -> Any:
    """`dumped`, which pydantic made of `own`, with base64 where it wrote bytes as the text that they may be."""
    if isinstance(own, bytes | bytearray | memoryview):
        content = bytes(own)
        return base64.b64encode(content).decode() if dumped == content.decode(errors="replace") else dumped
    if isinstance(own, pydantic.RootModel):
        return _with_bytes(dumped, own.root)
    if isinstance(dumped, list):
        alike = isinstance(own, Sequence | Set | deque) and len(own) == len(dumped)
        return [_with_bytes(part, item) for part, item in zip(dumped, own, strict=True)] if alike else dumped
    if not isinstance(dumped, dict):
        return dumped
    if isinstance(own, Mapping):
        if len(own) != len(dumped):
            return dumped
        pairs = zip(dumped.items(), own.values(), strict=True)
        return {key: _with_bytes(part, item) for (key, part), item in pairs}
    held = _held(own)
    return {key: _with_bytes(part, held.get(key)) for key, part in dumped.items()}


def _held(value: Any) -> dict[str, Any]:
    """What a model or dataclass holds, by the names under which it is sent."""
    if isinstance(value, pydantic.BaseModel):
        fields = {key: getattr(value, name) for key, name in _shown(value).items()}
        return {**fields, **(value.__pydantic_extra__ or {})}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    return {}


def _holds(value: Any, mark: str, depth: int) -> bool:
    if type(value) is str:
        return mark in value
    if depth > MAX_DEPTH:
        return False
    if type(value) is dict:
        return any(_holds(item, mark, depth + 1) for item in value.values())
    return type(value) is list and any(_holds(item, mark, depth + 1) for item in value)


def _struct(value: msgspec.Struct, count: _Count, depth: int) -> JSON:
    config = value.__struct_config__
    names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
    fields = _object(((name, getattr(value, field)) for name, field in names), count, depth)
    return fields if config.tag_field is None else {config.tag_field: config.tag, **fields}


def _name(kind: type) -> str:
    """The name of a class, even if the class computes its own name."""
    name: str = type.__dict__["__name__"].__get__(kind)
    return name[:_LONGEST_PATH]


__all__ = ["MAX_DEPTH", "NotPlain", "plain", "plain_text"]
