"""What user code prints, as lines of the log: with operation, worker and trace, and all in one file.

For processes of our own only: it takes the place of `sys.stdout` and `sys.stderr`. What libraries print (warnings that
quote values, progress bars) and what goes past them (C code, child processes) goes on to the files behind: it may hold
anything, and is no record of the log.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from types import FrameType
from typing import Final, TextIO

from dspool.quotations import without_secrets
from dspool.raised import is_own_code, own_place_of, traceback_of, type_of
from dspool.telemetry.log_files import CONTINUED, LONGEST_RECORD
from dspool.telemetry.logs import current_operation

_log = logging.getLogger(__name__)

STREAMS: Final = ("stdout", "stderr")
_UNENDED: Final = 256
"""Lines without an end, of so many operations and threads."""
_MOST_LINES: Final = 1_000
"""Of one write: users may have sent what is printed, and each line takes as long as a log record."""
_PRINT_OF_RAY: Final = "ray.experimental.tqdm_ray"
_END: Final = re.compile(r"\r\n|\r|\n")


_LIKE_A_RECORD: Final = re.compile(
    rf"^(?=\d{{4}}-\d\d-\d\dT|\{{\"time\": |{re.escape(CONTINUED)})", re.MULTILINE
)
"""Where a line of a library begins as a record of the log does: users may have written what it prints."""


class _Unended:
    """A line whose end was not written yet. Programs print answers word by word: what is there is not touched again."""

    __slots__ = ("_parts", "size")

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.size = 0

    def add(self, text: str) -> int:
        """Its length then."""
        if text:
            self._parts.append(text)
            self.size += len(text)
        return self.size

    def text(self) -> str:
        return "".join(self._parts)


class PrintedLines(io.TextIOBase):
    """Logs each line that is written, at level info, to a logger of the stream's name."""

    def __init__(self, name: str, behind: TextIO, handler: logging.Handler, level: int) -> None:
        self._behind = behind
        self._logger = logging.Logger(name, level)
        self.set_level = self._logger.setLevel
        self._logger.addHandler(handler)
        self._unended: dict[tuple[int, str], _Unended] = {}
        self._here = threading.local()

    def write(self, text: str) -> int:
        # The guard: logging that complains of itself would go round in circles.
        if getattr(self._here, "writing", False) or not is_own_code(_printing()):
            return self._behind.write(_LIKE_A_RECORD.sub("  ", text))
        operation = current_operation.get()
        key = threading.get_ident(), "" if operation is None else operation.id
        *lines, rest = _END.split(text)
        before = self._unended.pop(key, None) or _Unended()
        if lines:
            lines[0], before = before.text() + lines[0], _Unended()
        if before.add(rest) > LONGEST_RECORD or len(self._unended) >= _UNENDED:
            lines.append(before.text())
        elif before.size:
            self._unended[key] = before
        if (more := len(lines) - _MOST_LINES) > 0:
            lines[_MOST_LINES:] = [f"... {more} more lines"]
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


def _printing() -> FrameType:
    """What called `print`, which has no frame of its own unless Ray's progress bars put theirs in its place."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__") == _PRINT_OF_RAY and frame.f_back is not None:
        frame = frame.f_back
    return frame


def log_prints(handler: logging.Handler, level: int) -> None:
    """From now on, what this process prints is in its log; once is enough."""
    for name in STREAMS:
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, PrintedLines):
            setattr(sys, name, PrintedLines(name, stream, handler, level))
    threading.excepthook = _log_thread


def set_print_level(level: int) -> None:
    """From now on, what this process prints is in its log from `level` on."""
    for name in STREAMS:
        stream = getattr(sys, name)
        if isinstance(stream, PrintedLines):
            stream.set_level(level)


def _log_thread(ended: threading.ExceptHookArgs) -> None:
    """A thread that user code started ended with an exception: Python would print all that it says."""
    raised = ended.exc_value
    if raised is not None and ended.exc_type is not SystemExit:
        text = traceback_of(raised, hide=without_secrets)
        _log.error(
            "a thread ended with %s at %s", type_of(raised), own_place_of(raised), extra={"traceback": text}
        )


__all__ = ["PrintedLines", "log_prints", "set_print_level"]
