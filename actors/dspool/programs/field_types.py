"""Types of signature fields: a small closed grammar, read by our own parser.

A type is written as text (`"str"`, `"list[int]"`, `"dict[str, float]"`, `"Literal['low', 'high']"`,
`"Optional[str]"`, `"int | None"`) or as data, which also has objects:
`{"type": "object", "name": "Person", "fields": [{"name": "age", "type": "int"}]}`,
`{"type": "list", "items": T}`, `{"type": "dict", "values": T}`, `{"type": "literal", "values": [...]}`,
`{"type": "optional", "of": T}`. The parser evaluates and imports nothing.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
from collections.abc import Callable
from typing import Any, Literal, Optional

import pydantic

from dspool.errors import InvalidRequest
from dspool.messages import JSON

MAX_DEPTH = 8
MAX_FIELDS = 64
MAX_LITERALS = 200

_TOKEN = re.compile(
    r"\s*(?:(?P<word>[A-Za-z_]\w*)|(?P<punct>[\[\],|])|(?P<quoted>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|(?P<number>-?\d+))"
)
_SCALARS: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_GRAMMAR = "str, int, float, bool, list[T], dict[str, T], Literal[...], Optional[T], T | None, or an object with fields"

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


def field_type(source: JSON, *, where: str) -> FieldType:
    """The type that `source` (text or data) describes. `where` names the field in refusals.

    Raises:
        InvalidRequest: it is not in the grammar.
    """
    return _from(source, where, 0)


def check_name(name: JSON, *, where: str, reserved: frozenset[str] = frozenset()) -> str:
    """`name`, if it may name a field: an identifier, no keyword, not reserved, no leading underscore."""
    if not isinstance(name, str) or not name.isascii() or not name.isidentifier() or keyword.iskeyword(name):
        raise InvalidRequest(f"{where}: a field name must be a Python identifier", field=str(name)[:80])
    if name.startswith("_") or name in reserved or len(name) > 80:
        raise InvalidRequest(f"{where}: the field name {name!r} is reserved, choose another one", field=name)
    return name


def type_name(value: Any) -> str:
    """The type of a JSON value, for messages that must not show the value."""
    return "null" if value is None else type(value).__name__


def _from(source: JSON, where: str, depth: int) -> FieldType:
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{where}: types may be nested at most {MAX_DEPTH} deep", field=where)
    if isinstance(source, str):
        return _Parser(source, where).parse()
    if not isinstance(source, dict):
        raise InvalidRequest(f"{where}: a type is text or an object, got {type_name(source)}", field=where)
    kind = source.get("type")
    allowed = _KEYS.get(kind) if isinstance(kind, str) else None
    if allowed is None:
        if isinstance(kind, str) and set(source) <= {"type", "desc"}:
            return _from(kind, where, depth + 1)
        raise InvalidRequest(f"{where}: unknown type {str(kind)[:80]!r}; known are {_GRAMMAR}", field=where)
    if unknown := set(source) - allowed - {"type"}:
        raise InvalidRequest(
            f"{where}: unknown key {sorted(unknown)[0]!r} in a type of {kind!r}", field=where
        )
    if kind == "list":
        return _list(_from(source.get("items", "str"), f"{where}[]", depth + 1))
    if kind == "dict":
        return _dict(_from(source.get("values", "str"), f"{where}{{}}", depth + 1))
    if kind == "optional":
        return _optional(_from(source.get("of", "str"), where, depth + 1))
    if kind == "literal":
        return _literal(source.get("values"), where)
    return _object(source, where, depth)


_KEYS: dict[str, set[str]] = {
    "list": {"items"},
    "dict": {"values"},
    "optional": {"of"},
    "literal": {"values"},
    "object": {"name", "fields", "desc"},
}


def _scalar(name: str) -> FieldType:
    python = _SCALARS[name]
    if python is float:

        def check(value: Any) -> Mismatch | None:
            # JSON has one number type: 3 is a fine float. NaN and infinity are not JSON.
            number = type(value) is int or (type(value) is float and math.isfinite(value))
            return None if number else ("", "float", type_name(value))

    else:

        def check(value: Any) -> Mismatch | None:
            return None if type(value) is python else ("", name, type_name(value))

    return FieldType(name, python, check, None if python is float else python)


def _any() -> FieldType:
    return FieldType("Any", Any, lambda value: None)


def _list(item: FieldType) -> FieldType:
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


def _dict(item: FieldType) -> FieldType:
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


def _optional(inner: FieldType) -> FieldType:
    check_inner = inner.check
    text = f"Optional[{inner.text}]"

    def check(value: Any) -> Mismatch | None:
        if value is None or (mismatch := check_inner(value)) is None:
            return None
        return mismatch[0], text if not mismatch[0] else mismatch[1], mismatch[2]

    return FieldType(text, Optional[inner.annotation], check)  # noqa: UP045


def _literal(values: JSON, where: str) -> FieldType:
    fits = isinstance(values, list) and 0 < len(values) <= MAX_LITERALS
    if not fits or not all(type(v) in (str, int, bool) for v in values):
        raise InvalidRequest(
            f"{where}: a Literal needs 1 to {MAX_LITERALS} values of type str, int or bool", field=where
        )
    allowed = {(type(v), v) for v in values}
    text = "Literal[" + ", ".join(repr(v) for v in values) + "]"

    def check(value: Any) -> Mismatch | None:
        # By type too: True == 1 in Python, not in JSON.
        if type(value) in (str, int, bool) and (type(value), value) in allowed:
            return None
        came = type_name(value)
        return "", text, f"another {came}" if type(value) in (str, int, bool) else came

    return FieldType(text, Literal[tuple(values)], check)


def _object(source: dict[str, JSON], where: str, depth: int) -> FieldType:
    fields = source.get("fields")
    if not isinstance(fields, list) or not 0 < len(fields) <= MAX_FIELDS:
        raise InvalidRequest(f"{where}: an object needs 1 to {MAX_FIELDS} fields", field=where)
    members: dict[str, FieldType] = {}
    definitions: dict[str, Any] = {}
    for field in fields:
        if not isinstance(field, dict) or set(field) - {"name", "type", "desc"}:
            raise InvalidRequest(f"{where}: a field of an object has name, type and desc", field=where)
        name = check_name(field.get("name"), where=where, reserved=_OBJECT_RESERVED)
        if name in members:
            raise InvalidRequest(f"{where}: the field {name!r} is given twice", field=name)
        member = members[name] = _from(field.get("type", "str"), f"{where}.{name}", depth + 1)
        optional = member.text.startswith("Optional[")
        definitions[name] = (
            member.annotation,
            pydantic.Field(default=None if optional else ..., description=_text(field.get("desc"), where)),
        )
    title = check_name(source.get("name", "Object"), where=where)
    model = pydantic.create_model(title, __config__=pydantic.ConfigDict(extra="forbid"), **definitions)
    required = [name for name, member in members.items() if not member.text.startswith("Optional[")]

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


_OBJECT_RESERVED = frozenset(name for name in dir(pydantic.BaseModel) if not name.startswith("_"))


def _text(value: JSON, where: str) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= 10_000):
        return value
    raise InvalidRequest(f"{where}: a desc is a text of at most 10,000 characters", field=where)


class _Parser:
    """Recursive descent over the textual grammar; a refusal quotes what it cannot read."""

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._tokens = self._read(text)
        self._at = 0

    def parse(self) -> FieldType:
        kind = self._union(0)
        if self._at != len(self._tokens):
            raise self._refuse(self._tokens[self._at])
        return kind

    def _read(self, text: str) -> list[str]:
        tokens, at = [], 0
        text = text.strip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or len(text) > 10_000:
                raise self._refuse(text[at : at + 20])
            tokens.append(match.group().strip())
            at = match.end()
        return tokens

    def _refuse(self, what: str) -> InvalidRequest:
        return InvalidRequest(
            f"{self._where}: cannot read the type at {what[:40]!r}; known are {_GRAMMAR}", field=self._where
        )

    def _next(self) -> str:
        if self._at >= len(self._tokens):
            raise self._refuse("the end")
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, token: str) -> None:
        if (got := self._next()) != token:
            raise self._refuse(got)

    def _peek(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _union(self, depth: int) -> FieldType:
        if depth > MAX_DEPTH:
            raise InvalidRequest(
                f"{self._where}: types may be nested at most {MAX_DEPTH} deep", field=self._where
            )
        kind = self._single(depth)
        if self._peek() == "|":
            self._next()
            if (other := self._next()) != "None":
                raise self._refuse(other)
            return _optional(kind)
        return kind

    def _single(self, depth: int) -> FieldType:
        word = self._next()
        if word in _SCALARS:
            return _scalar(word)
        if word == "Any":
            return _any()
        if word == "Literal":
            return self._literals()
        if word in ("list", "List"):
            return _list(self._argument(depth) if self._peek() == "[" else _any())
        if word == "Optional":
            return _optional(self._argument(depth))
        if word in ("dict", "Dict"):
            if self._peek() != "[":
                return _dict(_any())
            self._next()
            if (key := self._next()) != "str":
                raise self._refuse(key)
            self._expect(",")
            values = self._union(depth + 1)
            self._expect("]")
            return _dict(values)
        raise self._refuse(word)

    def _argument(self, depth: int) -> FieldType:
        self._expect("[")
        kind = self._union(depth + 1)
        self._expect("]")
        return kind

    def _literals(self) -> FieldType:
        self._expect("[")
        values: list[JSON] = []
        while True:
            token = self._next()
            if token in ("True", "False"):
                values.append(token == "True")
            elif token[0] in "'\"" or token.lstrip("-").isdigit():
                values.append(ast.literal_eval(token))
            else:
                raise self._refuse(token)
            if (after := self._next()) == "]":
                return _literal(values, self._where)
            if after != ",":
                raise self._refuse(after)
