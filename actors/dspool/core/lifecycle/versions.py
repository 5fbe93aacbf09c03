"""Which versions of pool programs there are to speak of, and in what two of them differ. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from dspool.errors import UnknownProgram, suggestion


def check_known(program: str, programs: Iterable[str], verb: str = "to deploy") -> None:
    """A mistyped name would make a program that nobody asks.

    Raises:
        UnknownProgram: `program` is none of `programs`.
    """
    known = sorted(programs)
    if program not in known:
        meant = suggestion(program, known) or f"; there are: {', '.join(known[:20]) or 'none'}"
        hint = '; "new": true makes a new program' if verb == "to deploy" else ""
        raise UnknownProgram(f"there is no program {program!r} {verb}{meant}{hint}", program=program)
