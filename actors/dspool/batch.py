"""A pool program on many inputs, and as a module of DSPy: for every form of a pool."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol, overload

from dspool.errors import PoolError
from dspool.messages import JSON, ExecuteProgram, Result
from dspool.session import PoolOperations

Outcome = Result | PoolError


class BatchCall(NamedTuple):
    """What one `map` asks."""

    program: str
    inputs: list[dict[str, JSON]]
    timeout_s: float | None
    stop: bool
    """The first failure is raised."""
    advance: Callable[[int], None]
    """Told how many more have ended."""
    lm: dict[str, JSON] | None = None

    def ended(self, outcome: Outcome) -> Outcome:
        if self.stop and isinstance(outcome, PoolError):
            raise outcome
        self.advance(1)
        return outcome


class BatchMethods(Protocol):
    """What an asynchronous pool offers beyond single operations."""

    @overload
    async def map(
        self,
        program: str,
        inputs: list[dict[str, JSON]],
        *,
        timeout_s: float | None = None,
        progress: bool = False,
    ) -> list[Result]: ...

    @overload
    async def map(
        self,
        program: str,
        inputs: list[dict[str, JSON]],
        *,
        timeout_s: float | None = None,
        lm: dict[str, JSON] | None = None,
        return_errors: Literal[True],
        progress: bool = False,
    ) -> list[Outcome]: ...

    async def map(
        self,
        program: str,
        inputs: list[dict[str, JSON]],
        *,
        timeout_s: float | None = None,
        lm: dict[str, JSON] | None = None,
        return_errors: bool = False,
        progress: bool = False,
    ) -> Any:
        """Run a pool program on many inputs, many at once; results in the order of the inputs.

        Args:
            timeout_s: deadline of each operation. lm: as in `execute`, for each.
            return_errors: what fails has its error in the place of its result, and the others go on.
            progress: show a bar on stderr.

        Raises:
            PoolError: the first failure, without `return_errors`; the operations not yet finished are cancelled.
        """
        with _bar(program, len(inputs), progress) as advance:
            return await self._outcomes(BatchCall(program, inputs, timeout_s, not return_errors, advance, lm))

    def as_module(self: PoolOperations, program: str, *, timeout_s: float | None = None) -> Any:
        """The pool program as a `dspy.Module`, for `dspy.Evaluate` and whatever else takes one.

        It belongs to the running event loop, as the pool does; called in other threads it waits for that loop.
        """
        from dspool.programs.pool_module import PoolModule

        def ask(inputs: dict[str, JSON]) -> Coroutine[Any, Any, Result]:
            return self.run(ExecuteProgram(program, inputs), timeout_s=timeout_s)

        return PoolModule(program, ask, asyncio.get_running_loop())

    @abstractmethod
    async def _outcomes(self, batch: BatchCall) -> list[Outcome]:
        """One for each of the inputs."""
        ...


@contextmanager
def _bar(program: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    if not shown:
        yield lambda ended: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    with Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)
    ) as bars:
        task = bars.add_task(program, total=total)
        yield lambda ended: bars.advance(task, ended)


__all__ = ["BatchCall", "BatchMethods", "Outcome"]
