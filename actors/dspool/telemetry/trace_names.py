"""Every name in a span: the one table to change when conventions move.

Names follow OpenTelemetry where it has a convention (general, GenAI, HTTP); the others begin with `dspool.`.
"""

from __future__ import annotations

from typing import Final

# --- names of spans ---
OPERATION: Final = "operation {command}"
"""Submission to end, at the client; all other spans are below it."""
QUEUE: Final = "queue"
"""Submission until the operation left for the worker that took it, or until it ended without one."""
WORK: Final = "worker {command}"
"""One worker's part, from admission to report; a retried operation has several."""
COMMIT: Final = "commit"
"""The session store made the operation's changes durable."""
MODULE: Final = "module {kind}"
LM: Final = "chat {model}"
TOOL: Final = "execute_tool {tool}"
FORMAT: Final = "adapter {kind}.format"
PARSE: Final = "adapter {kind}.parse"
REQUEST: Final = "{method} {route}"

# --- GenAI conventions ---
GEN_AI_OPERATION: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER: Final = "gen_ai.provider.name"
GEN_AI_MODEL: Final = "gen_ai.request.model"
GEN_AI_TEMPERATURE: Final = "gen_ai.request.temperature"
GEN_AI_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
GEN_AI_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_CACHE_CREATION: Final = "gen_ai.usage.cache_creation.input_tokens"
GEN_AI_REASONING: Final = "gen_ai.usage.reasoning.output_tokens"
GEN_AI_CONVERSATION: Final = "gen_ai.conversation.id"
"""The session's hash: an id may name a person."""
GEN_AI_TOOL: Final = "gen_ai.tool.name"
CHAT: Final = "chat"
EXECUTE_TOOL: Final = "execute_tool"

# --- content: only with `telemetry.capture_content` ---
GEN_AI_INPUT: Final = "gen_ai.input.messages"
GEN_AI_OUTPUT: Final = "gen_ai.output.messages"
TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_RESULT: Final = "gen_ai.tool.call.result"
CONTENT: Final = frozenset({GEN_AI_INPUT, GEN_AI_OUTPUT, TOOL_ARGUMENTS, TOOL_RESULT})
PRINCIPAL: Final = "dspool.principal.hash"
"""The principal whose content the span holds: all but admins see only their own."""

# --- general ---
ERROR_TYPE: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"

# --- ours ---
POOL: Final = "dspool.pool"
WORKER: Final = "dspool.worker"
CALLER_TRACE: Final = "dspool.caller.trace_id"
"""The trace that a caller named, where the operation is in one of its own."""
OPERATION_ID: Final = "dspool.operation.id"
COMMAND: Final = "dspool.command"
PROGRAM: Final = "dspool.program"
SESSION: Final = "dspool.session.hash"
OUTCOME: Final = "dspool.outcome"
EXCEPTION: Final = "dspool.exception"
"""The type that the author's code raised; never its text."""
AT: Final = "dspool.at"
"""The author's line that raised it."""
ATTEMPTS: Final = "dspool.attempts"
TRIED: Final = "dspool.workers"
"""The worker of each attempt, in order, with commas between; only where there was more than one."""
WAIT_S: Final = "dspool.wait_s"
RUN_S: Final = "dspool.run_s"
OFFLINE: Final = "dspool.offline"
MODULE_CLASS: Final = "dspool.module"
ADAPTER_CLASS: Final = "dspool.adapter"
COST_USD: Final = "dspool.cost_usd"
"""What one call of a model cost, by `prices`."""

TOKENS: Final = {
    GEN_AI_INPUT_TOKENS: ("prompt_tokens", "input_tokens"),
    GEN_AI_OUTPUT_TOKENS: ("completion_tokens", "output_tokens"),
    GEN_AI_CACHE_READ: ("cached_tokens",),
    GEN_AI_CACHE_CREATION: ("cache_creation_tokens",),
    GEN_AI_REASONING: ("reasoning_tokens",),
}
"""The keys of a back end's usage that give each attribute; the first present one counts."""

OURS: Final = (
    frozenset(value for key, value in tuple(vars().items()) if key.isupper() and isinstance(value, str))
    - CONTENT
    - {PRINCIPAL}
)
"""Every attribute above without content. What a program itself adds to a span may hold anything."""
