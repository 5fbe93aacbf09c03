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
"""Characters to look through for quotations in one text, or about 20 ms."""
_REPLACE: Final = 2_000_000
"""The same where each string is looked for by itself."""
_TOO_LONG: Final = f"{HIDDEN} (not told: the inputs are too long to look for quotations)"
_SHORTEST_SECRET: Final = 8
_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def without(values: Any) -> Callable[[str], str]:
    """Takes the strings within `values` out of a text, also pieces of long ones, and keys."""

    def hide(text: str) -> str:
        strings = {text for text in _strings(values) if len(text) >= _SHORTEST}
        if len(text) * len(strings) > _REPLACE:
            return _TOO_LONG
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
    everything = "\0".join(value for value in values if len(value) > _PIECE)
    if not everything:
        return text
    if len(text) * len(everything) > _SEARCH:
        return _TOO_LONG
    kept: list[str] = []
    hidden = 0  # up to here
    for at in range(len(text)):
        if len(text) - at >= _PIECE and text[at : at + _PIECE] in everything:
            if kept[-1:] != [HIDDEN] or at > hidden:
                kept.append(HIDDEN)
            hidden = at + _PIECE
        if at >= hidden:
            kept.append(text[at])
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
