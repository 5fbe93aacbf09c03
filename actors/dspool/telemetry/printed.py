"""What user code prints, as lines of the log: with operation, worker and trace, and all in one file.

For processes of our own only: it takes the place of `sys.stdout` and `sys.stderr`. What goes past them (C code, child
processes) goes on to the files behind, without context.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from typing import Final, TextIO

from dspool.telemetry.log_files import LONGEST_RECORD
from dspool.telemetry.logs import current_operation

STREAMS: Final = ("stdout", "stderr")
_UNENDED: Final = 256
"""Lines without an end, of so many operations and threads."""
_END: Final = re.compile(r"\r\n|\r|\n")


class PrintedLines(io.TextIOBase):
    """Logs each line that is written, at level info, to a logger of the stream's name."""

    def __init__(self, name: str, behind: TextIO, handler: logging.Handler, level: int) -> None:
        self._behind = behind
        self._logger = logging.Logger(name, level)
        self._logger.addHandler(handler)
        self._unended: dict[tuple[int, str], str] = {}
        self._here = threading.local()

    def write(self, text: str) -> int:
        if getattr(self._here, "writing", False):
            # A handler of somebody that writes to this stream, or logging that complains of itself.
            return self._behind.write(text)
        operation = current_operation.get()
        key = threading.get_ident(), "" if operation is None else operation.id
        *lines, rest = _END.split(self._unended.pop(key, "") + text)
        if len(rest) > LONGEST_RECORD or len(self._unended) >= _UNENDED:
            lines.append(rest)
        elif rest:
            self._unended[key] = rest
        self._here.writing = True
        try:
            for line in lines:
                if line.strip():
                    self._logger.info("%s", line[:LONGEST_RECORD])
        finally:
            self._here.writing = False
        return len(text)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._behind.flush()

    def fileno(self) -> int:
        return self._behind.fileno()

    @property
    def buffer(self) -> io.BufferedIOBase:
        """Past the log, for those who write bytes."""
        return self._behind.buffer  # type: ignore[return-value]

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._behind.encoding


def log_prints(handler: logging.Handler, level: int) -> None:
    """From now on, what this process prints is in its log; once is enough."""
    for name in STREAMS:
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, PrintedLines):
            setattr(sys, name, PrintedLines(name, stream, handler, level))


__all__ = ["PrintedLines", "log_prints"]
