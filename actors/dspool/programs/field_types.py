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
import re
from typing import Any

import pydantic

from dspool.errors import InvalidRequest
from dspool.messages import JSON
from dspool.messages.limits import (
    MAX_ALL_LITERALS,
    MAX_DEPTH,
    MAX_DESCRIPTION,
    MAX_FIELD_NAME,
    MAX_FIELDS,
    MAX_LITERAL_CHARACTERS,
    MAX_LITERALS,
    MAX_TYPE_TEXT,
    MAX_TYPES,
)
from dspool.programs.adapters import refuse_message_parts
from dspool.programs.value_types import (
    SCALARS,
    FieldType,
    anything,
    dict_of,
    list_of,
    literal,
    object_of,
    optional_of,
    scalar,
    type_name,
)

_ESCAPE = r"\\(?:[\\'\"nrt]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})"
"""In a quoted value: only what Python reads without a warning."""
_TOKEN = re.compile(
    r"\s*+(?:[A-Za-z_]\w*+|[\[\],|]|-?[0-9]{1,20}(?![0-9])"
    rf"|'(?:[^'\\\n\r\0]|{_ESCAPE})*+'|\"(?:[^\"\\\n\r\0]|{_ESCAPE})*+\")"
)
_GRAMMAR = "str, int, float, bool, list[T], dict[str, T], Literal[...], Optional[T], T | None, or an object with fields"


class Budget:
    """How many types and values of literals one signature may still have, however it nests them."""

    __slots__ = ("characters", "literals", "types")

    def __init__(self) -> None:
        self.types = MAX_TYPES
        self.literals = MAX_ALL_LITERALS
        self.characters = MAX_LITERAL_CHARACTERS

    def take_type(self, where: str) -> None:
        self.types -= 1
        if self.types < 0:
            raise InvalidRequest(
                f"{where}: a signature has at most {MAX_TYPES} types, those inside others included",
                field=where,
            )

    def take_literals(self, values: list[Any], where: str) -> None:
        self.literals -= len(values)
        self.characters -= sum(len(value) for value in values if type(value) is str)
        if self.literals < 0 or self.characters < 0:
            raise InvalidRequest(
                f"{where}: all Literals of a signature have at most {MAX_ALL_LITERALS} values and "
                f"{MAX_LITERAL_CHARACTERS} characters together",
                field=where,
            )


def field_type(source: JSON, *, where: str, budget: Budget | None = None) -> FieldType:
    """The type that `source` (text or data) describes. `where` names the field in refusals.

    Raises:
        InvalidRequest: it is not in the grammar, or more than `budget` has left.
    """
    return _from(source, where, 0, budget or Budget())


def check_name(name: JSON, *, where: str, reserved: frozenset[str] = frozenset()) -> str:
    """`name`, if it may name a field: an identifier, no keyword, not reserved, no leading underscore."""
    if not isinstance(name, str) or not name.isascii() or not name.isidentifier() or keyword.iskeyword(name):
        raise InvalidRequest(f"{where}: a field name must be a Python identifier", field=str(name)[:80])
    if name.startswith("_") or name in reserved or len(name) > MAX_FIELD_NAME:
        raise InvalidRequest(
            f"{where}: the field name {name[:80]!r} is reserved, choose another one", field=name[:80]
        )
    return name


def shown(name: object) -> str:
    """Of what somebody sent, enough to find it again."""
    return repr(str(name)[:80])


def _from(source: JSON, where: str, depth: int, budget: Budget) -> FieldType:
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{where}: types may be nested at most {MAX_DEPTH} deep", field=where)
    if isinstance(source, str):
        return _Parser(source, where, budget).parse(depth)
    if not isinstance(source, dict):
        raise InvalidRequest(f"{where}: a type is text or an object, got {type_name(source)}", field=where)
    kind = source.get("type")
    allowed = _KEYS.get(kind) if isinstance(kind, str) else None
    if allowed is None:
        if isinstance(kind, str) and set(source) <= {"type", "desc"}:
            return _from(kind, where, depth + 1, budget)
        raise InvalidRequest(f"{where}: unknown type {shown(kind)}; known are {_GRAMMAR}", field=where)
    if unknown := set(source) - allowed - {"type"}:
        raise InvalidRequest(f"{where}: unknown key {shown(min(unknown))} in a type of {kind!r}", field=where)
    budget.take_type(where)
    if kind == "list":
        return list_of(_from(source.get("items", "str"), f"{where}[]", depth + 1, budget))
    if kind == "dict":
        return dict_of(_from(source.get("values", "str"), f"{where}{{}}", depth + 1, budget))
    if kind == "optional":
        return optional_of(_from(source.get("of", "str"), where, depth + 1, budget))
    if kind == "literal":
        return _literal(source.get("values"), where, budget)
    return _object(source, where, depth, budget)


