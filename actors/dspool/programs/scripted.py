"""A language model that answers by script: for tests of programs, in a process of their own or in a local pool."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pydantic
from dspy import lm15

from dspool.errors import ModelError
from dspool.programs.offline.engine import reply_of, words_of
from dspool.programs.offline.prompt_plan import plan_of

SCRIPTED_MODEL = "scripted/lm"
_STEP_S = 0.01


@dataclass(frozen=True, kw_only=True)
class ModelReply:
    """One answer of a `ScriptedLM`, where the value of a field is not all there is to say."""

    value: Any = None
    """Outputs by name, or the value of the last output. Outputs that it leaves out are the offline engine's."""
    text: str | None = None
    """The whole text of the model, whatever format the prompt asks for."""
    delay_s: float = 0.0
    status: int | None = None
    """An error: 429 is a rate limit, 401 a refused key, 5xx a failing back end."""
    retry_after_s: float | None = None
    """The pause that a 429 or 503 asks for."""
    unreachable: bool = False
    """There is no connection."""
    refusal: str | None = None
    """The model's own words, when it refuses to answer."""
    finish_reason: str = "stop"
    """`length` is an answer that was cut off, `content_filter` one that a filter stopped."""
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True)
class ModelCall:
    """What a `ScriptedLM` was asked."""

    system: str
    prompt: str
    """The text of the last message of the user."""
    inputs: dict[str, str]
    """The inputs in the prompt by name, as text; empty if no adapter wrote it."""
    request: Any = field(repr=False)
    """The whole `dspy.lm15.Request`: all messages, tools, settings."""


Answer = Any
"""A `ModelReply`, an exception to raise, outputs by name, or the value of the last output."""
Script = Callable[[ModelCall], Answer | Awaitable[Answer]]


class ScriptedLM:
    """Answers model calls by script, and keeps what it was asked in `calls`. Safe to use from any thread.

    Args:
        answers: a list is used up in its order; a mapping has the answer to each prompt in which its key occurs (the
            first that does, and `""` occurs in all); a function gets the `ModelCall` and may be asynchronous; anything
            else is the answer to every call. See `Answer`.

    A call for which the script has no answer is a `ModelError` that says so.
    """

    model = SCRIPTED_MODEL

    def __init__(self, answers: Iterable[Answer] | Mapping[str, Answer] | Script | Answer = ()) -> None:
        self.calls: list[ModelCall] = []
        self._lock = threading.Lock()
        self.script(answers)
        self._held = threading.Event()
        self._waiting: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @property
    def asynchronous(self) -> _AsyncEngine:
        return _AsyncEngine(self)

    # --- for tests ---

    def script(self, answers: Iterable[Answer] | Mapping[str, Answer] | Script | Answer) -> None:
        """Answer from here on with these."""
        with self._lock:
            self._answers = answers
            self._left = list(answers) if isinstance(answers, list | tuple) else None

    def hold(self) -> None:
        """Answer no call until `release`."""
        self._held.set()

    def release(self) -> None:
        """Answer the calls that wait, and those that come."""
        self._held.clear()

    async def wait_asked(self, calls: int = 1) -> None:
        """Wait until there were so many calls in all, from any event loop."""
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if len(self.calls) >= calls:
                return
            self._waiting.append((calls, loop, asked))
        await asked

    # --- the engine that DSPy calls ---

    def complete(self, request: lm15.Request) -> lm15.Response:
        reply = self._reply(request)
        if inspect.isawaitable(reply):
            reply = asyncio.run(_result_of(reply))
        self._wait(reply)
        return _response(request, reply)

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        yield from _events(request, self.complete(request))

    def close(self) -> None:
        """Nothing to release."""

    def _wait(self, reply: Answer) -> None:
        time.sleep(_delay_of(reply))
        while self._held.is_set():
            time.sleep(_STEP_S)

    async def _wait_async(self, reply: Answer) -> None:
        await asyncio.sleep(_delay_of(reply))
        while self._held.is_set():  # noqa: ASYNC110 - set from any thread, for callers on any loop
            await asyncio.sleep(_STEP_S)

    def _reply(self, request: lm15.Request) -> Answer | Awaitable[Answer]:
        """The script's answer to one more call."""
        call = _call_of(request)
        with self._lock:
            self.calls.append(call)
            number = len(self.calls)
            for waiting in [one for one in self._waiting if one[0] <= number]:
                self._waiting.remove(waiting)
                _, loop, asked = waiting
                with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits
                    loop.call_soon_threadsafe(_wake, asked)
            if self._left is not None:
                return self._left.pop(0) if self._left else _no_answer(f"call {number}: it had fewer answers")
        if isinstance(self._answers, Mapping) and all(isinstance(key, str) for key in self._answers):
            plan = plan_of(call.system)
            if plan is not None and set(self._answers) <= set(plan.schemas()):
                return self._answers  # outputs by name, the same for each call
            found = (answer for part, answer in self._answers.items() if part in call.prompt)
            return next(found, None) or _no_answer(f"call {number}: no key of it occurs in the prompt")
        if callable(self._answers) and not isinstance(self._answers, type):
            return self._answers(call)
        return self._answers


