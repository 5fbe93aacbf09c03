"""The blocking forms of pools, for scripts and notebooks: the same pool, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from dspool.errors import PoolClosed
from dspool.protocols import PoolClient
from dspool.session import SessionMethods

T = TypeVar("T")
P = ParamSpec("P")
PoolT = TypeVar("PoolT", bound=PoolClient)


class Portal:
    """An event loop in a thread. Other threads give it work and wait."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dspool", daemon=True)
        self._thread.start()
        self.closed = False

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` comes to. Interrupted (Ctrl-C), it cancels the work."""
        if self.closed:
            work.close()
            raise PoolClosed("this pool was closed")
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("blocking calls from the pool's own event loop would wait for themselves")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            if self.closed:
                raise PoolClosed("this pool was closed") from None
            raise
        except BaseException:
            # The operation must not go on holding a slot.
            future.cancel()
            raise

    def iterate(self, events: AsyncGenerator[T]) -> Iterator[T]:
        """What `events` yields. Leaving early closes them."""

        steps: set[asyncio.Task[Any]] = set()

        async def following() -> tuple[T] | None:
            if step := asyncio.current_task():
                steps.add(step)
                step.add_done_callback(steps.discard)
            async for event in events:
                return (event,)
            return None

        async def leave() -> None:
            # A step that was interrupted is still on its way out of the generator.
            await asyncio.gather(*steps, return_exceptions=True)
            await events.aclose()

        try:
            while (event := self.call(following())) is not None:
                yield event[0]
        finally:
            if not self.closed:
                self.call(leave())

    def close(self) -> None:
        """End the loop and what runs on it: whoever waits for that in another thread hears that the pool is closed."""
        self.closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        self._thread.join(timeout=5.0)
        if not self._thread.is_alive():
            self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop.stop()


class BlockingForm(Generic[T]):
    """Something asynchronous that lives in a portal."""

    def __init__(self, portal: Portal, inner: T) -> None:
        self._portal, self._inner = portal, inner

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._inner!r})"


def waiting(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """The method of a `BlockingForm` that waits for `method` of what is behind it."""
    name = method.__name__

    @functools.wraps(method)
    def wait(form: BlockingForm[Any], /, *args: P.args, **kwargs: P.kwargs) -> T:
        work: Coroutine[Any, Any, T] = getattr(form._inner, name)(*args, **kwargs)
        return form._portal.call(work)

    wait.__doc__ = method.__doc__ or f"As `Pool.{name}`."
    return wait


def iterating(
    method: Callable[Concatenate[Any, P], AsyncGenerator[T]],
) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """As `waiting`, for a method that gives an asynchronous iterator."""
    name = method.__name__

    @functools.wraps(method)
    def iterate(form: BlockingForm[Any], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return form._portal.iterate(getattr(form._inner, name)(*args, **kwargs))

    iterate.__doc__ = method.__doc__ or f"As `Pool.{name}`."
    return iterate


class BlockingSession(BlockingForm[SessionMethods]):
    """As `SessionHandle`: every method of it, waiting for the answer."""

    @property
    def id(self) -> str:
        return self._inner.id

    run = waiting(SessionMethods.run)
    execute = waiting(SessionMethods.execute)
    stream = iterating(SessionMethods.stream)
    create_program = waiting(SessionMethods.create_program)
    configure_lm = waiting(SessionMethods.configure_lm)
    programs = waiting(SessionMethods.programs)
    program_info = waiting(SessionMethods.program_info)
    delete_program = waiting(SessionMethods.delete_program)
    set_variable = waiting(SessionMethods.set_variable)
    get_variable = waiting(SessionMethods.get_variable)
    variables = waiting(SessionMethods.variables)
    delete_variable = waiting(SessionMethods.delete_variable)
    history = waiting(SessionMethods.history)
    stats = waiting(SessionMethods.stats)
    execute_code = waiting(SessionMethods.execute_code)
    reset = waiting(SessionMethods.reset)
    end = waiting(SessionMethods.end)


class BlockingClient(BlockingForm[PoolT]):
    """Every method of a `PoolClient`, waiting for the answer. Safe to use from several threads.

    Ends with its `with` block, or with `close()`.
    """

    def __init__(self, opening: AbstractAsyncContextManager[PoolT]) -> None:
        portal = Portal()
        self._opening = opening
        try:
            super().__init__(portal, portal.call(_entered(opening)))
        except BaseException:
            portal.close()
            raise

    @property
    def pool(self) -> PoolT:
        """The asynchronous pool behind this one; it belongs to the event loop of this one's thread."""
        return self._inner

    @property
    def name(self) -> str:
        return self._inner.name

    def close(self) -> None:
        """End the pool if this started it, else only leave it. A second time does nothing."""
        if self._portal.closed:
            return
        try:
            self._portal.call(_left(self._opening))
        finally:
            self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def session(self, session_id: str) -> BlockingSession:
        """As `Pool.session`."""
        return BlockingSession(self._portal, self._inner.session(session_id))

    run = waiting(PoolClient.run)
    execute = waiting(PoolClient.execute)
    map = waiting(PoolClient.map)

    def as_module(self, program: str, *, timeout_s: float | None = None) -> Any:
        """As `Pool.as_module`; it waits in whatever thread calls it."""

        async def module() -> Any:
            return self._inner.as_module(program, timeout_s=timeout_s)

        return self._portal.call(module())

    stream = iterating(PoolClient.stream)
    create_session = waiting(PoolClient.create_session)
    sessions = waiting(PoolClient.sessions)
    session_info = waiting(PoolClient.session_info)
    end_session = waiting(PoolClient.end_session)

    status = waiting(PoolClient.status)
    resize = waiting(PoolClient.resize)
    decisions = waiting(PoolClient.decisions)
    pause = waiting(PoolClient.pause)
    resume = waiting(PoolClient.resume)
    cancel = waiting(PoolClient.cancel)
    drain = waiting(PoolClient.drain)
    restart = waiting(PoolClient.restart)
    deploy = waiting(PoolClient.deploy)
    stream_deploy = iterating(PoolClient.stream_deploy)
    rollback = waiting(PoolClient.rollback)
    rollouts = waiting(PoolClient.rollouts)
    current_versions = waiting(PoolClient.current_versions)
    warm = waiting(PoolClient.warm)
    stream_warm = iterating(PoolClient.stream_warm)

    metrics_snapshot = waiting(PoolClient.metrics_snapshot)
    errors = waiting(PoolClient.errors)
    metrics_history = waiting(PoolClient.metrics_history)
    events = waiting(PoolClient.events)
    operations = waiting(PoolClient.operations)
    logs = waiting(PoolClient.logs)


async def _entered(opening: AbstractAsyncContextManager[PoolT]) -> PoolT:
    return await opening.__aenter__()


async def _left(opening: AbstractAsyncContextManager[Any]) -> None:
    await opening.__aexit__(None, None, None)


__all__ = ["BlockingClient", "BlockingForm", "BlockingSession", "Portal"]
