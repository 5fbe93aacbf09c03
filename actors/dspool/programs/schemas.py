"""What a program takes and gives as JSON Schema (draft 2020-12), complete in itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple

import pydantic
from pydantic.json_schema import GenerateJsonSchema

from dspool.messages import JSON
from dspool.messages.plain import NotPlain, plain
from dspool.programs.core_schemas import imports
from dspool.programs.inner_types import read_everywhere
from dspool.programs.media import readable

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
UNTYPED: Final = object()
"""In the place of an annotation: any JSON value, as it is."""
IMPOSSIBLE: Final = "no JSON value makes one"
"""Of a type that pydantic cannot build."""

Mode = Literal["validation", "serialization"]
_REST: Final = ""
"""No input is called so."""


class SchemaField(NamedTuple):
    """One input or output of a program."""

    name: str
    annotation: Any = UNTYPED
    required: bool = True
    description: str = ""
    default: Any = inspect.Parameter.empty


def adapter_for(annotation: Any, mode: Mode = "validation") -> pydantic.TypeAdapter[Any] | None:
    """What makes values of a type; None if nothing can make them of JSON, or no JSON of them."""
    try:
        adapter: pydantic.TypeAdapter[Any] = read_everywhere(pydantic.TypeAdapter(readable(annotation)))
        adapter.json_schema(mode=mode)
    except Exception:  # of pydantic, or of a class that makes its own schema
        return None
    # Importing runs code, and a caller would name it.
    return None if imports(adapter.core_schema) else adapter


def object_schema(
    fields: Iterable[SchemaField], mode: Mode, *, open: bool, rest: Any = UNTYPED
) -> dict[str, JSON]:
    """The schema of an object with these fields; `open`: and any others, of the type `rest`."""
    fields = (*fields, SchemaField(_REST, rest, required=False))
    adapters = {
        field.name: adapter_for(field.annotation, mode) for field in fields if field.annotation is not UNTYPED
    }
    possible: list[Any] = [(name, mode, adapter) for name, adapter in adapters.items() if adapter is not None]
    described, rest = pydantic.TypeAdapter.json_schemas(
        possible, ref_template="#/$defs/{model}", schema_generator=_Quiet
    )
    properties: dict[str, JSON] = {}
    for field in fields:
        schema: dict[str, JSON] = dict(described.get((field.name, mode), {}))
        if field.name in adapters and adapters[field.name] is None and mode == "validation":
            schema = {"not": {}, "description": IMPOSSIBLE}
        if field.description:
            schema = {**schema, "description": field.description}
        if field.default is not inspect.Parameter.empty:
            schema |= _default(field.default)
        properties[field.name] = schema
    others = properties.pop(_REST) or True
    schema = {"$schema": DIALECT, "type": "object", "properties": properties}
    if required := [field.name for field in fields if field.required]:
        schema["required"] = required
    schema["additionalProperties"] = others if open else False
    if rest.get("$defs"):
        schema["$defs"] = rest["$defs"]
    return schema


class _Quiet(GenerateJsonSchema):
    # What cannot be shown is left out; its warnings would quote defaults.
    ignored_warning_kinds = {"skipped-choice", "non-serializable-default", "skipped-discriminator"}  # noqa: RUF012


def _default(value: Any) -> dict[str, JSON]:
    try:
        return {"default": plain(value)}
    except NotPlain:
        return {}


__all__ = ["DIALECT", "IMPOSSIBLE", "UNTYPED", "SchemaField", "adapter_for", "object_schema"]
