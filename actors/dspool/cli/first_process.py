"""What process 1 owes the others. In a container that is `dspool up`, where no shell or init stands before it.

The kernel gives process 1 every orphan, to take away once it has ended, and no default for any signal. Ray starts
processes that outlive their parents, and asks for the end of those that it started itself: so one process does nothing
but this, and the service is its child.
"""

from __future__ import annotations

import os
import signal
from typing import Final, NoReturn

_FROM_KERNEL: Final = 0x80
"""`SI_KERNEL`: a terminal's Ctrl-C, which goes to all processes of its group, the child among them."""
_OWN: Final = frozenset(
    {signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
)
"""Those that cannot be waited for, or are a fault of who gets them."""


def become_child() -> None:
    """In process 1: go on in a child. The first process stays, hands on signals, takes away whoever has ended, and
    ends as the child does, which ends all others. In any other process: nothing.
    """
    if os.getpid() != 1:
        return
    handed_on = signal.valid_signals() - _OWN
    # Blocked before there is a child: none is lost between the two.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handed_on)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    _look_after(child, handed_on)


def _look_after(child: int, handed_on: set[signal.Signals]) -> NoReturn:
    while True:
        came = signal.sigwaitinfo(handed_on)
        if came.si_signo == signal.SIGCHLD:
            if (status := _taken_away().get(child)) is not None:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)
        elif came.si_code != _FROM_KERNEL:
            os.kill(child, came.si_signo)


def _taken_away() -> dict[int, int]:
    """The statuses of all children that have ended; one signal may stand for many."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


__all__ = ["become_child"]