_KEYS: dict[str, set[str]] = {
    "list": {"items"},
    "dict": {"values"},
    "optional": {"of"},
    "literal": {"values"},
    "object": {"name", "fields", "desc"},
}


def _literal(values: JSON, where: str, budget: Budget) -> FieldType:
    fits = isinstance(values, list) and 0 < len(values) <= MAX_LITERALS
    if not fits or not all(map(_is_literal, values)):
        raise InvalidRequest(
            f"{where}: a Literal needs 1 to {MAX_LITERALS} values of type str (valid Unicode), int (of at "
            "most 64 bits) or bool",
            field=where,
        )
    budget.take_literals(values, where)
    # Here too: an escape in a type's text hides a mark from whoever reads the spec as it came.
    refuse_message_parts({where: values})
    return literal(values)


def _is_literal(value: Any) -> bool:
    if type(value) is str:
        return is_unicode(value)
    return type(value) is bool or (type(value) is int and -(2**63) <= value < 2**63)


def is_unicode(text: str) -> bool:
    """Whether `text` can be sent: one with half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(source: dict[str, JSON], where: str, depth: int, budget: Budget) -> FieldType:
    fields = source.get("fields")
    if not isinstance(fields, list) or not 0 < len(fields) <= MAX_FIELDS:
        raise InvalidRequest(f"{where}: an object needs 1 to {MAX_FIELDS} fields", field=where)
    members: dict[str, FieldType] = {}
    descriptions: dict[str, str | None] = {}
    for field in fields:
        if not isinstance(field, dict) or set(field) - {"name", "type", "desc"}:
            raise InvalidRequest(f"{where}: a field of an object has name, type and desc", field=where)
        name = check_name(field.get("name"), where=where, reserved=_OBJECT_RESERVED)
        if name in members:
            raise InvalidRequest(f"{where}: the field {name!r} is given twice", field=name)
        members[name] = _from(field.get("type", "str"), f"{where}.{name}", depth + 1, budget)
        descriptions[name] = _text(field.get("desc"), where)
    title = check_name(source.get("name", "Object"), where=where)
    return object_of(title, members, descriptions)


_OBJECT_RESERVED = frozenset(name for name in dir(pydantic.BaseModel) if not name.startswith("_"))


def _text(value: JSON, where: str) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= MAX_DESCRIPTION):
        return value
    raise InvalidRequest(f"{where}: a desc is a text of at most {MAX_DESCRIPTION} characters", field=where)


class _Parser:
    """Recursive descent over the textual grammar; a refusal quotes what it cannot read."""

    def __init__(self, text: str, where: str, budget: Budget) -> None:
        self._where = where
        self._budget = budget
        self._tokens = self._read(text)
        self._at = 0

    def parse(self, depth: int) -> FieldType:
        kind = self._union(depth)
        if self._at != len(self._tokens):
            raise self._refuse(self._tokens[self._at])
        return kind

    def _read(self, text: str) -> list[str]:
        tokens, at = [], 0
        text = text.strip()
        if len(text) > MAX_TYPE_TEXT:
            raise InvalidRequest(
                f"{self._where}: a type has at most {MAX_TYPE_TEXT} characters", field=self._where
            )
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
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
            return optional_of(kind)
        return kind

    def _single(self, depth: int) -> FieldType:
        word = self._next()
        self._budget.take_type(self._where)
        if word in SCALARS:
            return scalar(word)
        if word == "Any":
            return anything()
        if word == "Literal":
            return self._literals()
        if word in ("list", "List"):
            return list_of(self._argument(depth) if self._peek() == "[" else anything())
        if word == "Optional":
            return optional_of(self._argument(depth))
        if word in ("dict", "Dict"):
            if self._peek() != "[":
                return dict_of(anything())
            self._next()
            if (key := self._next()) != "str":
                raise self._refuse(key)
            self._expect(",")
            values = self._union(depth + 1)
            self._expect("]")
            return dict_of(values)
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
            elif token[0] in "'\"-0123456789":
                values.append(self._value(token))
            else:
                raise self._refuse(token)
            if (after := self._next()) == "]":
                return _literal(values, self._where, self._budget)
            if after != ",":
                raise self._refuse(after)

    def _value(self, token: str) -> JSON:
        try:
            return ast.literal_eval(token) if token[0] in "'\"" else int(token)
        except (SyntaxError, ValueError):  # such as '\U00110000', beyond the last character
            raise self._refuse(token) from None
