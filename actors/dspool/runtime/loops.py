"""A worker's event loop outlives what programs let escape into it: see `run_through`.

An escape would end Ray's thread for an actor's loop: the process lives, but answers no more. So we take the loop over
from that thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from dspool.worker.program_loop import run_through


def keep_running(over: Callable[[], bool]) -> None:
    """Move the calling thread's loop to a thread that runs it until it is closed, or stopped while `over()`.

    The calling thread must do nothing with the loop after `run_forever` has returned there.
    """
    loop, before = asyncio.get_running_loop(), threading.current_thread()

    def run() -> None:
        before.join()
        run_through(loop, over)

    loop.stop()
    # A daemon like Ray's thread: the process does not wait for it.
    threading.Thread(target=run, name=before.name, daemon=True).start()
