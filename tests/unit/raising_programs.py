"""Programs, tools, rewards and steps that raise what `kind` says, each at another place."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import dspy
import pydantic
from dspy.utils.callback import BaseCallback

from dspool.errors import PoolError

SECRET = "what the user wrote"
kind = ""


class Own(BaseException):
    pass


class Hostile(BaseException):
    """Whoever looks at it is hurt."""

    def __str__(self) -> str:
        raise KeyboardInterrupt(SECRET)

    __repr__ = __str__

    def __reduce__(self) -> Any:
        raise SystemExit(SECRET)


class _Nameless(type):
    __name__ = property(lambda cls: sys.exit(SECRET))  # type: ignore[assignment]


class Nameless(BaseException, metaclass=_Nameless):
    pass


class OwnPoolError(PoolError):
    code = "raising_programs"
    outcome = property(lambda self: sys.exit(SECRET))  # type: ignore[assignment]

    def to_wire(self) -> Any:
        raise KeyboardInterrupt(SECRET)


def _recurse() -> NoReturn:
    _recurse()


def _raise(raised: BaseException) -> NoReturn:
    raise raised


_KINDS: dict[str, Callable[[], NoReturn]] = {
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt(SECRET)),
    "SystemExit": lambda: sys.exit(SECRET),
    "GeneratorExit": lambda: _raise(GeneratorExit(SECRET)),
    "CancelledError": lambda: _raise(asyncio.CancelledError(SECRET)),
    "BaseExceptionGroup": lambda: _raise(BaseExceptionGroup(SECRET, [SystemExit(SECRET), ValueError()])),
    "Own": lambda: _raise(Own(SECRET)),
    "StopIteration": lambda: _raise(StopIteration(SECRET)),
    "StopAsyncIteration": lambda: _raise(StopAsyncIteration(SECRET)),
    "RecursionError": _recurse,
    "MemoryError": lambda: _raise(MemoryError(SECRET)),
    "Hostile": lambda: _raise(Hostile()),
    "Nameless": lambda: _raise(Nameless(SECRET)),
    "OwnPoolError": lambda: _raise(OwnPoolError(SECRET)),
    "ValueError": lambda: _raise(ValueError(SECRET)),
}
KINDS = tuple(_KINDS)


def type_of_kind(name: str) -> type[BaseException]:
    try:
        _KINDS[name]()
    except BaseException as raised:
        return type(raised)


def now(*_: Any, **__: Any) -> Any:
    """Raises what is asked for, if anything is."""
    if kind:
        _KINDS[kind]()


async def later(*_: Any, **__: Any) -> Any:
    await asyncio.sleep(0)
    now()


def tool(word: str = "") -> Any:
    """Look a word up."""
    return now()


async def tool_later(word: str = "") -> Any:
    """Look a word up, asynchronously."""
    return await later()


class _Async(dspy.Module):
    async def do(self) -> Any: ...

    async def aforward(self) -> Any:
        await self.do()
        return dspy.Prediction(answer="survived")


class InCoroutine(_Async):
    async def do(self) -> None:
        await later()


class InTask(_Async):
    async def do(self) -> None:
        await asyncio.create_task(later())


class InGather(_Async):
    async def do(self) -> None:
        await asyncio.gather(asyncio.sleep(0.01), later())


class InExecutor(_Async):
    async def do(self) -> None:
        await asyncio.to_thread(now)


class InAsyncified(_Async):
    async def do(self) -> None:
        await dspy.asyncify(now)()


class InCallback(_Async):
    def __init__(self) -> None:
        super().__init__(callbacks=[_Callback()])


class _Callback(BaseCallback):
    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        now()


class InThread(dspy.Module):
    def forward(self) -> Any:
        now()


class InThreadsOfDSPy(dspy.Module):
    def forward(self) -> Any:
        parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True, max_errors=1)
        parallel([(InThread(), dspy.Example().with_inputs())] * 2)
        return dspy.Prediction(answer="survived")


class InConstructor(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        now()

    def forward(self) -> Any:
        return dspy.Prediction(answer="built")


class InDescription(InConstructor):
    def __init__(self) -> None:
        dspy.Module.__init__(self)

    def named_predictors(self) -> Any:
        now()
        return []


class InAnswer(_Async):
    async def aforward(self) -> Any:
        return dspy.Prediction(answer=_Answer())


class _Answer(pydantic.BaseModel):
    def model_dump(self, **_: Any) -> Any:
        now()


class CancelsItself(_Async):
    async def do(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)


# --- where nobody waits for what raises ---


class InForgottenTask(_Async):
    async def do(self) -> None:
        task = asyncio.create_task(later())
        await asyncio.wait([task])


class InLoopCallback(_Async):
    async def do(self) -> None:
        asyncio.get_running_loop().call_soon(now)
        await asyncio.sleep(0.001)


class InDoneCallback(_Async):
    async def do(self) -> None:
        task = asyncio.create_task(asyncio.sleep(0))
        task.add_done_callback(now)
        await asyncio.wait([task])
        await asyncio.sleep(0)


class InTimer(_Async):
    async def do(self) -> None:
        asyncio.get_running_loop().call_later(0.001, now)
        await asyncio.sleep(0.01)


class InFinalizer(_Async):
    async def do(self) -> None:
        _Finalized()


class _Finalized:
    def __del__(self) -> None:
        now()


class InGenerator(_Async):
    async def do(self) -> None:
        next(_left_open())


def _left_open() -> Any:
    try:
        yield
    finally:
        now()


class InAsyncGenerator(_Async):
    async def do(self) -> None:
        await anext(_left_open_later())
        await asyncio.sleep(0.001)


async def _left_open_later() -> Any:
    try:
        yield
    finally:
        await later()


class InForgottenThread(_Async):
    async def do(self) -> None:
        thread = threading.Thread(target=now)
        thread.start()
        thread.join()


class InExceptionHandler(_Async):
    async def do(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(now)
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0.001)
        loop.set_exception_handler(None)


class StopsTheLoop(_Async):
    async def do(self) -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.001)


class ClosesTheLoop(_Async):
    async def do(self) -> None:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().close()


class Neighbour(dspy.Module):
    """Runs for as long as the others misbehave."""

    open: asyncio.Event
    loop: asyncio.AbstractEventLoop

    async def aforward(self) -> Any:
        Neighbour.loop = asyncio.get_running_loop()
        Neighbour.open = asyncio.Event()
        await Neighbour.open.wait()
        return dspy.Prediction(answer="unharmed")
