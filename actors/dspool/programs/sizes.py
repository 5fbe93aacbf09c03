"""How much somebody sent: counted only until it is known to be too much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import TypeVar

from dspool.messages import JSON
from dspool.messages.limits import LARGE_CHARACTERS, LARGE_VALUES

T = TypeVar("T")


def is_large(inputs: Mapping[str, JSON], outputs: int = 1) -> bool:
    """Whether inputs are too much for the event loop of a worker, where each output reads them again.

    Every operation asks: texts alone are quick.
    """
    characters = 0
    for value in inputs.values():
        if type(value) is str:
            characters += len(value)
        elif type(value) is list or type(value) is dict:
            return exceeds(inputs, values=LARGE_VALUES, characters=LARGE_CHARACTERS // outputs)
    return characters * outputs > LARGE_CHARACTERS


def remembered(count: int, *, longest: int) -> Callable[[Callable[[str], T]], Callable[[str], T]]:
    """`lru_cache` for functions of a text that somebody sent: longer ones than `longest` are not kept."""

    def decorate(function: Callable[[str], T]) -> Callable[[str], T]:
        cached = lru_cache(maxsize=count)(function)

        @wraps(function)
        def call(text: str) -> T:
            return cached(text) if len(text) <= longest else function(text)

        return call

    return decorate


def exceeds(value: JSON, *, values: int, characters: float = float("inf")) -> bool:
    """Whether `value` holds more values (its own lists and objects included) or characters of text than this."""
    pending = [value]
    while pending:
        part = pending.pop()
        kind = type(part)
        if kind is str:
            characters -= len(part)
        elif kind is dict:
            values -= len(part)
            pending.extend(part.values())
            characters -= sum(map(len, part))
        elif kind is list or kind is tuple:
            values -= len(part)
            pending.extend(part)
        if values < 0 or characters < 0:
            return True
    return False
