"""Saved DSPy state, checked part by part before DSPy gets it: a wrong one is refused at once and with its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from dspool.errors import InvalidRequest, PoolError
from dspool.messages import JSON
from dspool.messages.limits import MAX_DEMONSTRATIONS, MAX_DESCRIPTION, MAX_INSTRUCTIONS
from dspool.programs.adapters import refuse_message_parts
from dspool.programs.field_types import shown
from dspool.programs.media import NotAMedium, unmarked
from dspool.programs.value_types import type_name

_KEYS = frozenset({"traces", "train", "demos", "signature", "lm", "fields"})


def load_state(module: Any, state: Mapping[str, JSON], adapter: Any) -> None:
    """Load JSON state that DSPy saved, but not its LM, which would silently beat the profile: a module's own LMs stay.

    Raises:
        InvalidRequest: it is not what DSPy saves for this module; `field` is the place.
    """
    states = {name: value for name, value in state.items() if name != "metadata"}
    _check(isinstance(state.get("metadata", {}), dict), "metadata", "an object", state.get("metadata"))
    predictors = dict(module.named_parameters())
    is_alone = isinstance(module, dspy.Predict)
    if is_alone and "signature" in states:
        states = {"self": states}
    if missing := predictors.keys() ^ states.keys():
        name = min(missing)
        what = "has no" if name in predictors else "has a"
        raise InvalidRequest(
            f"the saved state does not fit the module: it {what} predictor {name[:80]!r}; the module has "
            f"{', '.join(sorted(predictors))[:200] or 'none'}",
            field="state",
        )
    parts = {name: _checked(name, part, predictors[name]) for name, part in states.items()}
    own = {name: getattr(predictor, "lm", None) for name, predictor in predictors.items()}
    if sum(len(part.get("demos", [])) for part in parts.values()) > MAX_DEMONSTRATIONS:
        raise InvalidRequest(
            f"the saved state has more than {MAX_DEMONSTRATIONS} demonstrations", field="state.demos"
        )
    try:
        module.load_state(parts["self"] if is_alone else parts)
        for name, predictor in module.named_parameters():
            if not isinstance(predictor, dspy.Predict):
                continue
            predictor.lm = own[name]
            if predictor.demos:
                # Now, and not in the first operation, for which it would be too late.
                adapter.format(predictor.signature, predictor.demos, {})
    except PoolError:
        raise
    except Exception as refused:
        raise InvalidRequest(
            f"the saved state does not fit the module ({type(refused).__name__})", field="state"
        ) from refused


def _checked(name: str, part: JSON, predictor: Any) -> dict[str, JSON]:
    """The state of one predictor without what no operation needs."""
    place = name[:80]
    _check(isinstance(part, dict), place, "an object", part)
    if not isinstance(predictor, dspy.Predict):
        # Its own code would load it: only what it has already is let through.
        fits = part == predictor.dump_state()
        _check(fits, place, f"the state that this {type(predictor).__name__} has from its constructor", part)
        return part
    if unknown := part.keys() - _KEYS:
        raise InvalidRequest(
            f"the saved state of {place!r} is not what DSPy saves: it has {shown(min(unknown))}",
            field=f"state.{place}",
        )
    for key in ("traces", "train", "demos"):
        _check(isinstance(part.get(key, []), list), f"{place}.{key}", "a list", part.get(key))
    _check(isinstance(part.get("lm"), dict | None), f"{place}.lm", "an object", part.get("lm"))
    # Settings of decisions: DSPy makes new classes and a new prompt of them in every operation, which takes seconds.
    _check(part.get("fields", {}) == {}, f"{place}.fields", "an empty object", part.get("fields"))
    for number, demo in enumerate(part.get("demos", [])):
        _check(isinstance(demo, dict), f"{place}.demos[{number}]", "an object", demo)
    _check_signature(f"{place}.signature", part.get("signature"), len(predictor.signature.fields))
    demos = [_with_media(f"{place}.demos[{n}]", d, predictor) for n, d in enumerate(part.get("demos", []))]
    checked = {**part, "demos": demos, "traces": [], "train": [], "lm": None}
    refuse_message_parts({name: checked})
    return checked


def _with_media(place: str, demo: Mapping[str, JSON], predictor: Any) -> dict[str, Any]:
    """The demonstration with its images, sounds and files as such, where the signature has one: DSPy saved each as a
    part of a message."""
    fields = predictor.signature.fields
    made = {}
    for name, value in demo.items():
        try:
            made[name] = unmarked(value, fields[name].annotation) if name in fields else value
        except NotAMedium as refused:
            raise InvalidRequest(
                f"the saved state does not fit the module: {place}.{name[:80]}: {refused}",
                field=f"state.{place}.{name[:80]}",
            ) from None
    return made


def _check_signature(place: str, signature: JSON, count: int) -> None:
    _check(isinstance(signature, dict), place, "an object", signature)
    _check_text(f"{place}.instructions", signature.get("instructions"), MAX_INSTRUCTIONS)
    fields = signature.get("fields")
    fits = isinstance(fields, list) and len(fields) == count
    _check(fits, f"{place}.fields", f"a list of the {count} fields of the signature", fields)
    for number, field in enumerate(fields):
        _check(isinstance(field, dict), f"{place}.fields[{number}]", "an object", field)
        for key in ("prefix", "description"):
            _check_text(f"{place}.fields[{number}].{key}", field.get(key), MAX_DESCRIPTION)


def _check_text(place: str, text: JSON, most: int) -> None:
    fits = isinstance(text, str) and len(text) <= most
    _check(fits, place, f"a text of at most {most} characters", text)


def _check(fits: bool, place: str, expected: str, value: JSON) -> None:
    if not fits:
        raise InvalidRequest(
            f"the saved state does not fit the module: {place} must be {expected}, got {type_name(value)}",
            field=f"state.{place}",
        )
