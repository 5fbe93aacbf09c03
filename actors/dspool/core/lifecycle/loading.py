"""Whether a worker that could not load its programs would load them the next time."""

from __future__ import annotations

import re
from typing import Final

from dspool.errors import ConfigError, InvalidRequest, NotAllowed, PoolError, ProgramError, WorkerStartFailed

_OUTAGE: Final = re.compile(
    r"timeout|timedout|connect|network|unavailable|ssl|socket|gaierror|http|request|busy|lock|memory|limit"
    r"|^OSError$|^InterruptedError$|^CancelledError$",
    re.IGNORECASE,
)
"""Names of exceptions that tell of something that may pass: a network, another service, a full machine."""


def lasts(failed: Exception) -> bool:
    """Whether the code or the configuration must change before it can go well.

    The programs that a pool begins with are loaded alike on each worker: what a missing module or variable did to one,
    it does to the next.
    """
    if isinstance(failed, InvalidRequest | NotAllowed | ConfigError):
        return True
    if not isinstance(failed, ProgramError | WorkerStartFailed):
        return False
    exception = failed.details.get("exception")
    return isinstance(exception, str) and _OUTAGE.search(exception) is None


def text_of(failed: Exception) -> str:
    """What it says, with the program that it is about and the text of the author's exception; never empty."""
    if not isinstance(failed, PoolError):
        return str(failed) or repr(failed)
    program = failed.details.get("program")
    return f"{f'{program}: ' if program else ''}{str(failed) or failed.message or repr(failed)}"


__all__ = ["lasts", "text_of"]
