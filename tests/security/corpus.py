"""What a caller may send to hold a process up, to fill it, or to make it stumble: one table.

    for entry in CORPUS:
        entry.build()       # a value of the kind that `entry.kind` says

Made here and not stored: many are a megabyte. `request_of` makes the JSON body of an HTTP request from an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec

from tests.security.hostile_inputs import MEGABYTE, bodies, inputs, overrides
from tests.security.hostile_programs import signatures, specs, states

__all__ = ["CORPUS", "MEGABYTE", "Hostile", "Kind", "Unsendable", "of", "request_of"]

Kind = Literal["signature", "spec", "state", "inputs", "overrides", "body"]
"""What `build` gives: the `signature` of a spec; a spec; saved state for `question -> answer`; the value of one input;
overrides of an LM; or the bytes of a whole request to execute a program."""


class Hostile(NamedTuple):
    name: str
    kind: Kind
    build: Callable[[], Any]


class Unsendable(Exception):
    """No client can write it as JSON."""


def request_of(entry: Hostile, *, field: str = "question") -> bytes:
    """The body of a request: that creates a program, executes one with the input `field`, or chooses an LM.

    Raises:
        Unsendable: such a value comes only from Python.
    """
    value = entry.build()
    if entry.kind == "body":
        body: bytes = value
        return body
    made: dict[Kind, Callable[[], Any]] = {
        "signature": lambda: {"spec": {"signature": value}},
        "spec": lambda: {"spec": value},
        "state": lambda: {"spec": {"signature": "question -> answer"}, "state": value},
        "inputs": lambda: {"inputs": {field: value}},
        "overrides": lambda: {"profile": "offline", "overrides": value},
    }
    try:
        return msgspec.json.encode(made[entry.kind]())
    except (UnicodeEncodeError, OverflowError, RecursionError) as refused:
        raise Unsendable(f"{entry.kind}: {entry.name}") from refused


_BY_KIND: dict[Kind, Callable[[], Iterator[tuple[str, Any]]]] = {
    "signature": signatures,
    "spec": specs,
    "state": states,
    "inputs": inputs,
    "overrides": overrides,
    "body": bodies,
}

CORPUS: tuple[Hostile, ...] = tuple(
    Hostile(name, kind, build) for kind, entries in _BY_KIND.items() for name, build in entries()
)


def of(*kinds: Kind) -> list[Hostile]:
    """The entries of these kinds."""
    return [entry for entry in CORPUS if entry.kind in kinds]
