"""A worker's use of the pool's answers: a model is asked each question once, by whichever worker comes first.

It stands before DSPy's execution of a call. No failure of the cache is one of the call: then the model is asked.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import threading
import time
import uuid
from typing import Any, Final

import msgspec
from dspy.clients import execution
from dspy.clients.cache import Cache
from dspy.clients.call_result import CallResult

from dspool.answers import AnswersLink, LocalAnswers, SharedAnswers
from dspool.config import PoolConfig
from dspool.core.answers import CacheReply
from dspool.programs.models.operation import OperationScope, current, current_profile, is_answer
from dspool.programs.models.profile_lm import ModelCounts

_ANSWER_S: Final = 0.5
"""Longest wait for the cache itself; then it is left alone for `_PAUSE_S`."""
_PAUSE_S: Final = 5.0
_WAIT_S: Final = 60.0
"""Longest wait for somebody else's answer; within half of what is left of the operation's time."""
_CHECK_S: Final = 1.0
"""How often who waits looks whether the asker still lives, and who asks says so."""
MAX_ANSWER_BYTES: Final = 90_000
"""Of an answer that is kept. Ray carries what is larger through its object store, which may write it to disk."""

_encode, _decode = msgspec.msgpack.encode, msgspec.msgpack.decode


class PoolAnswers:
    """The pool's answers as one worker uses them. `by_principal`: nobody gets the answers of another."""

    def __init__(self, link: AnswersLink, counts: ModelCounts, *, by_principal: bool) -> None:
        self._link = link
        self._counts = counts
        self._by_principal = by_principal
        self._name = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._away_until = 0.0
        self._lock = threading.Lock()
        self._asking: set[str] = set()
        self._beating = False

    def key(self, lm: Any, call: Any, scope: OperationScope) -> bytes | None:
        """Of a call's question: all that DSPy's own key has, whose it is, and to which endpoint with which key it goes.

        None: it has none.
        """
        settings = {**getattr(lm, "kwargs", {}), **call.legacy}
        connection = [str(settings.get(name)) for name in execution.IGNORED_CACHE_KEYS]
        owner = scope.cache_owner if self._by_principal else None
        try:
            request = {**call.key(lm, False), "_dspool": [owner, current_profile.get(), lm.model, connection]}
            text: str = Cache.cache_key(None, request, execution.IGNORED_CACHE_KEYS)
        except Exception:
            return None
        return hashlib.sha256(text.encode()).digest()

    async def find(self, key: bytes, scope: OperationScope) -> CallResult | Question:
        """The answer, or the question to ask. Waits while somebody else asks it."""
        question, until, waited = Question(self, key, self._next()), self._wait_until(scope), False
        while self._is_there():
            try:
                task = asyncio.ensure_future(self._link.look_up(key, question.asker))
                try:
                    # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with the answer.
                    async with asyncio.timeout(_ANSWER_S):
                        reply = await asyncio.shield(task)
                except BaseException:
                    # Nobody waits for it any more: what it then is to ask, somebody else shall.
                    task.add_done_callback(lambda done: question.drop_late(done))
                    raise
                if (wait_s := min(_CHECK_S, until - time.monotonic())) <= 0 or reply.kind != "wait":
                    return self._decided(reply, question, waited)
                waited = True
                async with asyncio.timeout(wait_s + _ANSWER_S):
                    await self._link.wait(key, wait_s)
            except Exception:
                self._failed()
        return question

    def find_blocking(self, key: bytes, scope: OperationScope) -> CallResult | Question:
        """The same for a thread."""
        question, until, waited = Question(self, key, self._next()), self._wait_until(scope), False
        while self._is_there():
            try:
                reply = self._link.look_up_blocking(key, question.asker)
                if (wait_s := min(_CHECK_S, until - time.monotonic())) <= 0 or reply.kind != "wait":
                    return self._decided(reply, question, waited)
                if scope.stop is not None and scope.stop.is_set():
                    return question
                waited = True
                self._link.wait_blocking(key, wait_s)
            except Exception:
                self._failed()
        return question

    def _decided(self, reply: CacheReply, question: Question, waited: bool) -> CallResult | Question:
        if waited:
            self._counts.add("waits")
        if reply.kind == "found":
            result: CallResult = CallResult.load(_decode(reply.answer))
            self._counts.add("hits")
            return result
        self._counts.add("misses")
        if reply.kind == "ask":
            question.is_ours = True
            self._begin(question.asker)
        return question

    def _next(self) -> str:
        return f"{self._name}:{next(self._numbers)}"

    def _wait_until(self, scope: OperationScope) -> float:
        now = time.monotonic()
        return now + min(_WAIT_S, max(0.0, (scope.deadline - now) / 2))

    def _is_there(self) -> bool:
        return time.monotonic() >= self._away_until

    def _failed(self) -> None:
        self._counts.add("failures")
        self._away_until = time.monotonic() + _PAUSE_S

    # --- questions under way ---

    def ended(self, question: Question, answer: bytes | None) -> None:
        """Keep the answer; None: there is none to keep."""
        with self._lock:
            self._asking.discard(question.asker)
        if not self._is_there():
            return  # whoever waits for the answer asks when nothing is heard of this question any more
        try:
            if answer is None:
                self._link.give_up(question.key, question.asker)
            else:
                self._link.keep(question.key, question.asker, answer)
        except Exception:
            self._failed()

    def _begin(self, asker: str) -> None:
        with self._lock:
            self._asking.add(asker)
            if self._beating:
                return
            self._beating = True
        threading.Thread(target=self._beat, name="answers", daemon=True).start()

    def _beat(self) -> None:
        """Say which questions are still being asked, until there is none."""
        while True:
            time.sleep(_CHECK_S)
            with self._lock:
                asking = list(self._asking)
                if not asking:
                    self._beating = False
                    return
            try:
                self._link.heard(asking)
            except Exception:
                self._failed()


