"""The programs of the tutorials: what to ask each, and what holds of its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Case(NamedTuple):
    path: str
    inputs: dict[str, Any]
    holds: Callable[[dict[str, Any]], bool]
    streams: str
    """An output whose tokens arrive one by one; empty: it has none that is text of a model."""


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
EMAIL = "Order 4711 was shipped on 2026-01-02. Please pay by Friday."

CASES = {
    "retrieval": Case(
        "retrieval:RAG",
        {"question": "What is the capital of France?"},
        lambda found: "Paris" in found["response"],
        "response",
    ),
    "multi_hop": Case(
        "multi_hop:Hop",
        {"claim": "Ada Lovelace wrote a program."},
        lambda found: isinstance(found["notes"], list) and isinstance(found["titles"], list),
        "query",
    ),
    "airline": Case(
        "airline:agent",
        {"user_request": "Book me a flight from SFO to JFK."},
        lambda found: found["process_result"] == "Booked, abc123" and "DA123" in str(found["trajectory"]),
        "process_result",
    ),
    "classification": Case(
        "classification:classify",
        {"text": "I lost my card, what now?"},
        lambda found: found["label"] in ("card_arrival", "lost_card", "exchange_rate"),
        "reasoning",
    ),
    "extraction": Case(
        "extraction:EmailProcessor",
        {"email_subject": "Your order", "email_body": EMAIL},
        lambda found: (
            found["email_type"] in ("order_confirmation", "support_request")
            and all(set(entity) == {"entity_type", "value"} for entity in found["key_entities"])
        ),
        "reasoning",
    ),
    "papillon": Case(
        "papillon:papillon",
        {"user_query": "Paris is big. What is big?"},
        lambda found: all(found[name] for name in ("llm_request", "llm_response", "response")),
        "response",
    ),
    "refinement": Case(
        "refinement:Refined",
        {"question": "Rome is big. What is big?"},
        lambda found: found["best"] and found["refined"],
        # DSPy runs copies of the module, which a listener does not know.
        "",
    ),
    "conversation": Case(
        "conversation:predict",
        {
            "question": "Rome is big. What is big?",
            "history": {"messages": [{"question": "Is Paris big?", "answer": "Yes, Paris is."}]},
        },
        lambda found: bool(found["answer"]),
        "answer",
    ),
    "captions": Case(
        "captions:Caption",
        {"image": PIXEL},
        lambda found: "image_url" in found["caption"],
        "caption",
    ),
    "later": Case(
        "later:Summaries",
        {"text": "Rome was not built in a day."},
        lambda found: found["title"] and found["summary"] and found["verdict"],
        "summary",
    ),
    "arithmetic": Case(
        "arithmetic:solve",
        {"question": "What is six times seven?"},
        lambda found: found["answer"] == 42,
        "reasoning",
    ),
    "memory": Case(
        "memory:MemoryReActAgent",
        {"user_input": "I like tea. What do I like?"},
        lambda found: found["response"] == "Tea",
        "response",
    ),
}
