"""What the schema that pydantic makes of a type tells of reading its values: whether that is safe, how long it takes.

Pydantic tries every member of a union. Where members hold the same union again in a field of the same name, each level
of a value doubles the time or worse: 15 kB take seconds. `Branching` counts the tries before anything is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from dspool.messages import JSON
from dspool.messages.limits import MAX_TRIES

_AS_THEY_CAME: Final = frozenset({
    "any", "none", "bool", "int", "float", "decimal", "complex", "date", "time", "datetime", "timedelta",
    "literal", "enum", "is-instance", "uuid", "url", "multi-host-url", "list", "tuple", "set", "frozenset",
    "dict", "model", "model-fields", "model-field", "typed-dict", "typed-dict-field", "dataclass",
    "dataclass-args", "dataclass-field", "union", "tagged-union", "nullable", "default", "definitions",
    "definition-ref", "lax-or-strict", "json-or-python", "str",
})  # fmt: skip
"""Kinds of schema that read no text out of another one."""
_MAKES_TEXT: Final = ("to_upper", "str_to_upper", "custom_init", "post_init")
_ARRAYS: Final = frozenset({"list", "tuple", "set", "frozenset", "generator"})
_FUNCTIONS: Final = ("no-info", "with-info")
"""Objects in a schema that are none themselves."""
_FIELDS: Final = ("model-fields", "typed-dict", "dataclass-args")


def makes_texts(schema: Any) -> bool:
    """Whether what is made may hold a text that did not come so: decoded, or by a function."""
    return any(
        part["type"] not in _AS_THEY_CAME
        or any(part.get(key) or (part.get("config") or {}).get(key) for key in _MAKES_TEXT)
        for part in _Schema(schema).parts()
    )


def imports(schema: Any) -> bool:
    """Whether reading a value would import what it names (`pydantic.ImportString`)."""
    functions = (part.get("function") for part in _Schema(schema).parts())
    names = (getattr(f.get("function"), "__name__", "") for f in functions if isinstance(f, dict))
    return "import_string" in names


class Branching:
    """How many tries reading a value takes. `any`: whether that may be more than its values."""

    def __init__(self, *schemas: Any) -> None:
        found = [_Schema(schema).branching() for schema in schemas]
        self._objects = max((objects for objects, _ in found), default=1)
        self._arrays = max((arrays for _, arrays in found), default=1)
        self.any = self._objects > 1 or self._arrays > 1

    def is_too_much(self, value: JSON) -> bool:
        tries, pending = 0, [(value, 1)]
        while pending:
            part, times = pending.pop()
            tries += times
            if tries > MAX_TRIES:
                return True
            if type(part) is dict:
                pending.extend((item, times * self._objects) for item in part.values())
            elif type(part) is list:
                pending.extend((item, times * self._arrays) for item in part)
        return False

    def is_too_much_text(self, text: str) -> bool:
        """The same for a text with values in it, read as JSON or nearly so: more rather than less."""
        tries, times = 1, [1]
        for mark in _STRUCTURE.findall(text):
            if mark in "{[":
                times.append(times[-1] * (self._objects if mark == "{" else self._arrays))
            elif mark != "," and len(times) > 1:
                times.pop()
            tries += times[-1]
            if tries > MAX_TRIES:
                return True
        return False


_STRUCTURE: Final = re.compile(r"[][{},]")


class _Schema:
    """A core schema as a graph: references lead to what they mean."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._defined: dict[str, Any] = {}
        self._known: dict[int, list[dict[str, Any]]] = {}
        """What each schema holds, by its `id()`, once references are known."""
        self._reaching = frozenset[int]()
        for part in self.parts():
            if "ref" in part and part["type"] != "definition-ref":
                self._defined[part["ref"]] = part

    def parts(self, start: Any = None) -> Iterator[dict[str, Any]]:
        """All schemas that reading with `start` may use, itself first."""
        pending, seen = [self._root if start is None else start], set()
        while pending:
            part = pending.pop()
            if id(part) not in seen:
                seen.add(id(part))
                yield part
                pending.extend(self._inner(part))

    def _holders(self) -> dict[int, list[int]]:
        """Of each schema those that hold it, by `id()`."""
        holders: dict[int, list[int]] = {}
        for part in self.parts():
            inner = self._known[id(part)] = self._inner(part)
            for one in inner:
                holders.setdefault(id(one), []).append(id(part))
        return holders

    def branching(self) -> tuple[int, int]:
        """Into how many tries an object, and an array, branches at most."""
        objects = arrays = 1
        holders = self._holders()
        for union in self.parts():
            if union["type"] != "union":
                continue
            self._reaching = _all_from(id(union), holders)
            fields: Counter[str] = Counter()
            many = 0
            for choice in union["choices"]:
                choice = choice[0] if isinstance(choice, tuple) else choice
                fields.update(self._recursive_fields(choice))
                many += self._is_recursive_array(choice)
            objects = max(objects, max(fields.values(), default=0) + fields.get("", 0) * (len(fields) > 1))
            arrays = max(arrays, many)
        return objects, arrays

    def _inner(self, part: dict[str, Any]) -> list[dict[str, Any]]:
        if (known := self._known.get(id(part))) is not None:
            return known
        if part["type"] == "definition-ref":
            target = self._defined.get(part["schema_ref"])
            return [] if target is None else [target]
        found: list[dict[str, Any]] = []
        pending = [value for key, value in part.items() if key not in ("metadata", "serialization")]
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                if isinstance(value.get("type"), str) and value["type"] not in _FUNCTIONS:
                    found.append(value)
                else:
                    pending.extend(value.values())
            elif isinstance(value, list | tuple):
                pending.extend(value)
        return found

    def _reaches(self, part: Any) -> bool:
        """Whether it holds the union that is looked at, however deep."""
        return id(part) in self._reaching

    def _containers(self, choice: Any) -> Iterator[dict[str, Any]]:
        """The objects and arrays that a choice is, through whatever is around them."""
        pending, seen = [choice], set()
        while pending:
            part = pending.pop()
            if id(part) in seen:
                continue
            seen.add(id(part))
            if part["type"] in (*_FIELDS, *_ARRAYS, "dict"):
                yield part
            else:
                pending.extend(self._inner(part))

    def _recursive_fields(self, choice: Any) -> set[str]:
        """Names of the fields in which it holds the union again; empty for any name."""
        names: set[str] = set()
        for part in self._containers(choice):
            if part["type"] == "dict":
                names |= {""} if self._reaches(part) else set()
            for name, field in part.get("fields", {}).items() if isinstance(part.get("fields"), dict) else ():
                if self._reaches(field):
                    alias = field.get("validation_alias")
                    names.add(alias if isinstance(alias, str) else name)
            if isinstance(part.get("fields"), list):
                names |= {field["name"] for field in part["fields"] if self._reaches(field)}
        return names

    def _is_recursive_array(self, choice: Any) -> bool:
        return any(part["type"] in _ARRAYS and self._reaches(part) for part in self._containers(choice))


def _all_from(start: int, edges: dict[int, list[int]]) -> frozenset[int]:
    pending, seen = [start], {start}
    while pending:
        for one in edges.get(pending.pop(), ()):
            if one not in seen:
                seen.add(one)
                pending.append(one)
    return frozenset(seen)


__all__ = ["Branching", "imports", "makes_texts"]