def answers_of(config: PoolConfig, link: AnswersLink | None, counts: ModelCounts) -> PoolAnswers | None:
    """The answers of a pool as `config` wants them, over `link`, by default only this process's; None: no cache."""
    if not config.cache:
        return None
    link = link or LocalAnswers(SharedAnswers(config.cache))
    return PoolAnswers(link, counts, by_principal=config.cache.scope == "principal")


class Question:
    """A question that goes to the model. End it once."""

    def __init__(self, answers: PoolAnswers, key: bytes, asker: str) -> None:
        self._answers = answers
        self.key = key
        self.asker = asker
        self.is_ours = False
        """Others wait for the answer."""

    def answered(self, result: CallResult) -> None:
        self._answers.ended(self, _encoded(result))

    def failed(self) -> None:
        if self.is_ours:
            self._answers.ended(self, None)

    def drop_late(self, done: asyncio.Future[CacheReply]) -> None:
        """A reply that came when nobody waited for it."""
        if not done.cancelled() and done.exception() is None and done.result().kind == "ask":
            self._answers.ended(self, None)


def _encoded(result: CallResult) -> bytes | None:
    """None: not worth keeping."""
    if result.cache_hit:
        return None  # DSPy's own cache had it; how old it is, nobody knows
    try:
        record = result.dump()
        if not is_answer(record):
            return None
        for response in record["responses"]:
            response.pop("provider_data", None)
        encoded = _encode(record)
    except Exception:
        return None
    return encoded if len(encoded) <= MAX_ANSWER_BYTES else None


def sharing(execute: Any) -> Any:
    """`execute` of DSPy, which asks the pool's answers first."""

    @functools.wraps(execute)
    def shared(lm: Any, call: Any) -> Any:
        found = _place_of(lm, call) if call.cache and not _on_a_loop() else None
        if found is None:
            return execute(lm, call)
        answers, key, scope = found
        question = answers.find_blocking(key, scope)
        if not isinstance(question, Question):
            return question
        try:
            result = execute(lm, call)
        except BaseException:
            question.failed()
            raise
        question.answered(result)
        return result

    return shared


def sharing_async(aexecute: Any) -> Any:
    """`aexecute` of DSPy, which asks the pool's answers first."""

    @functools.wraps(aexecute)
    async def shared(lm: Any, call: Any) -> Any:
        found = _place_of(lm, call) if call.cache else None
        if found is None:
            return await aexecute(lm, call)
        answers, key, scope = found
        question = await answers.find(key, scope)
        if not isinstance(question, Question):
            return question
        try:
            result = await aexecute(lm, call)
        except BaseException:
            question.failed()
            raise
        question.answered(result)
        return result

    return shared


def _place_of(lm: Any, call: Any) -> tuple[PoolAnswers, bytes, OperationScope] | None:
    scope = current()
    if scope is None or (answers := scope.answers) is None:
        return None
    key = answers.key(lm, call, scope)
    return None if key is None else (answers, key, scope)


def _on_a_loop() -> bool:
    """Whether waiting would hold up an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


for name, wrap in (("execute", sharing), ("aexecute", sharing_async)):
    if not hasattr(getattr(execution, name), "_dspool"):
        setattr(execution, name, wrap(getattr(execution, name)))
        getattr(execution, name)._dspool = True