class _AsyncEngine:
    """The asynchronous half of a `ScriptedLM`."""

    def __init__(self, script: ScriptedLM) -> None:
        self._script = script

    async def complete(self, request: lm15.Request) -> lm15.Response:
        reply = self._script._reply(request)
        if inspect.isawaitable(reply):
            reply = await reply
        await self._script._wait_async(reply)
        return _response(request, reply)

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        for event in _events(request, await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Nothing to release."""


async def _result_of(reply: Awaitable[Answer]) -> Answer:
    return await reply


def _wake(asked: asyncio.Future[None]) -> None:
    if not asked.done():
        asked.set_result(None)


def _no_answer(which: str) -> ModelError:
    return ModelError(f"the script has no answer to {which}", reason="script")


def _delay_of(reply: Answer) -> float:
    return reply.delay_s if isinstance(reply, ModelReply) else 0.0


def _call_of(request: lm15.Request) -> ModelCall:
    system = request.system if isinstance(request.system, str) else ""
    prompt = _text_of(request)
    plan = plan_of(system) if system else None
    return ModelCall(system, prompt, {} if plan is None else plan.inputs_of(prompt), request)


def _text_of(request: lm15.Request) -> str:
    for message in reversed(request.messages):
        if message.role == "user":
            return "\n".join(part.text for part in message.parts if isinstance(part, lm15.TextPart))
    return ""


def _response(request: lm15.Request, answer: Answer) -> lm15.Response:
    if isinstance(answer, BaseException) or (isinstance(answer, type) and issubclass(answer, BaseException)):
        raise answer
    reply = answer if isinstance(answer, ModelReply) else ModelReply(value=answer)
    _raise_fault(reply)
    part: Any
    if reply.refusal is not None:
        part = lm15.RefusalPart(text=reply.refusal)
    else:
        part = lm15.TextPart(text=reply.text if reply.text is not None else _written(request, reply.value))
    return lm15.Response(
        id="scripted",
        model=request.model,
        message=lm15.Message(role="assistant", parts=(part,)),
        finish_reason=reply.finish_reason,
        usage=lm15.Usage(input_tokens=reply.input_tokens, output_tokens=reply.output_tokens),
    )


def _raise_fault(reply: ModelReply) -> None:
    if reply.unreachable:
        raise lm15.TransportError("the script says that there is no connection")
    status = reply.status
    if status is None:
        return
    kinds: dict[int, Any] = {
        401: lm15.AuthError,
        402: lm15.BillingError,
        403: lm15.AuthError,
        408: lm15.TimeoutError,
        429: lm15.RateLimitError,
        504: lm15.TimeoutError,
    }
    kind = kinds.get(status, lm15.ServerError if status >= 500 else lm15.InvalidRequestError)
    raise kind("the script says so", status=status, retry_after=reply.retry_after_s, provider="scripted")


def _written(request: lm15.Request, value: Any) -> str:
    """`value` in the format that the prompt asks for."""
    system = request.system if isinstance(request.system, str) else ""
    plan = plan_of(system) if system else None
    value = _plain(value)
    if plan is None:
        # No adapter wrote this prompt: a bare `lm("...")` call.
        return value if isinstance(value, str) else str(value)
    names = list(plan.schemas())
    outputs = value if isinstance(value, dict) and set(value) <= set(names) else {names[-1]: value}
    return reply_of(plan, _text_of(request), outputs)


def _plain(value: Any) -> Any:
    return pydantic.TypeAdapter(Any).dump_python(value, mode="json")


def _events(request: lm15.Request, response: lm15.Response) -> Iterator[Any]:
    """The response, word by word."""
    yield lm15.StreamStartEvent(id="scripted", model=request.model)
    for part in response.message.parts:
        for word in words_of(getattr(part, "text", "")):
            yield lm15.StreamDeltaEvent(delta=lm15.TextDelta(text=word))
    yield lm15.StreamEndEvent(finish_reason=response.finish_reason, usage=response.usage)


__all__ = ["SCRIPTED_MODEL", "ModelCall", "ModelReply", "ScriptedLM"]
