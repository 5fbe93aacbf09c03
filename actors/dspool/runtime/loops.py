"""An event loop that outlives what programs let escape into it.

asyncio lets `KeyboardInterrupt` and `SystemExit` of any task or callback out of `run_forever`, even of one that a
program started and nobody here could guard. That ends Ray's thread for an actor's loop: the process lives, but answers
no more. So we take a worker's loop over from that thread, and run it again after each escape: the loop goes on with
the next callback, and the task that raised keeps its exception.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from dspool.errors import place_of, type_of

_log = logging.getLogger(__name__)


def keep_running(over: Callable[[], bool]) -> None:
    """Move the calling thread's loop to a thread that runs it until it is closed, or stopped while `over()`.

    The calling thread must do nothing with the loop after `run_forever` has returned there.
    """
    loop, before = asyncio.get_running_loop(), threading.current_thread()

    def run() -> None:
        before.join()
        while not loop.is_closed():
            try:
                loop.run_forever()
            except BaseException as escaped:
                # The type and place only: a message may hold what a user sent.
                _log.error(
                    "a task or callback of a program raised %s at %s out of the worker's event loop, which goes on",
                    type_of(escaped),
                    place_of(escaped),
                )
            else:
                if over():
                    return
                _log.error("a program stopped the worker's event loop, which goes on")

    loop.stop()
    # A daemon like Ray's thread: the process does not wait for it.
    threading.Thread(target=run, name=before.name, daemon=True).start()
