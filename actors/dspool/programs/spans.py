"""Spans of what DSPy does within a traced operation: modules, adapters, tools and model calls.

Only the context of a traced operation has the callbacks (`settings`), so that all others pay nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

from dspool.telemetry import trace_names as names
from dspool.telemetry.pseudonyms import principal_hash, session_hash
from dspool.telemetry.tracing import Active, active

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_NO_SETTINGS: dict[str, Any] = {}
_MAX_CONTENT = 32_768
"""Characters kept of one captured text."""
_lm_span: ContextVar[Span | None] = ContextVar("dspool_lm_span", default=None)


def settings(callbacks: list[Any] | None = None) -> dict[str, Any]:
    """What `dspy.context` takes besides, for the operation that this code works for.

    `callbacks`: the other callbacks; None means those of the surrounding context.
    """
    trace = active()
    if trace is None:
        return _NO_SETTINGS
    return {"callbacks": [*(dspy.settings.callbacks if callbacks is None else callbacks), DSPySpans(trace)]}


def count_tokens(usage: Mapping[str, Any], cost_usd: float | None = None) -> None:
    """Put the usage that a model call reported, its details beside it, on the call's span, if it has one."""
    span = _lm_span.get()
    if span is None:
        return
    for attribute, keys in names.TOKENS.items():
        count = next((usage[key] for key in keys if type(usage.get(key)) is int), None)
        if count is not None:
            span.set_attribute(attribute, count)
    if cost_usd is not None:
        span.set_attribute(names.COST_USD, cost_usd)


class DSPySpans(BaseCallback):
    """The spans of one traced operation. DSPy calls it in the task or thread that does the work."""

    def __init__(self, trace: Active) -> None:
        self._trace = trace
        self._tracing = trace.tracing
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
            prompt = inputs.get("messages") or inputs.get("prompt")
            attributes |= {names.GEN_AI_INPUT: _text(prompt), names.PRINCIPAL: self._principal()}
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
            # Threads that DSPy starts by itself lack our context, but may have DSPy's own id of the caller.
            outer = self._open.get(ACTIVE_CALL_ID.get() or "")
            parent = self._trace.span if outer is None else outer[0]
        span = self._tracing.start(name, attributes, parent=parent, kind=kind)
        if span is None:
            return
        context_token = context.attach(trace.set_span_in_context(span))
        self._open[call_id] = span, context_token, _lm_span.set(span) if lm else None

    def _end(self, call_id: str, exception: BaseException | None) -> None:
        from opentelemetry import context

        entry = self._open.pop(call_id, None)
        if entry is None:
            return
        span, context_token, lm_token = entry
        if lm_token is not None:
            _lm_span.reset(lm_token)
        context.detach(context_token)
        self._tracing.end(span, error=exception)

    def _session(self) -> str | None:
        session = self._trace.operation.session
        return None if session is None else session_hash(session, self._tracing.pool)

    def _principal(self) -> str | None:
        principal = self._trace.operation.principal
        return None if principal is None else principal_hash(principal, self._tracing.pool)


def _text(value: Any) -> str:
    try:
        return json.dumps(value, default=str, ensure_ascii=False)[:_MAX_CONTENT]
    except BaseException:  # a value's own code: tracing must not end its operation
        return f"<{type(value).__name__} that cannot be shown>"
