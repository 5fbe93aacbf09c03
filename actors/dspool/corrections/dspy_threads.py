"""What runs in threads: plain tools of agents, and what a program's own threads know of its operation.

Each correction looks for what it changes by name and leaves it alone where it is not there.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib
import inspect
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import anyio
import anyio.to_thread
from anyio._core import _eventloop

from dspool.corrections import active
from dspool.errors import place_of, type_of

log = logging.getLogger(__name__)

_SUBMIT = ("apply_async", "_map_async", "imap", "imap_unordered")
"""What gives work to a `ThreadPool`; all its other methods call these."""
_POOLS = frozenset({"concurrent.futures.thread", "multiprocessing.pool", "anyio._backends._asyncio"})
"""Their threads outlive who started them, and get the context with each piece of work."""

MOST_TOOLS = 256
"""Tools that run at once in one worker, in threads."""


def correct_threads() -> None:
    """Make the corrections that are on. A second time changes nothing."""
    if active("thread-context"):
        _replace(threading.Thread, "start", starting)
        _replace(ThreadPoolExecutor, "submit", submitting)
        for name in _SUBMIT:
            _replace(ThreadPool, name, submitting)
    if active("dspy-stream-threads"):
        _replace(importlib.import_module("dspy.clients.execution"), "_attempt", attempting)
    if active("dspy-plain-tools"):
        _replace(getattr(importlib.import_module("dspy"), "Tool", None), "acall", calling_in_threads)


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    original = getattr(owner, name, None)
    if original is not None and not hasattr(original, "_dspool"):
        replaced = wrap(original)
        replaced._dspool = True
        setattr(owner, name, replaced)


# --- the context of a program's threads -------------------------------------------------------------


def context_of_program() -> contextvars.Context | None:
    """A copy of the context that runs now; None outside of programs: then nothing is carried."""
    return contextvars.copy_context() if _dspy_settings().thread_local_overrides.get() else None


@functools.cache
def _dspy_settings() -> Any:
    return importlib.import_module("dspy.dsp.utils.settings")


def starting(start: Any) -> Any:
    """`Thread.start`, which takes the context of the program that calls it into the thread."""

    @functools.wraps(start)
    def start_within(self: Any) -> None:
        target = getattr(self, "_target", None)
        if not _POOLS & {type(self).__module__, getattr(target, "__module__", "")}:
            context = context_of_program()
            if context is not None:
                self.run = functools.partial(_run_within, context, self, self.run)
        start(self)

    return start_within


def _run_within(context: contextvars.Context, thread: Any, run: Callable[[], None]) -> None:
    vars(thread).pop("run", None)  # it holds the thread
    try:
        context.run(run)
    except SystemExit:
        raise
    except BaseException as raised:
        # Nobody else tells whose thread it was.
        context.run(
            log.error, "a thread that a program started ended: %s at %s", type_of(raised), place_of(raised)
        )
        raise


def submitting(submit: Any) -> Any:
    """A method that gives a function to a pool of threads, which then runs in its caller's context."""

    @functools.wraps(submit)
    def submit_within(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        context = context_of_program()
        if context is not None and callable(fn):
            fn = functools.partial(_call_within, context, fn)
        return submit(self, fn, *args, **kwargs)

    return submit_within


def _call_within(context: contextvars.Context, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # A copy: several threads may run what was given at once, and none sees what the others set.
    return context.copy().run(fn, *args, **kwargs)


# --- streams ----------------------------------------------------------------------------------------


def attempting(attempt: Any) -> Any:
    """A blocking call of a model, which does not stream where nobody can take the stream from its thread."""

    @functools.wraps(attempt)
    def attempt_here(*args: Any, **kwargs: Any) -> Any:
        settings = _dspy_settings().settings
        if settings.send_stream is None or hasattr(_eventloop.threadlocals, "current_token"):
            return attempt(*args, **kwargs)
        with settings.context(send_stream=None):
            return attempt(*args, **kwargs)

    return attempt_here


# --- tools ------------------------------------------------------------------------------------------


def calling_in_threads(acall: Any) -> Any:
    """`Tool.acall`, which runs a function that may block in a thread and not on the event loop."""
    with_callbacks = importlib.import_module("dspy.utils.callback").with_callbacks
    limiters: dict[asyncio.AbstractEventLoop, anyio.CapacityLimiter] = {}

    async def acall_in_thread(self: Any, **kwargs: Any) -> Any:
        parsed = self._validate_and_parse_args(**kwargs)
        if _is_quick(self.func):
            found = self.func(**parsed)
        else:
            loop = asyncio.get_running_loop()
            if loop not in limiters:
                for closed in [other for other in limiters if other.is_closed()]:
                    del limiters[closed]
                limiters[loop] = anyio.CapacityLimiter(MOST_TOOLS)
            found = await _in_thread(functools.partial(self.func, **parsed), limiters[loop])
        return await found if asyncio.iscoroutine(found) else found

    return with_callbacks(functools.wraps(acall)(acall_in_thread))


def _is_quick(func: Any) -> bool:
    """Whether calling it does not block: it only makes a coroutine, or is one of the agents' own."""
    return (
        inspect.iscoroutinefunction(func)
        or inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004 - whether it is async
        or str(getattr(func, "__module__", "")).startswith("dspy.predict.")
    )


async def _in_thread(call: Callable[[], Any], limiter: anyio.CapacityLimiter) -> Any:
    def run() -> tuple[Any, BaseException | None]:
        # Returned, not raised: SystemExit of a task would leave the event loop, and a future takes no StopIteration.
        try:
            return call(), None
        except BaseException as raised:
            return None, raised

    # A thread of anyio: DSPy streams from those only.
    thread = asyncio.ensure_future(anyio.to_thread.run_sync(run, limiter=limiter))
    try:
        found, raised = await asyncio.shield(thread)
    except asyncio.CancelledError:
        # Nothing can stop a thread: until it ends, the operation has not ended.
        await asyncio.wait((thread,))
        raise
    if raised is not None:
        raise raised
    return found


__all__ = ["correct_threads"]
