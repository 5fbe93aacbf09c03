"""What a program from an import path takes: the names of its inputs, and the type that each becomes.

A type comes from the annotation of `aforward` or `forward`, else from the signatures of the program's predictors:

- A parameter without an annotation, and whatever `**inputs` takes, has the type of the predictors' fields of that name,
  if they agree and say one (`question -> answer` says none). A text field decides nothing of a parameter: `forward` may
  make that text of anything.
- A parameter whose default is None takes null, whatever its annotation says.
- An annotation that cannot be resolved leaves its parameter without a type: it gets the JSON as it is.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Annotated, Any, Final, NamedTuple, Optional

import dspy
import typing_extensions
from dspy.utils.constants import IS_TYPE_UNDEFINED

from dspool.errors import InvalidRequest
from dspool.messages import JSON
from dspool.programs.imports import OF_A_CALL, is_reserved, named_parameters
from dspool.programs.input_types import InputTypes
from dspool.programs.media import requirements
from dspool.programs.schemas import UNTYPED, SchemaField, object_schema

_BLOCKING: Final = frozenset({"dspy.predict.rlm"})
"""Modules of DSPy whose async form, too, waits for an interpreter where it is called."""


class Inputs:
    """The inputs that a program from an import path takes.

    Args:
        fields: those that are known by name.
        open: it takes any other name that is not reserved, too: a `**inputs` without a signature that says more.
        rest: the type of what has such a name.
    """

    def __init__(self, fields: tuple[SchemaField, ...], *, open: bool = False, rest: Any = UNTYPED) -> None:
        self.fields = fields
        self._open = open
        self._rest = rest
        self._names = frozenset(field.name for field in fields)
        self._required = tuple(field.name for field in fields if field.required)
        types = InputTypes(fields, rest)
        self._types = types if types.any else None

    def check(self, inputs: Mapping[str, JSON]) -> Mapping[str, Any]:
        """The values to run the program with.

        Raises:
            InvalidRequest: an input is reserved, unknown, missing, or cannot be made into its type; says which.
        """
        names = self._names
        for name in inputs:
            if name not in names:
                self._refuse(name)
        for name in self._required:
            if name not in inputs:
                raise InvalidRequest(f"input {name!r} is missing", field=name, got="nothing")
        return inputs if self._types is None else self._types.build(inputs)

    def schema(self) -> dict[str, JSON]:
        """The inputs as JSON Schema."""
        return object_schema(self.fields, "validation", open=self._open, rest=self._rest)

    def _refuse(self, name: str) -> None:
        if is_reserved(name) or (self._open and name in OF_A_CALL):
            raise InvalidRequest(
                f"the input name {name[:80]!r} is reserved: no caller can give it", field=name[:80]
            )
        if not self._open:
            allowed = ", ".join(field.name for field in self.fields) or "none"
            raise InvalidRequest(f"unknown input {name[:80]!r}; the inputs are {allowed}", field=name[:80])


class EntryPoint(NamedTuple):
    """The method that runs a program, and what it takes."""

    is_async: bool
    inputs: Inputs
    returns: Any
    """The annotation of what it returns; `UNTYPED` without one."""


def entry_of(module: Any) -> EntryPoint:
    """The entry point of a program from an import path.

    Raises:
        InvalidRequest: there is nothing to run, or it needs an input that nobody can give.
    """
    kind = type(module)
    for held, within in ((vars(module), ""), *((vars(owner), owner.__module__) for owner in kind.__mro__)):
        # The nearest one counts: a `forward` that overrides must win over an `aforward` further up.
        methods = ("forward",) if within in _BLOCKING else ("aforward", "forward")
        name = next((method for method in methods if method in held), None)
        if name is not None:
            # As it is called: of an instance, a class or nothing, a function or anything else. DSPy warns of `getattr`.
            run = object.__getattribute__(module, name)
            if name == "forward" and inspect.iscoroutinefunction(run):
                # DSPy's `acall` asks for it by this name.
                module.aforward, name = run, "aforward"
            hints = _hints(run)
            return EntryPoint(name == "aforward", _inputs(module, run, hints), hints.get("return", UNTYPED))
    raise InvalidRequest(f"{kind.__name__} has no forward", field="import_path")


def _inputs(module: Any, run: Any, hints: Mapping[str, Any]) -> Inputs:
    try:
        signature = inspect.signature(run)
    except (TypeError, ValueError) as unreadable:
        raise InvalidRequest(
            f"the parameters of {type(module).__name__}.forward cannot be read", field="import_path"
        ) from unreadable
    parameters = named_parameters(signature)
    _refuse_impossible(module, signature, parameters)
    is_custom = str(getattr(run, "__module__", "")).partition(".")[0] != "dspy"
    predictors = signatures_of(module, inner=is_custom)
    known = _known_fields(predictors)
    fields = {
        name: _parameter(name, parameter, hints, known)
        for name, parameter in parameters.items()
        if not is_reserved(name)
    }
    rest = next((p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    if rest is None:
        return Inputs(tuple(fields.values()))
    if (declared := _unpacked(hints.get(rest.name))) is not None:
        return Inputs((*fields.values(), *(f for f in declared if f.name not in fields)))
    if not predictors and is_custom:
        declared_rest = hints.get(rest.name, UNTYPED)
        typed = UNTYPED if isinstance(declared_rest, str) else declared_rest
        return Inputs(tuple(fields.values()), open=True, rest=typed)
    required = not is_custom and len(predictors) == 1
    for name, field in known.items():
        if name in fields:
            # Its own parameter, but DSPy's modules need what their signature needs.
            fields[name] = fields[name]._replace(
                required=fields[name].required or (required and field.required)
            )
        elif not is_reserved(name):
            fields[name] = field._replace(required=required and field.required)
    return Inputs(tuple(fields.values()))


def _refuse_impossible(
    module: Any, signature: inspect.Signature, parameters: Mapping[str, inspect.Parameter]
) -> None:
    """Raises `InvalidRequest` for a parameter that nobody could give."""
    kind = type(module).__name__
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and is_reserved(name):
            raise InvalidRequest(
                f"forward of {kind} needs {name!r}, a name that DSPy takes for itself: no input can be called so; give "
                "the parameter another name",
                field="import_path",
            )
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise InvalidRequest(
                f"forward of {kind} takes {parameter.name!r} by position only, and inputs have names: remove the `/`",
                field="import_path",
            )


def _hints(run: Any) -> dict[str, Any]:
    """The annotations that can be resolved, by parameter; those that cannot as their text, a `str`."""
    target = inspect.unwrap(run)
    if isinstance(target, functools.partial):
        target = target.func
    elif not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except Exception:  # whatever an annotation raises when it is evaluated
        hints: dict[str, Any] = {}
        for name, annotation in getattr(target, "__annotations__", {}).items():
            alone = SimpleNamespace(__annotations__={name: annotation})
            try:
                hints |= typing.get_type_hints(alone, getattr(target, "__globals__", {}), include_extras=True)
            except Exception:
                hints[name] = str(annotation)
        return hints


def _parameter(
    name: str,
    parameter: inspect.Parameter,
    hints: Mapping[str, Any],
    known: Mapping[str, SchemaField],
) -> SchemaField:
    default, required = parameter.default, parameter.default is parameter.empty
    field = known.get(name)
    description = "" if field is None else field.description
    annotation = hints.get(name, UNTYPED)
    if isinstance(annotation, str):
        description = f"{description} (its annotation {annotation[:80]!r} cannot be resolved)".strip()
        annotation = UNTYPED
    elif annotation is UNTYPED and field is not None and field.annotation is not str:
        annotation = field.annotation
    if default is None and annotation is not UNTYPED:
        annotation = Optional[annotation]  # noqa: UP045  (not every annotation has an `|`)
    return SchemaField(name, annotation, required, description, default)


def _unpacked(annotation: Any) -> list[SchemaField] | None:
    """The keys of `**inputs: Unpack[SomeTypedDict]`."""
    if typing.get_origin(annotation) not in _UNPACK:
        return None
    (keys,) = typing.get_args(annotation)
    return [
        SchemaField(name, hint, required)
        for name, (hint, required) in requirements(keys).items()
        if not is_reserved(name)
    ]


_UNPACK: Final = (typing.Unpack, typing_extensions.Unpack)


def signatures_of(module: Any, *, inner: bool) -> list[Any]:
    """The signatures that say what a program takes: a DSPy module has one, others those of their predictors."""
    # Whatever it says of names that it does not have, such as a KeyError.
    own = inspect.getattr_static(module, "signature", None)
    if own is not None:
        own = getattr(module, "signature", None)
    signatures = [own] if isinstance(own, type) and issubclass(own, dspy.Signature) else []
    if inner or not signatures:
        signatures += [predictor.signature for _, predictor in module.named_sub_modules(dspy.Predict)]
    return list(dict.fromkeys(signatures))


def _known_fields(signatures: list[Any]) -> dict[str, SchemaField]:
    """The input fields of all signatures; where they do not agree on a type, it has none."""
    fields: dict[str, SchemaField] = {}
    for signature in signatures:
        for name, info in signature.input_fields.items():
            field = signature_field(name, info)
            other = fields.setdefault(name, field)
            if other.annotation != field.annotation:
                fields[name] = other._replace(annotation=UNTYPED)
    return fields


def signature_field(name: str, info: Any) -> SchemaField:
    """A field of a DSPy signature."""
    extra = info.json_schema_extra or {}
    annotation = UNTYPED if extra.get(IS_TYPE_UNDEFINED) else info.annotation
    if info.metadata and annotation is not UNTYPED:
        annotation = Annotated[annotation, *info.metadata]
    desc = str(extra.get("desc") or "")
    # DSPy describes what nobody described as "${name}".
    description = "" if desc == f"${{{name}}}" else desc
    default = inspect.Parameter.empty if info.is_required() else info.get_default(call_default_factory=False)
    return SchemaField(name, annotation, info.is_required(), description, default)


__all__ = ["EntryPoint", "Inputs", "entry_of", "signature_field", "signatures_of"]
