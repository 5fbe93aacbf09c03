"""A process that tries the user's code, and of which nothing is left: neither it nor anything that it started.

Its parent is a small process that does nothing else (`python` of this file, which imports nothing of dspool). On Linux
the kernel gives it whatever below loses its own parent, so a daemon in a session of its own is found as well; elsewhere
it is found while its parents live.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

import psutil

FROM_SIGNAL: Final = 128
"""The exit code of a process that a signal ended is this more than its number, as in shells."""
_ENDED_WITHIN_S: Final = 10.0
_GONE_WITHIN_S: Final = 15.0
_SET_CHILD_SUBREAPER: Final = 36


@contextmanager
def contained(
    command: Sequence[str], *, stderr: int = subprocess.DEVNULL, removes: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`command`, with pipes as stdin and stdout; it ends by itself, by `terminate()`, or with the block or this process
    (however that ends). The directory `removes` is gone then.

    The exit code is that of `command`, and is there once all that it started has ended.
    """
    told, tells = os.pipe()
    parent = [sys.executable, "-P", __file__, str(told), "" if removes is None else str(removes)]
    try:
        process = subprocess.Popen(
            [*parent, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            pass_fds=[told],
            # Ctrl-C goes to the whole group of a terminal: this process ends it.
            start_new_session=True,
        )
    except BaseException:
        os.close(tells)
        raise
    finally:
        os.close(told)
    try:
        yield process
    finally:
        _leave(process, tells, removes)


def _leave(process: subprocess.Popen[bytes], tells: int, removes: Path | None) -> None:
    try:
        process.terminate()
        try:
            process.wait(_GONE_WITHIN_S)
        except subprocess.TimeoutExpired:  # it was stopped
            process.kill()
            process.wait()
    finally:
        os.close(tells)
        if removes is not None:  # by a process that it ended before it began
            shutil.rmtree(removes, ignore_errors=True)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


# --- the parent -------------------------------------------------------------------------------------


def main(told: int, removes: str, command: Sequence[str]) -> int:
    """Its exit code. `told` is a pipe that ends with whoever asked."""
    child, code = None, FROM_SIGNAL + signal.SIGTERM
    try:
        try:
            signal.signal(signal.SIGTERM, _stop)
            threading.Thread(target=_end_with, args=(told,), daemon=True).start()
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            # In a session of its own, so that a program that ends its group does not end this process.
            child = subprocess.Popen(command, start_new_session=True)
            ended = child.wait()
            code = ended if ended >= 0 else FROM_SIGNAL - ended
        finally:
            # One that comes now must not keep the rest from being done.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    finally:
        # Of another user, or within a call to a disk that does not answer: there is what cannot be ended.
        give_up = threading.Timer(_ENDED_WITHIN_S, os._exit, [code])
        give_up.daemon = True
        give_up.start()
        descendants = psutil.Process().children(recursive=True)
        if child is not None:
            child.kill()
            child.wait()
        # Only the command itself writes to it, not what it started.
        if removes:
            shutil.rmtree(removes, ignore_errors=True)
        if child is not None and sys.platform != "linux":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        _end(descendants)
    return code


def _stop(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(FROM_SIGNAL + signal.SIGTERM)


def _end_with(told: int) -> None:
    os.read(told, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _end(processes: Sequence[psutil.Process]) -> None:
    """And all that is or comes below this one."""
    while True:
        # Each round looks again and so ends a child, if there is one: the wait is never for one that was not told to.
        for process in [*processes, *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))


__all__ = ["FROM_SIGNAL", "contained"]
