"""Numbers of things, as sentences for people have them."""

from __future__ import annotations


def counted(number: float, word: str) -> str:
    """`1 worker`, `1,200 workers`."""
    return f"{number:,g} {word}" if number == 1 else f"{number:,g} {word}s"


__all__ = ["counted"]
