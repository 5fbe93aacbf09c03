"""What `media` reads, wherever it stands within a type: in the fields of models, dataclasses and named tuples, in
containers of any kind, behind aliases.

`media.readable` changes annotations, and pydantic has read those of a class when the class was made. What it made of
them, its core schema, is changed here instead.
"""

from __future__ import annotations

from typing import Any, Final

import pydantic
from pydantic_core import SchemaValidator

from dspool.programs.media import readable, reads

_CONTENT: Final = ("metadata", "serialization", "config", "cls", "function", "default", "expected")
"""Of a schema's keys those under which no schema stands."""


def read_everywhere(adapter: pydantic.TypeAdapter[Any]) -> pydantic.TypeAdapter[Any]:
    """The adapter, which from now on reads bytes, media and numbers as `media` does at every place of its type."""
    changes = _Changes()
    schema = changes.of(adapter.core_schema)
    if changes.any:
        adapter.core_schema = schema
        try:
            # Not the validators that classes have already: those read as pydantic does.
            adapter.validator = SchemaValidator(schema, _use_prebuilt=False)
        except TypeError:  # of a pydantic that does not know this
            adapter.validator = SchemaValidator(schema)
    return adapter


_CLASSES: Final = ("model", "dataclass", "typed-dict")


class _Changes:
    def __init__(self) -> None:
        self.any = False
        self._takes_infinity = False
        """Whether the class that is looked at says so."""
        self._known: dict[int, Any] = {}

    def of(self, part: Any) -> Any:
        """A copy with all changes; of what holds itself, pydantic has references."""
        if isinstance(part, list | tuple):
            return type(part)(self.of(item) for item in part)
        if not isinstance(part, dict):
            return part
        known = self._known.get(id(part))
        if known is None:
            known = self._known[id(part)] = self._changed(part)
        return known

    def _changed(self, part: dict[str, Any]) -> dict[str, Any]:
        kind = part.get("type")
        if not isinstance(kind, str):
            # The fields of a class by their names, of which one may be "type".
            return {name: self.of(field) for name, field in part.items()}
        if kind == "float":
            if self._takes_infinity or part.get("allow_inf_nan") is not None:
                return part
            self.any = True
            return {**part, "allow_inf_nan": False}
        if kind == "bytes":
            return self._read(part, _schema_of(bytes))
        if kind == "model" and reads(part["cls"]):
            return self._read(part, _schema_of(part["cls"]))
        if kind.startswith("function-"):
            function = part["function"].get("function")
            # A reader of ours is there already, or pydantic's own of base64.
            if reads(function) or isinstance(getattr(function, "__self__", None), pydantic.EncodedBytes):
                return part
        outside = self._takes_infinity
        if kind in _CLASSES:
            self._takes_infinity = (part.get("config") or {}).get("allow_inf_nan", False)
        changed = {key: value if key in _CONTENT else self.of(value) for key, value in part.items()}
        self._takes_infinity = outside
        return changed

    def _read(self, part: dict[str, Any], reading: dict[str, Any]) -> dict[str, Any]:
        self.any = True
        inner = {key: value for key, value in part.items() if key != "ref"}
        return {**reading, "schema": inner, **({"ref": part["ref"]} if "ref" in part else {})}


def _schema_of(kind: Any) -> dict[str, Any]:
    schema: Any = pydantic.TypeAdapter(readable(kind)).core_schema
    return dict(schema)


__all__ = ["read_everywhere"]
