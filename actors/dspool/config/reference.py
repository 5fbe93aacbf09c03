"""The table of all keys in `docs/reference/settings.md`, made from the model so that it cannot drift."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dspool.config.environment import PREFIX
from dspool.config.pool import PoolConfig


class Key(NamedTuple):
    """One row. `default` is JSON, "required", or "platform" where it depends on the machine."""

    key: str
    takes: str
    default: str
    variable: str
    meaning: str


def reference() -> list[Key]:
    """Every key, in the order of the model. `<name>` stands for a name of the user's choice."""
    return list(_keys(PoolConfig, "", PREFIX))


def reference_table() -> str:
    """`reference()` as a Markdown table."""
    lines = ["| key, variable | takes | default | meaning |", "| --- | --- | --- | --- |"]
    for row in reference():
        cells = [f"`{row.key}`<br>`{row.variable}`", row.takes, f"`{row.default}`", row.meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _keys(model: type[BaseModel], prefix: str, variable: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        key, var = f"{prefix}{name}", f"{variable}{name.upper()}"
        part, many = _part_of(field.annotation)
        if part is None or many:
            yield Key(key, _takes(field), _default(field), var, _meaning(field))
        if part is not None:
            inner = (f"{key}.<name>.", f"{var}__<NAME>__") if many else (f"{key}.", f"{var}__")
            yield from _keys(part, *inner)


def _part_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The group of keys that a field holds, and whether it holds many by name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) is dict:
        return _part_of(get_args(annotation)[1])[0], True
    return None, False


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "platform"
    return json.dumps(field.default, default=str)


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _takes(field: FieldInfo) -> str:
    kind, optional = _kind(field.annotation, field.metadata)
    return f"{kind} or null" if optional else kind


def _kind(annotation: Any, metadata: Any) -> tuple[str, bool]:
    origin, args = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _kind(args[0], annotation.__metadata__)
    if origin in (Union, types.UnionType):
        rest = [arg for arg in args if arg is not type(None)]
        return _kind(rest[0], metadata)[0], len(rest) < len(args)
    if origin is Literal:
        return " or ".join(f"`{arg}`" for arg in args), False
    if origin in (tuple, dict):
        return ("list" if origin is tuple else "mapping"), False
    plain = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}
    return plain[annotation] + _bounds(metadata), False


def _bounds(metadata: Any) -> str:
    bounds = []
    for bound in [inner for item in metadata for inner in getattr(item, "metadata", [item])]:
        for kind, sign, attribute in ((Gt, ">", "gt"), (Ge, ">=", "ge"), (Lt, "<", "lt"), (Le, "<=", "le")):
            if isinstance(bound, kind):
                bounds.append(f"{sign} {getattr(bound, attribute)}")
    return " " + ", ".join(bounds) if bounds else ""
