"""Takes out of a text what others wrote: inputs that an exception's text quotes, and keys in environment variables."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from dspool.raised import HIDDEN

_SHORTEST: Final = 4
"""Shorter values are found in every text."""
_PIECE: Final = 12
"""So many characters of a value are a quotation, also without the rest of it."""
_SEARCH: Final = 20_000_000
"""Characters to look through for quotations in one text."""
_SHORTEST_SECRET: Final = 8
_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def without(values: Any) -> Callable[[str], str]:
    """Takes the strings within `values` out of a text, also pieces of long ones, and keys."""

    def hide(text: str) -> str:
        strings = {text for text in _strings(values) if len(text) >= _SHORTEST}
        return _without_pieces(_without(text, strings | _secrets()), strings)

    return hide


def without_secrets(text: str) -> str:
    return _without(text, _secrets())


def _secrets() -> set[str]:
    """What stands in environment variables whose names say that they hold a key."""
    return {
        value for name, value in os.environ.items() if len(value) >= _SHORTEST_SECRET and _SECRET.search(name)
    }


def _without(text: str, strings: Collection[str]) -> str:
    for value in sorted(strings, key=len, reverse=True):
        for form in {value, repr(value)[1:-1], json.dumps(value)[1:-1]}:
            text = text.replace(form, HIDDEN)
    return text


def _without_pieces(text: str, values: Collection[str]) -> str:
    long = [value for value in values if len(value) > _PIECE]
    if not long or len(text) < _PIECE:
        return text
    if len(text) * sum(map(len, long)) > _SEARCH:
        return f"{HIDDEN} (not told: the inputs are too long to look for quotations)"
    kept, at = [], 0
    while at < len(text):
        end = at + _PIECE
        piece = text[at:end]
        source = next((value for value in long if piece in value), None) if len(piece) == _PIECE else None
        if source is None:
            kept.append(text[at])
            at += 1
            continue
        while end < len(text) and text[at : end + 1] in source:
            end += 1
        kept.append(HIDDEN)
        at = end
    return "".join(kept)


def _strings(value: Any) -> Iterator[str]:
    rest = [value]
    while rest:
        one = rest.pop()
        if type(one) is str:
            yield one
        elif isinstance(one, dict):
            rest += one.keys()
            rest += one.values()
        elif isinstance(one, list | tuple):
            rest += one


__all__ = ["without", "without_secrets"]
