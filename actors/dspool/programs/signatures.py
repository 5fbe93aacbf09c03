"""Signatures from data: one per distinct spec, with a precompiled check of the inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import dspy
import msgspec
from dspy.signatures.signature import SignatureMeta

from dspool.errors import InvalidRequest
from dspool.messages import JSON
from dspool.programs.field_types import MAX_FIELDS, FieldType, check_name, field_type, type_name
from dspool.programs.imports import RESERVED

MAX_INSTRUCTIONS = 20_000

_NO_FIELD = RESERVED | {name for name in dir(dspy.Signature) if not name.startswith("_")}
"""A field of such a name would change what runs instead of what is asked, or hide a part of the signature class."""


class Field(NamedTuple):
    name: str
    type: FieldType
    desc: str


class BuiltSignature:
    """A signature for DSPy together with what dspool needs to know about its fields."""

    __slots__ = ("_fast", "_required", "dspy", "inputs", "outputs")

    def __init__(self, signature: Any, inputs: tuple[Field, ...], outputs: tuple[Field, ...]) -> None:
        self.dspy = signature
        self.inputs = inputs
        self.outputs = outputs
        self._fast = {field.name: (field.type.fast, field.type.check) for field in inputs}
        self._required = tuple(f.name for f in inputs if not f.type.text.startswith("Optional["))

    def check_inputs(self, inputs: Mapping[str, JSON]) -> None:
        """Raises `InvalidRequest` with the field, the type expected and the type that came, never the value."""
        fast = self._fast
        for name, value in inputs.items():
            check = fast.get(name)
            if check is None:
                raise InvalidRequest(
                    f"unknown input {name[:80]!r}; the inputs are {', '.join(fast)}", field=name[:80]
                )
            if type(value) is check[0]:
                continue
            if mismatch := check[1](value):
                path, expected, got = mismatch
                raise InvalidRequest(
                    f"input {name + path!r}: expected {expected}, got {got}",
                    field=name + path,
                    expected=expected,
                    got=got,
                )
        if len(inputs) < len(fast):
            for name in self._required:
                if name not in inputs:
                    expected = next(f.type.text for f in self.inputs if f.name == name)
                    raise InvalidRequest(
                        f"input {name!r} is missing: expected {expected}",
                        field=name,
                        expected=expected,
                        got="nothing",
                    )

    def describe(self) -> dict[str, JSON]:
        """The signature as plain data: instructions, inputs and outputs with name, type and desc."""
        return {
            "instructions": self.dspy.instructions,
            "inputs": [{"name": f.name, "type": f.type.text, "desc": f.desc} for f in self.inputs],
            "outputs": [{"name": f.name, "type": f.type.text, "desc": f.desc} for f in self.outputs],
        }


class _CachedSignature(SignatureMeta):
    """Without this DSPy collects a signature's inputs and outputs about ten times a call: a tenth of the time of a
    call to an in-process engine."""

    @property
    def input_fields(cls) -> dict[str, Any]:
        cache = cls.__dict__.get("_field_cache")
        # A copy: callers may change what they get, and always could.
        return dict(SignatureMeta.input_fields.__get__(cls) if cache is None else cache[0])

    @property
    def output_fields(cls) -> dict[str, Any]:
        cache = cls.__dict__.get("_field_cache")
        return dict(SignatureMeta.output_fields.__get__(cls) if cache is None else cache[1])


def cache_fields(signature: Any) -> None:
    """Make a signature built here, and not yet in use, answer faster. What DSPy derives from it is a new class without
    the cache."""
    if type(signature) is SignatureMeta:
        signature._field_cache = signature.input_fields, signature.output_fields
        signature.__class__ = _CachedSignature


def build_signature(spec: JSON) -> BuiltSignature:
    """The signature that `spec` describes: `"question -> answer: str"`, or a dict with inputs and outputs.

    Equal specs give the same object, because building one costs milliseconds.

    Raises:
        InvalidRequest: a bad name, type or shape; the message says which.
    """
    try:
        canonical = msgspec.json.encode(spec, order="deterministic")
    except (TypeError, ValueError, RecursionError) as refused:
        raise InvalidRequest("a signature must be plain JSON") from refused
    return _build(canonical)


@lru_cache(maxsize=1024)
def _build(canonical: bytes) -> BuiltSignature:
    spec = msgspec.json.decode(canonical)
    if isinstance(spec, str):
        instructions, inputs, outputs = None, *_from_text(spec)
    elif isinstance(spec, dict):
        instructions, inputs, outputs = _from_data(spec)
    else:
        raise InvalidRequest(f"a signature is a text or an object, got {type_name(spec)}")
    _check_fields(inputs, outputs)
    definitions = {f.name: (f.type.annotation, dspy.InputField(**_desc(f))) for f in inputs}
    definitions |= {f.name: (f.type.annotation, dspy.OutputField(**_desc(f))) for f in outputs}
    # A dict, never a string: DSPy would import and run the module of a dotted type in a string.
    return BuiltSignature(dspy.Signature(definitions, instructions), inputs, outputs)


def _desc(field: Field) -> dict[str, str]:
    return {"desc": field.desc} if field.desc else {}


def _check_fields(inputs: tuple[Field, ...], outputs: tuple[Field, ...]) -> None:
    for side, fields in (("inputs", inputs), ("outputs", outputs)):
        if not 0 < len(fields) <= MAX_FIELDS:
            raise InvalidRequest(f"a signature needs 1 to {MAX_FIELDS} {side}, got {len(fields)}")
    names: set[str] = set()
    for field in (*inputs, *outputs):
        if field.name in names:
            raise InvalidRequest(f"the field {field.name!r} is given twice", field=field.name)
        names.add(field.name)


def _from_data(spec: dict[str, JSON]) -> tuple[str | None, tuple[Field, ...], tuple[Field, ...]]:
    if unknown := set(spec) - {"instructions", "inputs", "outputs"}:
        raise InvalidRequest(
            f"unknown key {sorted(unknown)[0]!r} in a signature; known are instructions, inputs, outputs"
        )
    instructions = spec.get("instructions")
    if instructions is not None and (
        not isinstance(instructions, str) or len(instructions) > MAX_INSTRUCTIONS
    ):
        raise InvalidRequest(f"instructions must be a text of at most {MAX_INSTRUCTIONS} characters")
    return (
        instructions or None,
        _fields(spec.get("inputs"), "inputs"),
        _fields(spec.get("outputs"), "outputs"),
    )


def _fields(data: JSON, side: str) -> tuple[Field, ...]:
    if not isinstance(data, list):
        raise InvalidRequest(f"{side} must be a list of fields, got {type_name(data)}")
    fields = []
    for index, item in enumerate(data):
        field = {"name": item} if isinstance(item, str) else item
        where = f"{side}[{index}]"
        if not isinstance(field, dict):
            raise InvalidRequest(
                f"{where}: a field is an object with name, type and desc, got {type_name(field)}"
            )
        # An object type may be written flat: {"name": ..., "type": "object", "fields": [...]}.
        extra = set(field) - {"name", "type", "desc", "fields", "items", "values", "of"}
        if extra:
            raise InvalidRequest(f"{where}: unknown key {sorted(extra)[0]!r}; known are name, type, desc")
        name = check_name(field.get("name"), where=where, reserved=_NO_FIELD)
        kind = field.get("type", "str")
        inner = {key: field[key] for key in ("fields", "items", "values", "of") if key in field}
        if inner:
            kind = {"type": kind, **inner}
            if "fields" in inner:
                kind["name"] = "".join(part.capitalize() for part in name.split("_")) or "Object"
        desc = field.get("desc") or ""
        if not isinstance(desc, str) or len(desc) > 10_000:
            raise InvalidRequest(f"{where}: desc must be a text of at most 10,000 characters", field=name)
        fields.append(Field(name, field_type(kind, where=name), desc))
    return tuple(fields)


_PART = re.compile(r"\s*([A-Za-z_]\w*)\s*(?::\s*(.+?))?\s*", re.DOTALL)


def _from_text(text: str) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    if len(text) > MAX_INSTRUCTIONS:
        raise InvalidRequest(f"a signature text has at most {MAX_INSTRUCTIONS} characters")
    sides = _split(text, "->")
    if len(sides) != 2:
        raise InvalidRequest("a signature text needs exactly one '->', such as 'context, question -> answer'")
    inputs, outputs = (
        tuple(_text_field(part) for part in _split(side, ",") if part.strip()) for side in sides
    )
    return inputs, outputs


def _text_field(part: str) -> Field:
    match = _PART.fullmatch(part)
    if match is None:
        raise InvalidRequest(f"cannot read the field {part.strip()[:80]!r} of the signature")
    name = check_name(match[1], where="signature", reserved=_NO_FIELD)
    return Field(name, field_type(match[2] or "str", where=name), "")


def _split(text: str, separator: str) -> list[str]:
    """Split at `separator` outside brackets and quotes."""
    parts, depth, quote, start, at = [], 0, "", 0, 0
    while at < len(text):
        char = text[at]
        if quote:
            if char == "\\":
                at += 1
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
        elif depth == 0 and text.startswith(separator, at):
            parts.append(text[start:at])
            at = start = at + len(separator)
            continue
        at += 1
    parts.append(text[start:])
    return parts
