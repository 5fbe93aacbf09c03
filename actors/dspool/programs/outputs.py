"""What programs return, as plain JSON: all of it is sent, or refused by an error that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_origin, is_typeddict

import dspy

from dspool.errors import ProgramError
from dspool.messages import JSON
from dspool.messages.plain import NotPlain, plain, plain_text
from dspool.programs.inputs import signature_field, signatures_of
from dspool.programs.schemas import DIALECT, UNTYPED, SchemaField, adapter_for, object_schema

RESULT: Final = "result"
"""The output of a program that returns neither a prediction nor an object."""


def outputs_of(returned: Any) -> dict[str, JSON]:
    """The fields of what a program returned; whatever is neither a prediction nor a dict is the field `result`.

    Raises:
        ProgramError: a value that no JSON stands for, `field` says which; an output whose name is no text.
    """
    if not isinstance(returned, (dspy.Example, Mapping)):
        if returned is None:
            # A `forward` without a return, or one that gave up (BestOfN).
            raise ProgramError("the program returned None, which is no answer", reason="no_answer")
        return {RESULT: to_json(returned, RESULT)}
    outputs = {}
    for name, value in returned.items():
        if type(name) is str and type(value) is str and value.isascii() and name.isascii():
            outputs[name] = value
            continue
        if type(name) is not str:
            raise ProgramError(
                f"the program returned an output whose name is a value of type {type(name).__name__}, not a text",
                reason="not_json",
            )
        if (text := plain_text(name)) in outputs:
            raise ProgramError("the program returned two outputs of one name", field=text, reason="not_json")
        outputs[text] = to_json(value, name)
    return outputs


def to_json(value: Any, field: str = "") -> JSON:
    """`value` as plain JSON, see `dspool.messages.plain`. Raises `ProgramError`: names `field` and the place in it."""
    try:
        return plain(value)
    except NotPlain as refused:
        path = plain_text(field)[:200] + refused.path
        raise ProgramError(
            f"the program returned a value that cannot be sent: output {path!r} holds {refused.why}",
            field=path,
            reason="not_json",
        ) from refused.__cause__


def returned_schema(module: Any, annotation: Any) -> dict[str, JSON]:
    """The outputs of a program from an import path as JSON Schema: what `forward` says that it returns, else what its
    predictors give, of which it may return any part and more."""
    if (
        annotation is UNTYPED
        or annotation is Any
        or isinstance(annotation, str)
        or _is_prediction(annotation)
    ):
        return _predicted(module)
    if is_typeddict(annotation) or _is_mapping(annotation):
        adapter = adapter_for(annotation, "serialization")
        if adapter is None:
            return _predicted(module)
        return {"$schema": DIALECT, **adapter.json_schema(mode="serialization")}
    return object_schema([SchemaField(RESULT, annotation)], "serialization", open=False)


def _is_prediction(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, dspy.Example)


def _is_mapping(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _predicted(module: Any) -> dict[str, JSON]:
    own = getattr(type(module), "__module__", "").partition(".")[0] == "dspy"
    fields: dict[str, SchemaField] = {}
    for signature in signatures_of(module, inner=not own):
        for name, info in signature.output_fields.items():
            field = signature_field(name, info)
            fields.setdefault(name, field._replace(required=own))
    return object_schema(fields.values(), "serialization", open=True)


__all__ = ["RESULT", "outputs_of", "returned_schema", "to_json"]
