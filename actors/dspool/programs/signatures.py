"""Signatures from data: one per distinct spec, with a precompiled check of the inputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import dspy
import msgspec
from dspy.signatures.signature import SignatureMeta

from dspool.errors import InvalidRequest
from dspool.messages import JSON
from dspool.messages.limits import (
    MAX_ALL_LITERALS,
    MAX_DESCRIPTION,
    MAX_FIELDS,
    MAX_INSTRUCTIONS,
    MAX_KEPT_TYPES,
    MAX_SPEC_BYTES,
    MAX_TYPES,
)
from dspool.programs.field_types import Budget, check_name, field_type, shown
from dspool.programs.imports import RESERVED
from dspool.programs.value_types import FieldType, type_name

_NO_FIELD = (
    RESERVED
    | {name for name in dir(dspy.Signature) if not name.startswith("_")}
    # `dir` does not tell what a class has from its metaclass: pydantic takes `instructions` for the field's default.
    | {name for name, value in vars(SignatureMeta).items() if isinstance(value, property)}
)
"""A field of such a name would change what runs instead of what is asked, or hide a part of the signature class."""


_SHOWN = 200


class Field(NamedTuple):
    name: str
    type: FieldType
    desc: str


class BuiltSignature:
    """A signature for DSPy together with what dspool needs to know about its fields."""

    __slots__ = ("__weakref__", "_fast", "_required", "dspy", "inputs", "literals", "outputs", "types")

    def __init__(
        self,
        signature: Any,
        inputs: tuple[Field, ...],
        outputs: tuple[Field, ...],
        *,
        types: int,
        literals: int,
    ) -> None:
        self.types = types
        """How many types it has, nested ones included."""
        self.literals = literals
        """How many values all its Literals have."""
        self.dspy = signature
        self.inputs = inputs
        self.outputs = outputs
        self._fast = {field.name: (field.type.fast, field.type.check) for field in inputs}
        self._required = tuple(f.name for f in inputs if not f.type.is_optional)

    def check_inputs(self, inputs: Mapping[str, JSON]) -> None:
        """Raises `InvalidRequest` with the field, the type expected and the type that came, never the value."""
        fast = self._fast
        for name, value in inputs.items():
            check = fast.get(name)
            if check is None:
                raise InvalidRequest(
                    f"unknown input {name[:80]!r}; the inputs are {cut(', '.join(fast))}", field=name[:80]
                )
            if type(value) is check[0]:
                continue
            if mismatch := check[1](value):
                path, expected, got = mismatch[0], cut(mismatch[1]), mismatch[2]
                raise InvalidRequest(
                    f"input {name + path!r}: expected {expected}, got {got}",
                    field=name + path,
                    expected=expected,
                    got=got,
                )
        if len(inputs) < len(fast):
            for name in self._required:
                if name not in inputs:
                    expected = cut(next(f.type.text for f in self.inputs if f.name == name))
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


def cut(text: str) -> str:
    """For a refusal: a type may be as long as a spec."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


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
    """Make the signature of a loaded program answer faster. What DSPy derives from it is a new class without the cache.

    Not one that waits for a type: pydantic makes new fields once it knows that.
    """
    if type(signature) is SignatureMeta and signature.__pydantic_complete__:
        signature._field_cache = signature.input_fields, signature.output_fields
        signature.__class__ = _CachedSignature


def build_signature(spec: JSON) -> BuiltSignature:
    """The signature that `spec` describes: `"question -> answer: str"`, or a dict with inputs and outputs.

    Equal specs give the same object, because building one costs milliseconds.

    Raises:
        InvalidRequest: a bad name, type or shape, or more than `dspool.messages.limits` has; the message says which.
    """
    try:
        canonical = msgspec.json.encode(spec, order="deterministic")
    except (TypeError, ValueError, RecursionError) as refused:
        raise InvalidRequest("a signature must be plain JSON") from refused
    if len(canonical) > MAX_SPEC_BYTES:
        raise InvalidRequest(f"a signature has at most {MAX_SPEC_BYTES} bytes", field="signature")
    return _built.get(canonical)


