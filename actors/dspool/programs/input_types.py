"""JSON values made into the types that a program declares, by pydantic, as it reads JSON.

Decided when a program is loaded: an input that has its type already (a text for `str`) costs a look at its class.
`"1.5"` is a float where one is declared, as in FastAPI; a model that is strict stays strict. Types of DSPy: `media`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import pydantic

from dspool.errors import InvalidRequest, ProgramError, place_of, type_of
from dspool.messages import JSON
from dspool.messages.plain import NotPlain, plain
from dspool.programs.core_schemas import Branching, makes_texts
from dspool.programs.media import NotAMedium, check_made
from dspool.programs.schemas import IMPOSSIBLE, UNTYPED, SchemaField, adapter_for
from dspool.programs.value_types import type_name

_FAST: Final = (str, int, bool, float)
_LONGEST_TEXT: Final = 300
_MOST_ERRORS: Final = 20
_MOST_READ: Final = 1_000
"""Of more errors nobody reads the first ones either; to list them takes longer than to find them."""
_TOO_MANY_TRIES: Final = (
    "it nests too deep for a union that holds itself: give the union a discriminator, or send less"
)


class InputTypes:
    """Makes the inputs of one program. `any`: whether there is anything to make."""

    def __init__(self, fields: Iterable[SchemaField], rest: Any = UNTYPED) -> None:
        """`rest` is the type of all inputs that are not among the fields."""
        made = (_Made(field.name, field.annotation) for field in fields if field.annotation is not UNTYPED)
        self._made = {one.name: one for one in made if not one.takes_anything}
        self._fast = {
            name: one.annotation if one.annotation in _FAST else None for name, one in self._made.items()
        }
        others = None if rest is UNTYPED else _Made("", rest)
        self._rest = None if others is None or others.takes_anything else others
        self.any = bool(self._made) or self._rest is not None

    def build(self, inputs: Mapping[str, JSON]) -> Mapping[str, Any]:
        """The inputs, each of its type. Raises `InvalidRequest` that names what does not fit, and where."""
        fast = self._fast
        built: dict[str, Any] | None = None
        problems: list[_Problem] = []
        for name, value in inputs.items():
            if name in fast:
                kind = fast[name]
                if type(value) is kind and (kind is not float or math.isfinite(value)):
                    continue
                one = self._made[name]
            elif self._rest is not None:
                one = self._rest.named(name)
            else:
                continue
            try:
                made = one.of(value)
            except _Problems as found:
                problems += found.problems
                continue
            if built is None:
                built = dict(inputs)
            built[name] = made
        if problems:
            raise _refusal(problems)
        return inputs if built is None else built


class _Problem(NamedTuple):
    """One thing that does not fit. `text` holds nothing of the value."""

    field: str
    text: str
    got: str
    details: dict[str, JSON] = {}  # noqa: RUF012  (never written to)


class _Problems(Exception):
    def __init__(self, *problems: _Problem) -> None:
        super().__init__()
        self.problems = problems


def _refusal(problems: list[_Problem]) -> InvalidRequest:
    first = problems[0]
    details: dict[str, JSON] = {
        "field": first.field,
        "expected": first.text,
        "got": first.got,
        **first.details,
    }
    if len(problems) > 1:
        details["errors"] = [{"field": p.field, "message": p.text} for p in problems[:_MOST_ERRORS]]
    return InvalidRequest(f"input {first.field!r}: {first.text}, got {first.got}", **details)


class _Made:
    """One input and its type."""

    def __init__(self, name: str, annotation: Any) -> None:
        self.name, self.annotation = name, annotation
        self._adapter = adapter_for(annotation)
        self.names = frozenset[str]()
        self._makes_texts = False
        self._branching: Branching | None = None
        if self._adapter is not None:
            self.names = _property_names(self._adapter.json_schema())
            # All types of DSPy are among them.
            self._makes_texts = makes_texts(self._adapter.core_schema)
            branching = Branching(self._adapter.core_schema)
            self._branching = branching if branching.any else None
        self.takes_anything = self._adapter is not None and self._adapter.core_schema["type"] == "any"

    def named(self, name: str) -> _Made:
        """The same, for an input of another name."""
        named = copy.copy(self)
        named.name = name
        return named

    def of(self, value: JSON) -> Any:
        """Raises: _Problems."""
        if self._adapter is None:
            raise _Problems(_Problem(self.name, IMPOSSIBLE, type_name(value)))
        # Once more as JSON: what is read from it is not always what is read from Python's values.
        encoded = _encoded(self.name, value)
        if self._branching is not None and self._branching.is_too_much(value):
            raise _Problems(_Problem(self.name, _TOO_MANY_TRIES, type_name(value)))
        try:
            made = self._adapter.validator.validate_json(encoded)
            if self._makes_texts:
                check_made(made)
        except pydantic.ValidationError as refused:
            if (count := refused.error_count()) > _MOST_READ:
                text = f"it does not fit its type in {count} ways"
                raise _Problems(_Problem(self.name, text, type_name(value))) from None
            errors = refused.errors(include_url=False, include_input=False)
            raise _Problems(*(self._problem(error, value) for error in errors)) from None
        except NotAMedium as refused:
            raise _Problems(_Problem(self.name, str(refused), type_name(value))) from None
        except Exception as raised:  # of a validator
            place, kind = place_of(raised), type_of(raised)
            text = f"{kind} at {place} when it was made"
            details: dict[str, JSON] = {"exception": kind, "at": place}
            raise _Problems(_Problem(self.name, text, type_name(value), details)) from raised
        except BaseException as raised:  # it ends the operation, not the worker
            raise ProgramError.of(raised) from raised
        return made

    def _problem(self, error: Any, value: JSON) -> _Problem:
        path, part = self.name, value
        for step in error["loc"]:
            # Members of a union and names of validators are steps too, but lead nowhere.
            if type(part) is list and type(step) is int and step < len(part):
                path, part = f"{path}[{step}]", part[step]
            elif type(part) is dict and step in part:
                path, part = path + self._step(step), part[step]
            elif error["type"] == "missing" and step == error["loc"][-1]:
                return _Problem(path + self._step(step), "it is missing", "nothing")
        return _Problem(path[:_LONGEST_TEXT], _text(error), type_name(part))

    def _step(self, key: Any) -> str:
        """A key of a dict may be content; the names of fields are in the schema anyway."""
        return f".{key}" if key in self.names else "{}"


def _encoded(name: str, value: JSON) -> bytes:
    try:
        encoded = msgspec.json.encode(value)
    except Exception:  # from Python itself: whatever it is
        try:
            encoded = msgspec.json.encode(plain(value))
        except NotPlain as refused:
            raise _Problems(
                _Problem(name + refused.path, f"it holds {refused.why}", type_name(value))
            ) from None
    if b"null" in encoded and _is_not_finite(value):
        raise _Problems(_Problem(name, "it holds a number that is not finite", type_name(value)))
    return encoded


def _is_not_finite(value: Any) -> bool:
    if type(value) is dict:
        return any(map(_is_not_finite, value.values()))
    if type(value) is list or type(value) is tuple:
        return any(map(_is_not_finite, value))
    return isinstance(value, float) and not math.isfinite(value)


def _text(error: Any) -> str:
    """What is wrong, in pydantic's words where these quote nothing, else in those of who wrote the validator."""
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "union_tag_invalid":
        return f"the tag is none of {context.get('expected_tags', 'those that are known')}"[:_LONGEST_TEXT]
    if kind == "uuid_parsing":
        return "expected a valid UUID"
    raised = context.get("error")
    if kind in ("value_error", "assertion_error") and isinstance(raised, BaseException):
        if place_of(raised).startswith(("dspy.", "pydantic.")):  # they quote what came
            return "it does not fit"
        return str(raised)[:_LONGEST_TEXT]
    text = str(error["msg"])
    return text.replace("Input should be", "expected", 1)[:_LONGEST_TEXT]


def _property_names(schema: Any) -> frozenset[str]:
    names: set[str] = set()
    pending = [schema]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            properties = part.get("properties")
            if isinstance(properties, dict):
                names.update(properties)
            pending.extend(part.values())
        elif isinstance(part, list):
            pending.extend(part)
    return frozenset(names)


__all__ = ["InputTypes"]
