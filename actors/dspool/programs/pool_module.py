"""A pool program as a module of DSPy, for what takes modules: `dspy.Evaluate`, optimizers, other programs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import dspy

from dspool.messages import JSON, Result

Ask = Callable[[dict[str, JSON]], Coroutine[Any, Any, Result]]


class PoolModule(dspy.Module):
    """Asks a pool and runs nothing itself. Its predictions have the outputs, and the tokens as their LM usage.

    `module(...)` waits, in any thread but that of the pool's event loop; `await module.acall(...)` works in every loop.

    Args:
        ask: runs the program in the pool, on `loop`.
    """

    def __init__(self, program: str, ask: Ask, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.program = program
        self._ask, self._loop = ask, loop

    def forward(self, **inputs: JSON) -> dspy.Prediction:
        if _running_loop() is self._loop:
            raise RuntimeError(
                "a call that waits would stop the pool's event loop: use `await module.acall(...)`, "
                "or run what calls it in a thread: `await asyncio.to_thread(evaluate, module)`"
            )
        future = asyncio.run_coroutine_threadsafe(self._ask(inputs), self._loop)
        try:
            return _prediction(future.result())
        except BaseException:
            future.cancel()
            raise

    async def aforward(self, **inputs: JSON) -> dspy.Prediction:
        if _running_loop() is self._loop:
            return _prediction(await self._ask(inputs))
        future = asyncio.run_coroutine_threadsafe(self._ask(inputs), self._loop)
        return _prediction(await asyncio.wrap_future(future))

    def __deepcopy__(self, memo: dict[int, Any]) -> PoolModule:
        return PoolModule(self.program, self._ask, self._loop)

    def __repr__(self) -> str:
        return f"PoolModule({self.program!r})"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _prediction(result: Result) -> dspy.Prediction:
    prediction = dspy.Prediction(**result.outputs)
    prediction.set_lm_usage(result.usage)
    # With `track_usage` DSPy replaces a prediction's usage by what its tracker has seen.
    if tracker := dspy.settings.usage_tracker:
        for model, tokens in result.usage.items():
            tracker.add_usage(model, tokens)
    return prediction


__all__ = ["Ask", "PoolModule"]
