"""From DSPy's stream of LM chunks to `StreamEvent`s: tokens by output field, tool calls as status."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread
import dspy
import jiter
from dspy.streaming import StreamListener
from dspy.utils.callback import BaseCallback

from dspool.messages import JSON, StreamEvent
from dspool.messages.plain import plain_text
from dspool.programs.program import FieldStream, Program

Emit = Callable[[StreamEvent], Awaitable[None]]


async def stream_call(
    program: Program, emit: Emit, call: Callable[[], Awaitable[dict[str, JSON]]]
) -> dict[str, JSON]:
    """Await `call`, which runs `program` on this loop, and send its events on the way."""
    channel = TokenChannel(program.streams(), emit, json=program.is_json)
    status = EventSender(emit)
    try:
        with dspy.context(**_settings(program, channel, status.send)):
            outputs = await call()
            await status.settle()
            await channel.finish(outputs)
    except BaseException:
        status.drop()
        raise
    return outputs


def stream_in_thread(
    program: Program, emit: Callable[[StreamEvent], None], call: Callable[..., dict[str, JSON]]
) -> dict[str, JSON]:
    """The same for a blocking `call`, which takes the settings to run with. Other threads call `emit`."""

    async def forward(event: StreamEvent) -> None:
        emit(event)

    async def main() -> dict[str, JSON]:
        # DSPy sends the chunks of a blocking call through the event loop that started its thread.
        channel = TokenChannel(program.streams(), forward, json=program.is_json)
        settings = _settings(program, channel, emit)
        outputs = await anyio.to_thread.run_sync(lambda: call(**settings))
        with dspy.context(adapter=program.adapter):
            await channel.finish(outputs)
        return outputs

    return anyio.run(main)


def _settings(program: Program, channel: TokenChannel, send: Callable[[StreamEvent], None]) -> dict[str, Any]:
    callbacks = program.settings.get("callbacks", dspy.settings.callbacks)
    return {
        "send_stream": channel,
        "stream_listeners": channel.listeners,
        "callbacks": [*callbacks, ToolStatus(send)],
    }


class TokenChannel:
    """The channel of one request: DSPy's `send_stream`. Single-use, as DSPy's listeners are."""

    def __init__(self, streams: list[FieldStream], emit: Emit, *, json: bool = False) -> None:
        self._emit = emit
        self._by_predictor: dict[int, list[Any]] = {}
        self._json: dict[int, _JSONFields] = {}
        self.listeners = []
        for field, predictor, name in streams:
            # An agent calls the same predictor more than once.
            listener = StreamListener(field, predict=predictor, predict_name=name, allow_reuse=True)
            self.listeners.append(listener)
            self._by_predictor.setdefault(id(predictor), []).append(listener)
            if json:
                self._json.setdefault(id(predictor), _JSONFields()).fields.add(field)

    async def send(self, chunk: Any) -> None:
        """DSPy calls this with each chunk of an LM's answer."""
        predictor = getattr(chunk, "predict_id", None) or 0
        if (fields := self._json.get(predictor)) is not None:
            for field, text in fields.receive(chunk):
                await self._emit(StreamEvent(kind="token", field=field, value=plain_text(text)))
            return
        for listener in self._by_predictor.get(predictor, ()):
            if _reads(listener, dspy.settings.adapter) and (token := listener.receive(chunk)):
                await self._token(token)

    async def finish(self, outputs: dict[str, JSON]) -> None:
        """Send what the listeners still hold, then each output as a whole."""
        if not self._json:
            for listener in self.listeners:
                if _reads(listener, dspy.settings.adapter) and (token := listener.finalize()):
                    await self._token(token)
        for name, value in outputs.items():
            await self._emit(StreamEvent(kind="field", field=name, value=value))

    async def _token(self, token: Any) -> None:
        if token.chunk:
            text = plain_text(token.chunk)
            await self._emit(StreamEvent(kind="token", field=token.signature_field_name, value=text))


def _reads(listener: StreamListener, adapter: Any) -> bool:
    """Whether the listener can tell the fields in an answer that is written for `adapter`.

    It knows DSPy's adapters by the names of their classes; one that extends them writes as they do.
    """
    known, kinds = listener.adapter_identifiers, type(adapter).__mro__
    name = next((kind.__name__ for kind in kinds if kind.__name__ in known), None)
    if name is not None:
        known.setdefault(kinds[0].__name__, known[name])
    return name is not None


class _JSONFields:
    """New text of the string fields of a JSON object as it grows.

    It replaces DSPy's listener, which lets the keys that follow a field slip into its last token.
    """

    def __init__(self) -> None:
        self.fields: set[str] = set()
        self._text = ""
        self._lengths: dict[str, int] = {}

    def receive(self, chunk: Any) -> list[tuple[str, str]]:
        choice = chunk.choices[0]
        self._text += choice.delta.content or ""
        start = self._text.find("{")
        new = []
        if start >= 0:
            try:
                partial = jiter.from_json(self._text[start:].encode(), partial_mode="trailing-strings")
            except ValueError:
                # Cut in the middle of an escape or key, or followed by other text: the next chunk may complete it.
                partial = {}
            for field, value in partial.items() if isinstance(partial, dict) else ():
                length = self._lengths.get(field, 0)
                if field in self.fields and isinstance(value, str) and len(value) > length:
                    new.append((field, value[length:]))
                    self._lengths[field] = len(value)
        if choice.finish_reason is not None:
            self._text, self._lengths = "", {}
        return new


class ToolStatus(BaseCallback):
    """Reports which tool an agent calls, never with which arguments."""

    def __init__(self, send: Callable[[StreamEvent], None]) -> None:
        self._send = send

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if instance.name != "finish":
            self._send(StreamEvent(kind="status", value=plain_text(f"calling {instance.name}")))

    def on_tool_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        if exception is not None:
            self._send(StreamEvent(kind="status", value=f"a tool failed: {type(exception).__name__}"))


class EventSender:
    """Sends events from synchronous callbacks on the loop; `settle()` before the stream ends."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._tasks: list[asyncio.Future[None]] = []

    def send(self, event: StreamEvent) -> None:
        self._tasks.append(asyncio.ensure_future(self._emit(event)))

    async def settle(self) -> None:
        await asyncio.gather(*self._tasks)

    def drop(self) -> None:
        """Cancel what is on its way: nobody listens any more."""
        for task in self._tasks:
            task.cancel()
