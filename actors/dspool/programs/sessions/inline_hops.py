"""An executor that runs DSPy's own short hops where they are, and everything else in threads.

One `acall` of a DSPy program goes through `asyncio.to_thread` three to five times, each for microseconds of work:
preparing the request, pricing the answer, choosing the connection. The hops cost more than the work.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from dspool.errors import type_of

_SHORT = frozenset(
    {
        ("dspy.clients.execution", "prepare"),
        ("dspy.clients.execution", "_price_result"),
        ("dspy.clients.capabilities", "capabilities"),
        ("dspy.clients.engines.lm15_engine", "_target"),
    }
)
"""By module and name. The cache's functions are not among them: they may read and write files."""


class InlineHops(ThreadPoolExecutor):
    """For `loop.set_default_executor(...)`; otherwise a `ThreadPoolExecutor`.

    A recognised function runs in the calling thread, and what is returned is a finished asyncio future: awaiting that
    does not even leave the current step of the loop.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not kwargs and _is_short(fn, args):
            return cast("Future[Any]", _run_here(fn, args))
        return super().submit(_arriving, fn, args, kwargs)


def _arriving(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return fn(*args, **kwargs)
    except StopIteration as stop:
        # asyncio's future does not take it from the thread's, and whoever awaits that would wait for ever.
        raise RuntimeError(f"{type_of(stop)} was raised in a thread") from stop


def _is_short(fn: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    # asyncio.to_thread(f, ...) submits partial(context.run, f, ...).
    if not isinstance(fn, functools.partial) or args or not fn.args:
        return False
    run = fn.func
    target = fn.args[0]
    if type(getattr(run, "__self__", None)) is not contextvars.Context:
        return False
    key = (getattr(target, "__module__", ""), getattr(target, "__name__", ""))
    if key not in _SHORT:
        return False
    if key[1] == "capabilities":
        # Asked about a model of litellm it imports litellm first, which takes seconds.
        engine = getattr(fn.args[1], "engine", None) if len(fn.args) > 1 else None
        return engine != "litellm" or "litellm" in sys.modules
    return True


def _run_here(fn: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    try:
        done.set_result(fn(*args))
    except StopIteration as stop:
        # A future refuses StopIteration, as it would end the coroutine that awaits it.
        done.set_exception(RuntimeError(f"{fn!r} raised {type_of(stop)}"))
    except Exception as raised:
        done.set_exception(raised)
    return done