class _BuiltSignatures:
    """Those that programs use, and of the others the ones used last, up to `MAX_KEPT_TYPES` types in all."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._in_use: WeakValueDictionary[bytes, BuiltSignature] = WeakValueDictionary()
        self._recent: OrderedDict[bytes, BuiltSignature] = OrderedDict()
        self._types = 0

    def get(self, canonical: bytes) -> BuiltSignature:
        built = self._in_use.get(canonical) or _build(canonical)
        with self._lock:
            # Another thread may have built it meanwhile; the first one counts.
            built = self._in_use.setdefault(canonical, built)
            if canonical in self._recent:
                self._recent.move_to_end(canonical)
                return built
            self._recent[canonical] = built
            self._types += built.types
            while self._types > MAX_KEPT_TYPES:
                self._types -= self._recent.popitem(last=False)[1].types
        return built


_built = _BuiltSignatures()


def _build(canonical: bytes) -> BuiltSignature:
    spec = msgspec.json.decode(canonical)
    budget = Budget()
    if isinstance(spec, str):
        instructions, inputs, outputs = None, *_from_text(spec, budget)
    elif isinstance(spec, dict):
        instructions, inputs, outputs = _from_data(spec, budget)
    else:
        raise InvalidRequest(f"a signature is a text or an object, got {type_name(spec)}")
    _check_fields(inputs, outputs)
    definitions = {f.name: (f.type.annotation, dspy.InputField(**_desc(f))) for f in inputs}
    definitions |= {f.name: (f.type.annotation, dspy.OutputField(**_desc(f))) for f in outputs}
    # A dict, never a string: DSPy would import and run the module of a dotted type in a string.
    signature = dspy.Signature(definitions, instructions)
    return BuiltSignature(
        signature,
        inputs,
        outputs,
        types=MAX_TYPES - budget.types,
        literals=MAX_ALL_LITERALS - budget.literals,
    )


def _desc(field: Field) -> dict[str, str]:
    return {"desc": field.desc} if field.desc else {}


def _check_fields(inputs: tuple[Field, ...], outputs: tuple[Field, ...]) -> None:
    names: set[str] = set()
    for field in (*inputs, *outputs):
        if field.name in names:
            raise InvalidRequest(f"the field {field.name!r} is given twice", field=field.name)
        names.add(field.name)


def _check_count(side: str, count: int) -> None:
    if not 0 < count <= MAX_FIELDS:
        raise InvalidRequest(f"a signature needs 1 to {MAX_FIELDS} {side}, got {count}")


def _from_data(
    spec: dict[str, JSON], budget: Budget
) -> tuple[str | None, tuple[Field, ...], tuple[Field, ...]]:
    if unknown := set(spec) - {"instructions", "inputs", "outputs"}:
        raise InvalidRequest(
            f"unknown key {shown(min(unknown))} in a signature; known are instructions, inputs, outputs"
        )
    instructions = spec.get("instructions")
    if instructions is not None and (
        not isinstance(instructions, str) or len(instructions) > MAX_INSTRUCTIONS
    ):
        raise InvalidRequest(f"instructions must be a text of at most {MAX_INSTRUCTIONS} characters")
    return (
        instructions or None,
        _fields(spec.get("inputs"), "inputs", budget),
        _fields(spec.get("outputs"), "outputs", budget),
    )


def _fields(data: JSON, side: str, budget: Budget) -> tuple[Field, ...]:
    if not isinstance(data, list):
        raise InvalidRequest(f"{side} must be a list of fields, got {type_name(data)}")
    _check_count(side, len(data))
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
            raise InvalidRequest(f"{where}: unknown key {shown(min(extra))}; known are name, type, desc")
        name = check_name(field.get("name"), where=where, reserved=_NO_FIELD)
        kind = field.get("type", "str")
        inner = {key: field[key] for key in ("fields", "items", "values", "of") if key in field}
        if inner:
            kind = {"type": kind, **inner}
            if "fields" in inner:
                kind["name"] = "".join(part.capitalize() for part in name.split("_")) or "Object"
        desc = field.get("desc") or ""
        if not isinstance(desc, str) or len(desc) > MAX_DESCRIPTION:
            raise InvalidRequest(
                f"{where}: desc must be a text of at most {MAX_DESCRIPTION} characters", field=name
            )
        fields.append(Field(name, field_type(kind, where=name, budget=budget), desc))
    return tuple(fields)


def _from_text(text: str, budget: Budget) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    if len(text) > MAX_INSTRUCTIONS:
        raise InvalidRequest(f"a signature text has at most {MAX_INSTRUCTIONS} characters")
    sides = _split(text, "->")
    if len(sides) != 2:
        raise InvalidRequest("a signature text needs exactly one '->', such as 'context, question -> answer'")
    inputs, outputs = (_text_fields(*side, budget) for side in zip(("inputs", "outputs"), sides, strict=True))
    return inputs, outputs


def _text_fields(side: str, text: str, budget: Budget) -> tuple[Field, ...]:
    parts = [part for part in _split(text, ",") if part.strip()]
    _check_count(side, len(parts))
    return tuple(_text_field(part, budget) for part in parts)


def _text_field(part: str, budget: Budget) -> Field:
    name, colon, kind = (piece.strip() for piece in part.partition(":"))
    if not name.isidentifier() or (colon and not kind):
        raise InvalidRequest(f"cannot read the field {part.strip()[:80]!r} of the signature")
    name = check_name(name, where="signature", reserved=_NO_FIELD)
    return Field(name, field_type(kind or "str", where=name, budget=budget), "")


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
