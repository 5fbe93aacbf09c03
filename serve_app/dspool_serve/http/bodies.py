"""From the bytes of a body to a checked value."""

from __future__ import annotations

import math
import re
from typing import Any, TypeVar

import msgspec

from dspool.errors import InvalidRequest
from dspool_serve.http.problems import MalformedRequest

T = TypeVar("T")

MAX_DEPTH = 64
"""Nesting of JSON in a request. Deeper is an attack or a mistake; every later hop would recurse over it."""

_LONG_NUMBER = re.compile(rb"[0-9]{19}")


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """What `body` says, checked. Of a repeated key the last counts (one parser reads it, so nobody disagrees).

    Raises:
        MalformedRequest: not JSON, bad UTF-8, nested too deep, or a number that does not fit in 64 bits.
        InvalidRequest: JSON of another shape.
    """
    if not body:
        raise MalformedRequest("the body is empty; send a JSON object")
    try:
        # Brackets are counted first, at memchr speed: only suspicious bodies pay for the exact check.
        if body.count(b"[") + body.count(b"{") > MAX_DEPTH or _LONG_NUMBER.search(body) is not None:
            _check(msgspec.json.decode(body), 1)
        return decoder.decode(body)
    except msgspec.ValidationError as refused:
        raise InvalidRequest(str(refused)) from refused
    except (msgspec.DecodeError, UnicodeDecodeError) as broken:
        raise MalformedRequest(f"the body is not valid JSON: {broken}") from broken
    except RecursionError as deep:
        raise MalformedRequest(f"the body is nested more than {MAX_DEPTH} deep") from deep


def _check(value: Any, depth: int) -> None:
    """Refuse what cannot travel on: deep nesting, and integers beyond 64 bits."""
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise msgspec.DecodeError("an integer does not fit in 64 bits")
        return
    if not isinstance(value, (list, dict)):
        return
    if depth > MAX_DEPTH:
        raise RecursionError
    for item in value.values() if isinstance(value, dict) else value:
        _check(item, depth + 1)


def number(query: dict[str, str], name: str, default: float, *, least: float, most: float) -> float:
    """A number of the query string; not given, it is `default`.

    Raises:
        InvalidRequest: no number, or one outside its bounds.
    """
    text = query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise InvalidRequest(
            f"{name} must be a number from {least:g} to {most:g}, got {text[:20]!r}", field=name
        )
    return value
