"""Denials that repeat, summed: the first is told at once, how often it was repeated at the end of its window. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, NamedTuple

WINDOW_S: Final = 60.0
REMEMBERED: Final = 1024
OTHERS: Final = ("others",)
"""Stands for what there is no room to count by itself."""


class Repeats(NamedTuple):
    key: Hashable
    times: int
    """Besides the first."""


class Denials:
    def __init__(self, window_s: float = WINDOW_S, *, remembered: int = REMEMBERED) -> None:
        self.window_s = window_s
        self._remembered = remembered
        self._began: dict[Hashable, float] = {}
        """By key, the oldest first."""
        self._times: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._began)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._began

    def add(self, key: Hashable, *, now: float) -> bool:
        """One more; whether it is to be told by itself."""
        if key not in self._began and len(self._began) >= self._remembered:
            key = OTHERS
        if key in self._began:
            self._times[key] += 1
            return False
        self._began[key], self._times[key] = now, 0
        return key is not OTHERS

    def due(self, *, now: float) -> list[Repeats]:
        """What was repeated in windows that have ended."""
        ended = [key for key, began in self._began.items() if now - began >= self.window_s]
        found = []
        for key in ended:
            del self._began[key]
            # The first of the others was not told.
            if times := self._times.pop(key) + (key is OTHERS):
                found.append(Repeats(key, times))
        return found


__all__ = ["OTHERS", "Denials", "Repeats"]
