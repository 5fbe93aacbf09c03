"""The blocking twin of `Pool`, for scripts and notebooks: the same pool, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, TypeVar

from dspool.config import PoolConfig
from dspool.errors import PoolClosed
from dspool.messages import JSON, AnyCommand, PoolStatus, Result, StreamEvent
from dspool.pool import Pool, SessionHandle

T = TypeVar("T")

_AT_ONCE = 256
"""Operations of one `map` in flight: more would wait in the queue and gain nothing."""


class BlockingPool:
    """`with BlockingPool.start(config) as pool: pool.execute("qa", question=...)`. Safe to use from several threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dspool", daemon=True)
        self._thread.start()
        self._owner: Any = None
        self._closed = False
        self.pool: Pool
        """The asynchronous pool behind this one; it belongs to the thread's event loop."""

    @classmethod
    def start(cls, config: PoolConfig | None = None, **overrides: Any) -> BlockingPool:
        """As `Pool.start`. The pool ends with the `with` block, or with `close()`."""
        self = cls()
        self._owner = Pool.start(config, **overrides)
        return self._opened(self._owner.__aenter__())

    @classmethod
    def connect(cls, name: str = "default") -> BlockingPool:
        """As `Pool.connect`."""
        self = cls()
        return self._opened(Pool.connect(name))

    def _opened(self, opening: Coroutine[Any, Any, Pool]) -> BlockingPool:
        try:
            self.pool = self._wait(opening)
        except BaseException:
            self._stop()
            raise
        return self

    def run(
        self,
        command: AnyCommand,
        *,
        session: str | None = None,
        timeout_s: float | None = None,
        idempotent: bool | None = None,
        principal: str | None = None,
    ) -> Result:
        """As `Pool.run`."""
        return self._wait(
            self.pool.run(
                command,
                session=session,
                timeout_s=timeout_s,
                idempotent=idempotent,
                principal=principal,
            )
        )

    def execute(self, program: str, /, *, timeout_s: float | None = None, **inputs: JSON) -> Result:
        """As `Pool.execute`."""
        return self._wait(self.pool.execute(program, timeout_s=timeout_s, **inputs))

    def map(
        self, program: str, inputs: list[dict[str, JSON]], *, timeout_s: float | None = None
    ) -> list[Result]:
        """Run a pool program on many inputs, as many at once as the queue takes; results in the order of the inputs.

        Raises:
            PoolError: the first failure; the operations not yet finished are cancelled.
        """

        results: list[Any] = [None] * len(inputs)
        left = iter(enumerate(inputs))

        async def caller() -> None:
            for index, one in left:
                results[index] = await self.pool.execute(program, timeout_s=timeout_s, **one)

        async def all_of_them() -> None:
            # Half the queue: other callers of this pool have inputs too.
            callers = max(1, min(len(inputs), _AT_ONCE, self.pool.client.config.max_queue // 2))
            async with asyncio.TaskGroup() as group:
                for _ in range(callers):
                    group.create_task(caller())

        try:
            self._wait(all_of_them())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return results

    def session(self, session_id: str, *, principal: str | None = None) -> BlockingSession:
        """As `Pool.session`."""
        return BlockingSession(self, self.pool.session(session_id, principal=principal))

    def status(self) -> PoolStatus:
        return self._wait(self.pool.status())

    def close(self) -> None:
        """End the pool if this started it, else only leave it. A second time does nothing."""
        if self._closed:
            return
        try:
            if self._owner is not None:
                self._wait(self._owner.__aexit__(None, None, None))
            else:
                self._wait(self.pool.close())
        finally:
            self._stop()

    def __enter__(self) -> BlockingPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._closed:
            work.close()
            raise PoolClosed("this pool was closed")
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("blocking calls from the pool's own event loop would wait for themselves")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C in the caller's thread: the operation must not go on holding a slot.
            future.cancel()
            raise

    def _stop(self) -> None:
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        if not self._thread.is_alive():
            self._loop.close()


class BlockingSession:
    """As `SessionHandle`: every method of it, waiting for the answer."""

    def __init__(self, pool: BlockingPool, handle: SessionHandle) -> None:
        self.id = handle.id
        self._pool, self._handle = pool, handle

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._handle, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._pool._wait(method(*args, **kwargs))

        return call

    def stream(
        self, program: str, /, *, timeout_s: float | None = None, **inputs: JSON
    ) -> Iterator[StreamEvent | Result]:
        """The program's output as it comes, then its `Result`."""
        events = self._handle.stream(program, timeout_s=timeout_s, **inputs).__aiter__()

        async def following() -> StreamEvent | Result | None:
            return await anext(events, None)

        try:
            while (event := self._pool._wait(following())) is not None:
                yield event
        finally:
            if not self._pool._closed:
                self._pool._wait(events.aclose())  # type: ignore[attr-defined]
