"""What Ray prints to the standard output of `dspool up`: it goes to the standard error, where our JSON does not stand.

Of each process that dies Ray prints a paragraph with ids that nobody can use, and with causes that it guesses. dspool
says the same in a line, with the worker and the cause (`dspool events`, the log): the paragraph is left out.
"""

from __future__ import annotations

import io
import re
from typing import Final, TextIO

_DEATH: Final = re.compile(r"\(raylet\)\S* A worker died or was killed")
_MOST: Final = 65_536
"""Characters of a line that has not ended yet."""


class RayOutput(io.TextIOBase):
    """A stream that passes whole lines on to `to`, but those about a process that died."""

    def __init__(self, to: TextIO) -> None:
        self._to = to
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._to.encoding

    def fileno(self) -> int:
        return self._to.fileno()

    def isatty(self) -> bool:
        return self._to.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        if len(self._begun) > _MOST:
            lines, self._begun = [*lines, self._begun], ""
        for line in lines:
            if not _DEATH.search(line):
                self._to.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        self._to.flush()


__all__ = ["RayOutput"]
