"""Ctrl-C while the command line still imports: `dspool` ends silently, by SIGINT, as any other program.

`dspool.cli` imports it before all else. Only in a command it changes anything: many others import `dspool.cli`.
"""

from __future__ import annotations

import os
import signal
import sys


def _is_command() -> bool:
    """Whether this process is `dspool` or `python -m dspool.cli`, which has no `sys.argv[0]` of its own yet."""
    if sys.argv[:1] == ["-m"]:
        return sys.orig_argv[-len(sys.argv)] == "dspool.cli"
    return os.path.basename("".join(sys.argv[:1])) == "dspool"


def raise_it() -> None:
    """From now on it is a `KeyboardInterrupt`, as Python has it, unless it is ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__all__ = ["raise_it"]
