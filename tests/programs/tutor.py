"""What the model of the tutorials answers: agents and code by rule, all else as the offline engine reads it."""

from __future__ import annotations

from typing import Any

from dspool.programs.offline.engine import reply_to
from dspool.testing import ModelReply
from dspool.testing.lm_server import LMServer

KEY = "sk-the-tutorials-own-key"


def _chat(**fields: str) -> str:
    parts = [f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def _step(thought: str, tool: str, arguments: str) -> str:
    return _chat(next_thought=thought, next_tool_name=tool, next_tool_args=arguments)


_FLIGHT = (
    _step("look", "fetch_flight_info", '{"origin": "SFO", "destination": "JFK"}'),
    _step("book", "book_flight", '{"flight_id": "DA123"}'),
    _step("done", "finish", "{}"),
)
_MEMORY = (
    _step("keep it", "store_memory", '{"content": "likes tea"}'),
    _step("look", "search_memories", '{"query": "likes"}'),
    _step("done", "finish", "{}"),
)


def answer(request: dict[str, Any]) -> str | None:
    """What the model says to the body of a request."""
    system, asked = (_text(request["messages"][n]) for n in (0, -1))
    if "`caption`" in system:
        parts = [part for part in request["messages"][-1]["content"] if isinstance(part, dict)]
        return _chat(caption=" ".join(str(part.get("type")) for part in parts))
    return _by_rule(system, asked)


def answered(system: str, asked: str) -> ModelReply:
    """The same as a script of a local pool."""
    return ModelReply(text=_by_rule(system, asked) or reply_to(system, asked))


def _by_rule(system: str, asked: str) -> str | None:
    if "`next_tool_name`" in system or "next_tool_name" in asked:
        steps = _FLIGHT if "airline" in system else _MEMORY
        return steps[min(asked.count("observation_"), len(steps) - 1)]
    if "`process_result`" in system:
        return _chat(
            reasoning="it is booked", process_result="Booked, abc123" if "abc123" in asked else "Nothing"
        )
    if "trajectory" in system and "`response`" in system:
        return _chat(reasoning="it remembers", response="Tea" if "likes tea" in asked else "Nothing")
    if "`generated_code`" in system and "final_generated_code" not in system:
        return _chat(reasoning="multiply", generated_code="SUBMIT({'answer': 6 * 7})")
    if "final_generated_code" in system:
        return _chat(reasoning="it printed 42", answer="42" if "42" in asked else "0")
    if "`is_factual`" in system:
        return _chat(reasoning="known", is_factual="True")
    return None


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content)


def server(port: int = 0) -> LMServer:
    return LMServer(port=port, answer=answer, api_key=KEY)
