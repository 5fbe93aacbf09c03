"""How a model's answer ended: what it refused or a filter stopped is an error, a cut answer one that is marked.

DSPy takes any of them for text: a refusal then "does not fit the signature" and costs a second call, and a cut answer
looks whole. A cut one that still fits the signature is an answer (`OperationScope.truncated`); one that does not is
`NoAnswer`, and nobody asks again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

from dspy.adapters.base import Adapter
from dspy.clients import execution
from dspy.clients.legacy_outputs import value
from dspy.lm15 import OpenAIChatLM, RefusalPart, TextPart
from dspy.utils import exceptions as lm_errors

from dspool.programs.models.operation import current

Reason = Literal["refused", "filtered", "truncated"]
_MAX_REFUSAL = 2_000
"""Characters kept of a model's reason."""

_cut: ContextVar[lm_errors.LMError | None] = ContextVar("dspool_cut_answer", default=None)
"""What to raise if the answer that came last cannot be read; None: it was whole."""
_streamed_refusal: ContextVar[str] = ContextVar("dspool_streamed_refusal", default="")
"""DSPy's reader of streams drops the text of a refusal."""


class NoAnswer(lm_errors.LMError):
    """The model gave no answer, or not all of one. Its message holds none of the model's words; `refusal` does."""

    default_code = "no_answer"

    def __init__(self, message: str, *, reason: Reason, refusal: str = "", **details: Any) -> None:
        super().__init__(message, **details)
        self.reason: Reason = reason
        self.refusal = refusal


class _Ending(NamedTuple):
    reason: Reason
    refusal: str = ""
    is_empty: bool = False


def checking(finalize: Any) -> Any:
    """`finalize`, which ends each call of a model; then the answer is looked at. Tokens are counted by then."""

    @functools.wraps(finalize)
    def checked(lm: Any, call: Any, result: Any) -> Any:
        outputs = finalize(lm, call, result)
        if _cut.get() is not None:
            _cut.set(None)
        if result.cache_hit and (scope := current()) is not None:
            scope.hits += 1
        if len(result.responses) == 1 and _is_plain(result.responses[0]):
            return outputs
        for ending in _endings(result):
            if ending.reason == "truncated" and (scope := current()) is not None:
                scope.truncated = True
            error = NoAnswer(
                f"the answer is none: {ending.reason}",
                reason=ending.reason,
                refusal=ending.refusal[:_MAX_REFUSAL],
                model=lm.model,
            )
            if ending.reason != "truncated" or ending.is_empty:
                raise error
            _cut.set(error)
        return outputs

    return checked


def telling_cut_answers(postprocess: Any) -> Any:
    """`Adapter._call_postprocess`; a cut answer that cannot be read is `NoAnswer`, not one to ask again for."""

    @functools.wraps(postprocess)
    def read(*args: Any, **kwargs: Any) -> Any:
        try:
            return postprocess(*args, **kwargs)
        except lm_errors.AdapterParseError as unreadable:
            if (cut := _cut.get()) is not None:
                raise cut from unreadable
            raise

    return read


def keeping_refusals(parse_stream_events: Any) -> Any:
    """lm15's reader of streamed chunks; it also keeps what a refusal says."""

    @functools.wraps(parse_stream_events)
    def parse(self: Any, request: Any, raw_event: Any) -> Iterator[Any]:
        if '"refusal"' in (raw_event.data or ""):
            _keep_refusal(raw_event.data)
        yield from parse_stream_events(self, request, raw_event)

    return parse


def _keep_refusal(data: str) -> None:
    chunk = json.loads(data)
    for choice in (chunk.get("choices") or ()) if isinstance(chunk, dict) else ():
        text = (choice.get("delta") or {}).get("refusal")
        if isinstance(text, str):
            _streamed_refusal.set((_streamed_refusal.get() + text)[:_MAX_REFUSAL])


def _is_plain(response: Any) -> bool:
    """Whether it is one text that ended by itself, as nearly all are."""
    if response.finish_reason != "stop":
        return False
    parts = response.message.parts
    return len(parts) == 1 and type(parts[0]) is TextPart and bool(parts[0].text)


def _endings(result: Any) -> Iterator[_Ending]:
    """What is odd about the ends of a call's answers."""
    if streamed := _streamed_refusal.get():
        _streamed_refusal.set("")
        yield _Ending("refused", streamed)
    for response in result.responses:
        parts = response.message.parts
        refusal = next((part.text for part in parts if isinstance(part, RefusalPart)), None)
        if refusal is not None:
            yield _Ending("refused", refusal)
        elif response.finish_reason == "content_filter":
            yield _filtered(response.provider_data)
        elif response.finish_reason == "length":
            texts = [part for part in parts if isinstance(part, TextPart) and part.text]
            yield _Ending("truncated", is_empty=not texts and not response.tool_calls)
    if not result.responses:
        yield from _legacy_endings(result.raw)


def _filtered(data: Any) -> _Ending:
    """Anthropic's models refuse by a reason to stop, which lm15 takes for a filter's."""
    data = data if isinstance(data, dict) else {}
    delta = data.get("delta")
    told = {**data, **(delta if isinstance(delta, dict) else {})}
    if told.get("stop_reason") != "refusal":
        return _Ending("filtered")
    details = told.get("stop_details")
    words = details.get("explanation") if isinstance(details, dict) else None
    return _Ending("refused", words if isinstance(words, str) else "")


def _legacy_endings(raw: Any) -> Iterator[_Ending]:
    """Of an answer that came through litellm."""
    for choice in value(raw, "choices", None) or ():
        message = value(choice, "message")
        more = value(message, "provider_specific_fields") or {}
        refusal = value(message, "refusal") or value(more, "refusal")
        reason = value(choice, "finish_reason")
        if isinstance(refusal, str):
            yield _Ending("refused", refusal)
        elif reason in ("content_filter", "refusal"):
            yield _Ending("refused" if reason == "refusal" else "filtered")
        elif reason == "length":
            has_text = bool(value(message, "content") or value(choice, "text"))
            yield _Ending("truncated", is_empty=not has_text and not value(message, "tool_calls"))


for owner, name, wrap in (
    (execution, "finalize", checking),
    (Adapter, "_call_postprocess", telling_cut_answers),
    (OpenAIChatLM, "parse_stream_events", keeping_refusals),
):
    if not hasattr(getattr(owner, name), "_dspool"):
        setattr(owner, name, wrap(getattr(owner, name)))
        getattr(owner, name)._dspool = True
