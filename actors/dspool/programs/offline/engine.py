"""The embedded engine: answers without any model, deterministically, from the inputs alone.

It stands behind `dspy.LM(engine=OfflineEngine(), async_engine=AsyncOfflineEngine())`. It reads the prompt that a chat,
JSON or XML adapter wrote, answers extractive questions from the context, and fills every output field with a value of
its type. It marks each operation that it answers for as offline.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from dspy import lm15

from dspool.messages.limits import LARGE_CHARACTERS
from dspool.programs.models.operation import mark_offline
from dspool.programs.offline.prompt_plan import PromptPlan, plan_of
from dspool.programs.offline.values import PassageValues, value_for
from dspool.programs.sizes import remembered

OFFLINE_MODEL = "offline/extractive"

_USAGE = lm15.Usage()
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TOKEN = re.compile(r"\S+\s*|\s+")


class OfflineEngine:
    """The synchronous half of the engine."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        """One response, in the format that the prompt asks for."""
        mark_offline()
        return lm15.Response(
            id="offline",
            model=request.model,
            message=lm15.Message(role="assistant", parts=(lm15.TextPart(text=reply(request)),)),
            finish_reason="stop",
            usage=_USAGE,
        )

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """The same response, word by word."""
        mark_offline()
        yield lm15.StreamStartEvent(id="offline", model=request.model)
        for token in words_of(reply(request)):
            yield lm15.StreamDeltaEvent(delta=lm15.TextDelta(text=token))
        yield lm15.StreamEndEvent(finish_reason="stop", usage=_USAGE)

    def close(self) -> None:
        """Nothing to release."""


class AsyncOfflineEngine:
    """The asynchronous half. An answer takes microseconds to milliseconds; it reads long texts in a thread."""

    def __init__(self) -> None:
        self._sync = OfflineEngine()

    async def complete(self, request: lm15.Request) -> lm15.Response:
        if _is_long(request):
            return await asyncio.to_thread(self._sync.complete, request)
        return self._sync.complete(request)

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        stream = self._sync.stream(request)
        for event in await asyncio.to_thread(list, stream) if _is_long(request) else stream:
            yield event

    async def aclose(self) -> None:
        """Nothing to release."""


def _is_long(request: lm15.Request) -> bool:
    plan = plan_of(request.system) if isinstance(request.system, str) else None
    outputs = 1 if plan is None else plan.output_count
    return len(_last_user_text(request)) * outputs > LARGE_CHARACTERS


def reply(request: lm15.Request) -> str:
    """The text that answers `request`."""
    return reply_to(request.system if isinstance(request.system, str) else "", _last_user_text(request))


def reply_to(system: str, message: str) -> str:
    """The text that answers the user `message` under the system message `system`."""
    plan = plan_of(system) if system else None
    if plan is None:
        # No adapter wrote this prompt: a bare `lm("...")` call.
        return str(value_for({"type": "string"}, "answer", PassageValues({"text": message})))
    passage = PassageValues(plan.inputs_of(message))
    if plan.format == "chat" and plan.only_text is not None:
        return f"[[ ## {plan.only_text} ## ]]\n{passage.answer}\n\n[[ ## completed ## ]]"
    return _render(plan, _values_of(plan, passage, {}))


def reply_of(plan: PromptPlan, message: str, given: Mapping[str, Any]) -> str:
    """The text that has the outputs in `given`, and of this engine those that are missing there."""
    return _render(plan, _values_of(plan, PassageValues(plan.inputs_of(message)), given))


def words_of(text: str) -> list[str]:
    """`text` in the pieces in which a stream has it."""
    return _TOKEN.findall(text)


def _values_of(plan: PromptPlan, passage: PassageValues, given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: given[name] if name in given else value_for(schema, name, passage)
        for name, schema in plan.schemas().items()
    }


def _render(plan: PromptPlan, values: dict[str, Any]) -> str:
    if plan.format == "json":
        return json.dumps(values, ensure_ascii=False)
    if plan.format == "xml":
        return "\n\n".join(
            # Tags on lines of their own, as in the adapter's examples: in one token with text they hide it in a stream.
            f"<{name}>\n{_escape(value)}\n</{name}>" if isinstance(value, str) else _xml(name, value)
            for name, value in values.items()
        )
    parts = [f"[[ ## {name} ## ]]\n{_plain(value)}" for name, value in values.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _xml(tag: str, value: Any) -> str:
    if isinstance(value, list):
        return f"<{tag}>" + "".join(_xml("item", item) for item in value) + f"</{tag}>"
    if isinstance(value, dict):
        return f"<{tag}>" + "".join(_xml(name, item) for name, item in value.items()) + f"</{tag}>"
    if value is None:
        return f"<{tag} />"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"<{tag}>{_escape(text)}</{tag}>"


@remembered(256, longest=1_000)
def _escape(text: str) -> str:
    return _NOT_XML.sub("", text).replace("&", "&amp;").replace("<", "&lt;")


def _last_user_text(request: lm15.Request) -> str:
    for message in reversed(request.messages):
        if message.role == "user":
            texts = [part.text for part in message.parts if isinstance(part, lm15.TextPart)]
            return texts[0] if len(texts) == 1 else "\n".join(texts)
    return ""
