"""Whether whoever is at the other end of a connection can still be reached. Pure: what was seen goes in.

A process that does not answer may be busy: it holds the interpreter, collects garbage, or its machine has more to do
than it can. Its kernel acknowledges what is sent to it all the same, and the health checks of the supervisor decide how
long that may go on. Only where not even the kernel acknowledges any more is the other end gone, with its machine or
with the network between: nothing that a program does looks like that, so it may be found out soon.
"""

from __future__ import annotations

from typing import Final, Literal

LOOK_S: Final = 0.5
"""Between two looks at a connection."""
ASK_AFTER: Final = 2
"""After so many looks in a row at which nothing had arrived, a sign of life is asked for."""
ASK_AFTER_BUSY: Final = 1
"""The same while the other end has something to do for this one."""
UNANSWERED: Final = 3
"""Looks that may find no answer, once it was asked for."""
UNACKNOWLEDGED_S: Final = 2.5
"""More than a network loses: by then a kernel has sent the same four times."""
REPORTED_AFTER_S: Final = LOOK_S * max(ASK_AFTER + UNANSWERED, ASK_AFTER_BUSY + UNANSWERED) + LOOK_S
"""From the loss of a machine to what a client knows of it, at most."""

Verdict = Literal["well", "ask", "gone"]


def judge(silent_looks: int, unacknowledged_s: float | None, *, is_busy: bool) -> Verdict:
    """What to do about a connection.

    Looks are counted, not seconds: a process that stood still itself finds one look's worth of silence, not all of it.

    Args:
        silent_looks: looks in a row, this one included, at which nothing had arrived since the one before.
        unacknowledged_s: for how long the other end's kernel has not acknowledged what was sent; 0 if it has all of it,
            None where this system does not tell.
        is_busy: one end waits for the other.
    """
    ask_after = ASK_AFTER_BUSY if is_busy else ASK_AFTER
    if silent_looks < ask_after:
        return "well"
    if silent_looks >= ask_after + UNANSWERED and (unacknowledged_s or 0.0) >= UNACKNOWLEDGED_S:
        return "gone"
    return "ask"


def is_silent(silent_looks: int) -> bool:
    """Whether the other end has been asked often enough to count on it no more, be it gone or only busy: what it holds
    it goes on to hold, and it gets nothing new before something comes from it."""
    return silent_looks >= ASK_AFTER + UNANSWERED


__all__ = [
    "ASK_AFTER",
    "ASK_AFTER_BUSY",
    "LOOK_S",
    "REPORTED_AFTER_S",
    "UNACKNOWLEDGED_S",
    "UNANSWERED",
    "is_silent",
    "judge",
]
