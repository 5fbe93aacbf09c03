"""The types that a field may have: for DSPy, as text, and as a strict check of JSON values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pydantic

SCALARS: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}

Mismatch = tuple[str, str, str]
"""Where (a path such as `[2].age`, empty for the value itself), the type expected, the type that came."""


class FieldType:
    """One type: for DSPy (`annotation`), as text (`text`), and as a strict check of JSON values."""

    __slots__ = ("annotation", "check", "fast", "text")

    def __init__(
        self, text: str, annotation: Any, check: Callable[[Any], Mismatch | None], fast: type | None = None
    ) -> None:
        self.text = text
        self.annotation = annotation
        self.check = check
        self.fast = fast
        """A value of exactly this Python type needs no further check."""

    @property
    def is_optional(self) -> bool:
        return self.text.startswith("Optional[")


def type_name(value: Any) -> str:
    """The type of a JSON value, for messages that must not show the value."""
    return "null" if value is None else type(value).__name__


def scalar(name: str) -> FieldType:
    python = SCALARS[name]
    if python is float:

        def check(value: Any) -> Mismatch | None:
            # JSON has one number type: 3 is a fine float. NaN and infinity are not JSON.
            number = type(value) is int or (type(value) is float and math.isfinite(value))
            return None if number else ("", "float", type_name(value))

    else:

        def check(value: Any) -> Mismatch | None:
            return None if type(value) is python else ("", name, type_name(value))

    return FieldType(name, python, check, None if python is float else python)


def anything() -> FieldType:
    return FieldType("Any", Any, lambda value: None)


def list_of(item: FieldType) -> FieldType:
    check_item = item.check

    def check(value: Any) -> Mismatch | None:
        if type(value) is not list:
            return "", text, type_name(value)
        for index, item_value in enumerate(value):
            if mismatch := check_item(item_value):
                return f"[{index}]{mismatch[0]}", mismatch[1], mismatch[2]
        return None

    text = f"list[{item.text}]"
    return FieldType(text, list[item.annotation], check)  # type: ignore[name-defined]


def dict_of(item: FieldType) -> FieldType:
    check_item = item.check

    def check(value: Any) -> Mismatch | None:
        if type(value) is not dict:
            return "", text, type_name(value)
        for key, item_value in value.items():
            if type(key) is not str:
                return "{}", "str keys", type_name(key)
            if mismatch := check_item(item_value):
                return f"{{}}{mismatch[0]}", mismatch[1], mismatch[2]
        return None

    text = f"dict[str, {item.text}]"
    return FieldType(text, dict[str, item.annotation], check)  # type: ignore[name-defined]


def optional_of(inner: FieldType) -> FieldType:
    check_inner = inner.check
    text = f"Optional[{inner.text}]"

    def check(value: Any) -> Mismatch | None:
        if value is None or (mismatch := check_inner(value)) is None:
            return None
        return mismatch[0], text if not mismatch[0] else mismatch[1], mismatch[2]

    # Not `Optional[...]`: `typing` would keep what it holds long after the last program that uses it.
    return FieldType(text, inner.annotation | None, check)


def literal(values: list[Any]) -> FieldType:
    """One of these texts, whole numbers and booleans."""
    allowed = {(type(v), v) for v in values}
    text = "Literal[" + ", ".join(repr(v) for v in values) + "]"

    def check(value: Any) -> Mismatch | None:
        # By type too: True == 1 in Python, not in JSON.
        if type(value) in (str, int, bool) and (type(value), value) in allowed:
            return None
        came = type_name(value)
        return "", text, f"another {came}" if type(value) in (str, int, bool) else came

    return FieldType(text, Literal[tuple(values)], check)


def object_of(title: str, members: dict[str, FieldType], descriptions: dict[str, str | None]) -> FieldType:
    """An object with these members, and no others."""
    definitions: dict[str, Any] = {
        name: (
            member.annotation,
            pydantic.Field(default=None if member.is_optional else ..., description=descriptions[name]),
        )
        for name, member in members.items()
    }
    model = pydantic.create_model(title, __config__=pydantic.ConfigDict(extra="forbid"), **definitions)
    required = [name for name, member in members.items() if not member.is_optional]

    def check(value: Any) -> Mismatch | None:
        if type(value) is not dict:
            return "", title, type_name(value)
        for key, item in value.items():
            kind = members.get(key)
            if kind is None:
                return "", f"{title} with only the fields {', '.join(members)}", "another field"
            if mismatch := kind.check(item):
                return f".{key}{mismatch[0]}", mismatch[1], mismatch[2]
        for name in required:
            if name not in value:
                return f".{name}", members[name].text, "nothing"
        return None

    return FieldType(title, model, check)
