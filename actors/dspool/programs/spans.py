"""Spans of what DSPy does within a traced operation: modules, adapters, tools and model calls.

DSPy tells its callbacks only in the context of such an operation (`settings`), so that all others pay nothing.
"""

from __future__ import annotations

import json
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

from dspool.telemetry import trace_names as names
from dspool.telemetry.events import principal_hash, session_hash
from dspool.telemetry.tracing import Active, active

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_NOTHING: dict[str, Any] = {}
_MAX_CONTENT = 32_768
"""Characters kept of one captured text."""
_calling: ContextVar[Span | None] = ContextVar("dspool_lm_span", default=None)


def settings(callbacks: list[Any] | None = None) -> dict[str, Any]:
    """What `dspy.context` takes in addition, for the operation that this code works for.

    `callbacks`: what it would be told besides; None are those of the context around.
    """
    traced = active()
    if traced is None:
        return _NOTHING
    return {"callbacks": [*(dspy.settings.callbacks if callbacks is None else callbacks), DSPySpans(traced)]}


def count_tokens(usage: dict[str, Any]) -> None:
    """A model call reported its usage: put it on the call's span, if it has one."""
    span = _calling.get()
    if span is None:
        return
    for attribute, keys in names.TOKENS.items():
        count = next((usage[key] for key in keys if type(usage.get(key)) is int), None)
        if count is not None:
            span.set_attribute(attribute, count)


class DSPySpans(BaseCallback):
    """The spans of one traced operation. DSPy calls it in whatever task or thread the work is done."""

    def __init__(self, traced: Active) -> None:
        self._traced = traced
        self._tracing = traced.tracing
        self._open: dict[str, tuple[Span, Any, Any]] = {}

    # --- modules, adapters, tools ---

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        kind = type(instance).__name__
        self._start(call_id, names.MODULE.format(kind=kind), {names.MODULE_CLASS: kind})

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self._end(call_id, exception)

    def on_adapter_format_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        kind = type(instance).__name__
        self._start(call_id, names.FORMAT.format(kind=kind), {names.ADAPTER_CLASS: kind})

    def on_adapter_format_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        self._end(call_id, exception)

    def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        kind = type(instance).__name__
        self._start(call_id, names.PARSE.format(kind=kind), {names.ADAPTER_CLASS: kind})

    def on_adapter_parse_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        self._end(call_id, exception)

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        tool = str(getattr(instance, "name", None) or type(instance).__name__)
        attributes: dict[str, Any] = {names.GEN_AI_OPERATION: names.EXECUTE_TOOL, names.GEN_AI_TOOL: tool}
        if self._tracing.capture_content:
            attributes |= {names.TOOL_ARGUMENTS: _text(inputs), names.PRINCIPAL: self._principal()}
        self._start(call_id, names.TOOL.format(tool=tool), attributes)

    def on_tool_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        if self._tracing.capture_content and call_id in self._open and exception is None:
            self._open[call_id][0].set_attribute(names.TOOL_RESULT, _text(outputs))
        self._end(call_id, exception)

    # --- model calls ---

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        provider, slash, model = str(instance.model).partition("/")
        if not slash:
            provider, model = "unknown", provider
        settings = {**getattr(instance, "kwargs", {}), **(inputs.get("kwargs") or {})}
        session = self._session()
        attributes = {
            names.GEN_AI_OPERATION: names.CHAT,
            names.GEN_AI_PROVIDER: provider,
            names.GEN_AI_MODEL: model,
            names.GEN_AI_TEMPERATURE: settings.get("temperature"),
            names.GEN_AI_MAX_TOKENS: settings.get("max_tokens"),
            names.GEN_AI_CONVERSATION: session,
            names.SESSION: session,
        }
        if self._tracing.capture_content:
            asked = inputs.get("messages") or inputs.get("prompt")
            attributes |= {names.GEN_AI_INPUT: _text(asked), names.PRINCIPAL: self._principal()}
        self._start(call_id, names.LM.format(model=model), attributes, kind="CLIENT", lm=True)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        if self._tracing.capture_content and call_id in self._open and exception is None:
            self._open[call_id][0].set_attribute(names.GEN_AI_OUTPUT, _text(outputs))
        self._end(call_id, exception)

    # --- within ---

    def _start(
        self, call_id: str, name: str, attributes: dict[str, Any], *, kind: str = "INTERNAL", lm: bool = False
    ) -> None:
        from opentelemetry import context, trace

        parent = trace.get_current_span()
        if not parent.get_span_context().is_valid:
            # In threads that DSPy starts by itself no context came along, but DSPy's own idea of the caller may have.
            outer = self._open.get(ACTIVE_CALL_ID.get() or "")
            parent = self._traced.span if outer is None else outer[0]
        span = self._tracing.start(name, attributes, parent=parent, kind=kind)
        if span is None:
            return
        theirs = context.attach(trace.set_span_in_context(span))
        self._open[call_id] = span, theirs, _calling.set(span) if lm else None

    def _end(self, call_id: str, exception: BaseException | None) -> None:
        from opentelemetry import context

        known = self._open.pop(call_id, None)
        if known is None:
            return
        span, theirs, calling = known
        if calling is not None:
            _calling.reset(calling)
        context.detach(theirs)
        self._tracing.end(span, error=exception)

    def _session(self) -> str | None:
        session = self._traced.operation.session
        return None if session is None else session_hash(session)

    def _principal(self) -> str | None:
        principal = self._traced.operation.principal
        return None if principal is None else principal_hash(principal)


def _text(value: Any) -> str:
    try:
        return json.dumps(value, default=str, ensure_ascii=False)[:_MAX_CONTENT]
    except BaseException:  # a value's own code; to be traced must not end its operation
        return f"<{type(value).__name__} that cannot be shown>"
