"""What failed here, in the worker's log: each operation's error, and the traceback of what the author's code raised."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from dspool.config.parts import TelemetryConfig
from dspool.errors import PoolError, place_of
from dspool.messages import Operation
from dspool.quotations import without, without_secrets
from dspool.raised import traceback_of
from dspool.telemetry.logs import current_operation

_log = logging.getLogger(__name__)

BURST: Final = 50
A_SECOND: Final = 10.0
"""Tracebacks: a program that always fails must not fill the log, nor take the event loop's time."""
_CONTENT: Final = ("inputs", "kwargs", "value", "code", "state", "spec")
"""Where commands hold what users sent."""


_OURS: Final = ("dspool.programs.", "dspool.worker.")
_DEFAULT: Final = TelemetryConfig()


class FailureLog:
    def __init__(
        self, telemetry: TelemetryConfig = _DEFAULT, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._show_content, self._clock = telemetry.capture_content, clock
        self._told = telemetry.error_messages != "never"
        self._left, self._at = float(BURST), clock()

    def write(self, operation: Operation, error: PoolError) -> None:
        """One line for an operation whose outcome is an error, with the traceback of what was raised. Raises nothing.

        Texts of exceptions stand there without what the caller sent, unless content is captured. Where nobody is to be
        told them, `error` loses its own.
        """
        if error.outcome != "error":
            return
        if not self._told:
            error.details.pop("text", None)
        raised = error.__cause__
        now = self._clock()
        self._left, self._at = min(BURST, self._left + (now - self._at) * A_SECOND), now
        about = {}
        if raised is not None and self._left >= 1.0:
            self._left -= 1.0
            hide = without_secrets if self._show_content else without(_content(operation.command))
            # As text: other handlers of this process would write the exception with all that it says.
            about["traceback"] = traceback_of(raised, whole=self._show_content, hide=hide)
        # A program may raise an error of ours by itself, with a message of its own.
        is_ours = raised not in (None, error) or place_of(error).startswith(_OURS)
        text = error.message if is_ours else error.code
        token = current_operation.set(operation)
        try:
            _log.error("an operation failed: %s", text, extra=about)
        finally:
            current_operation.reset(token)


def _content(command: Any) -> list[Any]:
    parts = [getattr(command, name) for name in _CONTENT if hasattr(command, name)]
    # The names of inputs are the program's own.
    return [list(part.values()) if isinstance(part, dict) else part for part in parts]


__all__ = ["FailureLog"]
