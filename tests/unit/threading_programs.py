"""Programs that start threads in every way, and agents whose tools block, wait, or call a model."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing.pool
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy

log = logging.getLogger(__name__)
meeting = threading.Barrier(8)
PATIENCE_S = 30.0


class _Asking(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")


class _InThread(_Asking):
    def forward(self, question: str) -> Any:
        return self.within(lambda: self.answer(question=question))

    def within(self, ask: Callable[[], Any]) -> Any:
        raise NotImplementedError


class RawThread(_InThread):
    def within(self, ask: Callable[[], Any]) -> Any:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(ask()))
        thread.start()
        thread.join()
        return found[0]


class OwnKindOfThread(_InThread):
    def within(self, ask: Callable[[], Any]) -> Any:
        class Asks(threading.Thread):
            def run(self) -> None:
                self.found = ask()

        thread = Asks()
        thread.start()
        thread.join()
        return thread.found


class Timer(_InThread):
    def within(self, ask: Callable[[], Any]) -> Any:
        found: list[Any] = []
        timer = threading.Timer(0, lambda: found.append(ask()))
        timer.start()
        timer.join()
        return found[0]


class Executor(_InThread):
    def within(self, ask: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(ask).result()


class ExecutorMap(_InThread):
    def within(self, ask: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return next(iter(pool.map(lambda _: ask(), [1])))


class KeptExecutor(_InThread):
    """Its threads live on and serve whoever comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(int).result()

    def deepcopy(self) -> Any:
        return self

    def within(self, ask: Callable[[], Any]) -> Any:
        return self.pool.submit(ask).result()


class KeptThreadPool(_InThread):
    def __init__(self) -> None:
        super().__init__()
        self.pool = multiprocessing.pool.ThreadPool(2)

    def within(self, ask: Callable[[], Any]) -> Any:
        ways: list[Callable[[], Any]] = [
            lambda: self.pool.apply(ask),
            lambda: self.pool.map(lambda _: ask(), [1])[0],
            lambda: self.pool.starmap(lambda *_: ask(), [(1,)])[0],
            lambda: next(self.pool.imap(lambda _: ask(), [1])),
        ]
        first, *_ = [way() for way in ways]
        return first


class ThreadWithinThread(RawThread):
    def within(self, ask: Callable[[], Any]) -> Any:
        return super().within(lambda: RawThread.within(self, ask))


class RunInExecutor(_Asking):
    async def aforward(self, question: str) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, lambda: self.answer(question=question))


class FailingThread(dspy.Module):
    def forward(self) -> Any:
        def fail() -> None:
            raise ValueError("what the user wrote")

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        return dspy.Prediction(answer="survived")


class LoggingThread(dspy.Module):
    def forward(self) -> Any:
        thread = threading.Thread(target=log.warning, args=("within",))
        thread.start()
        thread.join()
        return dspy.Prediction(answer="done")


# --- agents ---


def meets(word: str = "") -> str:
    """Wait for seven others."""
    meeting.wait(PATIENCE_S)
    return "met"


def asks(word: str = "") -> str:
    """Ask the model."""
    return dspy.Predict("question -> answer")(question="Rome is big. What is big?").answer


class Held:
    """A tool that is in nobody's hands until it may end."""

    began = threading.Event()
    may_end = threading.Event()


def holds(word: str = "") -> str:
    """Hold on."""
    Held.began.set()
    Held.may_end.wait(PATIENCE_S)
    return "held"


async def waits(word: str = "") -> str:
    """Wait for the event loop."""
    await asyncio.sleep(0)
    return "waited"


def plain(word: str = "") -> str:
    """Say on which thread it runs."""
    return threading.current_thread().name


def _agent(*tools: Any) -> Any:
    return dspy.ReAct("question -> answer", tools=list(tools), max_iters=1)


meeting_agent = _agent(meets)
asking_agent = _agent(asks)
holding_agent = _agent(holds)
mixed_agent = _agent(waits, plain)


class Agent(dspy.Module):
    """An agent within a module of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.agent = _agent(meets)

    async def aforward(self, question: str) -> Any:
        return await self.agent.acall(question=question)


class BlockingAgent(dspy.Module):
    """A module without an async form, with an async tool."""

    def __init__(self) -> None:
        super().__init__()
        self.agent = _agent(waits)

    def forward(self, question: str) -> Any:
        return self.agent(question=question)
