"""Values of a JSON schema, read out of the inputs of a prompt."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from dspool.programs.offline import extractive

UNKNOWN = "unknown (offline engine: nothing in the inputs answers this)"

_QUESTION_FIELDS = ("question", "query", "q", "ask", "request", "instruction", "prompt", "task")
_REASONING_FIELDS = (
    "reasoning",
    "rationale",
    "explanation",
    "thought",
    "why",
    "evidence",
    "support",
    "discussion",
)
_MAX_DEPTH = 12
_OBSERVATION = re.compile(
    r"^(?:\[\[ ## observation_\d+ ## \]\]|<observation_\d+>)\n(.*?)(?=\n\n\[\[ ## |\n</|\Z)", re.M | re.S
)


class PassageValues:
    """The inputs of one call, split into the question and the text to read."""

    def __init__(self, inputs: dict[str, str]) -> None:
        self._inputs = inputs
        self.question = ""
        field = next((name for name in _QUESTION_FIELDS if name in inputs), None)
        if field is None:
            field = next((name for name, value in inputs.items() if value.rstrip().endswith("?")), None)
        if field is not None:
            self.question = inputs[field][: extractive.MAX_QUESTION]
        self._question_field = field

    @cached_property
    def text(self) -> str:
        """What to read: all inputs but the question; of a lone question, all but its last sentence."""
        others = [
            _observations(value) if name == "trajectory" else _plain_text(value)
            for name, value in self._inputs.items()
            if name != self._question_field
        ]
        if others:
            return "\n".join(others)
        *before, _ = extractive.sentences_of(self.question) or [""]
        return " ".join(before)

    @cached_property
    def answer(self) -> str:
        """The short answer, never empty."""
        alone = len(self._inputs) == 1 and self._question_field is not None
        if alone and "\n" not in self.question and ". " not in self.question:
            # One sentence and nothing else to read: the cheapest call there is.
            return UNKNOWN
        if not self.text.strip():
            return UNKNOWN
        if not self.question:
            return extractive.sentences_of(self.text)[0]
        return extractive.short_answer(self.question, self.text) or UNKNOWN

    @cached_property
    def evidence(self) -> str:
        """The sentence that holds the answer; empty when there is nothing to read."""
        if not self.text.strip():
            return ""
        return extractive.best_passage(self.question or self.text[:200], self.text).sentence

    def sentence_about(self, field: str) -> str:
        """What the text says about `field` (a name such as `birth_year`)."""
        words = field.replace("_", " ")
        passage = extractive.best_passage(f"{self.question} {words}", self.text)
        return passage.sentence or self.evidence


def value_for(schema: Any, name: str, passage: PassageValues, *, root: Any = None, depth: int = 0) -> Any:
    """A value of `schema` for the field `name`: from the inputs where they have one, else a default that says so."""
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return passage.answer
    root = root if root is not None else schema
    if "$ref" in schema:
        target = root.get("$defs", {}).get(schema["$ref"].rsplit("/", 1)[-1], {})
        return value_for(target, name, passage, root=root, depth=depth + 1)
    if "const" in schema:
        return schema["const"]
    if options := schema.get("enum"):
        return _choice(options, name, passage)
    if choices := schema.get("anyOf"):
        return _first_of(choices, name, passage, root, depth)
    kind = schema.get("type", "string")
    if kind == "string":
        return _string(name, passage)
    if kind in ("integer", "number"):
        numbers = _numbers(name, passage)
        number = numbers[0] if numbers else 0.0
        return int(number) if kind == "integer" else number
    if kind == "boolean":
        return extractive.says_yes(passage.question or name.replace("_", " "), passage.text)
    if kind == "array":
        return _items(schema.get("items", {}), name, passage, root, depth)
    if kind == "object":
        return _members(schema, name, passage, root, depth)
    return None


def _first_of(choices: list[Any], name: str, passage: PassageValues, root: Any, depth: int) -> Any:
    if {"type": "null"} in choices and not passage.text.strip():
        return None
    real = [choice for choice in choices if choice != {"type": "null"}]
    return value_for(real[0], name, passage, root=root, depth=depth + 1) if real else None


def _choice(options: list[Any], name: str, passage: PassageValues) -> Any:
    if name == "next_tool_name" and "finish" in options:
        # An agent without a model has no reason to call tools: it reads its inputs.
        return "finish"
    labels = [str(option) for option in options]
    text = f"{passage.sentence_about(name)} {passage.answer}" if passage.question else passage.text
    return options[extractive.closest(labels, text)]


def _string(name: str, passage: PassageValues) -> str:
    if name in _REASONING_FIELDS:
        evidence = passage.evidence
        return f"The text says: {evidence}" if evidence else "There is no text to read."
    if name in ("answer", "response", "output", "result", "text", "summary") or not passage.text.strip():
        return passage.answer
    return (
        extractive.span(f"{passage.question} {name.replace('_', ' ')}", passage.sentence_about(name))
        or passage.answer
    )


def _numbers(name: str, passage: PassageValues) -> list[float]:
    return extractive.numbers(passage.sentence_about(name)) or extractive.numbers(passage.text)


def _items(items: Any, name: str, passage: PassageValues, root: Any, depth: int) -> list[Any]:
    kind = items.get("type", "") if isinstance(items, dict) else ""
    if kind == "string" and "enum" not in items:
        return (extractive.names(passage.text) or [passage.answer])[:10] if passage.text.strip() else []
    if kind in ("integer", "number"):
        return [int(n) if kind == "integer" else n for n in extractive.numbers(passage.text)[:10]]
    # No items deep down, where a recursive type would never end.
    return [] if depth > 4 else [value_for(items, name, passage, root=root, depth=depth + 1)]


def _members(
    schema: dict[str, Any], name: str, passage: PassageValues, root: Any, depth: int
) -> dict[str, Any]:
    return {
        key: value_for(member, key, passage, root=root, depth=depth + 1)
        for key, member in schema.get("properties", {}).items()
    }


def _observations(trajectory: str) -> str:
    """What an agent's tools answered, without its own thoughts and the names of the steps."""
    return "\n".join(
        text for text in map(str.strip, _OBSERVATION.findall(trajectory)) if text != "Completed."
    )


def _plain_text(value: str) -> str:
    """The texts inside a JSON list or object; anything else as it is."""
    if value[:1] not in "[{" or len(value) > extractive.MAX_TEXT:
        return value
    try:
        data = json.loads(value)
    except (ValueError, RecursionError):
        return value
    pending, texts = [data], []
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += [
                f"{key}: {inner}" if isinstance(inner, (str, int, float)) else inner
                for key, inner in reversed(item.items())
            ]
        elif isinstance(item, list):
            pending += reversed(item)
        elif item is not None:
            texts.append(str(item))
    return "\n".join(texts)
