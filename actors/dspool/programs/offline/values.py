"""Values of a given JSON schema, read out of the inputs of a prompt."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from dspool.programs.offline import extractive

UNKNOWN = "unknown (offline engine: nothing in the inputs answers this)"

_ASKING = ("question", "query", "q", "ask", "request", "instruction", "prompt", "task")
_REASONING = ("reasoning", "rationale", "explanation", "thought", "why", "evidence", "support", "discussion")
_MAX_DEPTH = 12
_OBSERVATION = re.compile(
    r"^(?:\[\[ ## observation_\d+ ## \]\]|<observation_\d+>)\n(.*?)(?=\n\n\[\[ ## |\n</|\Z)", re.M | re.S
)


class PassageValues:
    """The inputs of one call, told apart into the question and the text to read."""

    def __init__(self, inputs: dict[str, str]) -> None:
        self._inputs = inputs
        self.question = ""
        asking = next((name for name in _ASKING if name in inputs), None)
        if asking is None:
            asking = next((name for name, value in inputs.items() if value.rstrip().endswith("?")), None)
        if asking is not None:
            self.question = inputs[asking]
        self._asking = asking

    @cached_property
    def text(self) -> str:
        """What to read: all inputs but the question; of a lone question, what stands before it."""
        others = [
            _observed(value) if name == "trajectory" else _unquoted(value)
            for name, value in self._inputs.items()
            if name != self._asking
        ]
        if others:
            return "\n".join(others)
        *before, _ = extractive.sentences_of(self.question) or [""]
        return " ".join(before)

    @cached_property
    def answer(self) -> str:
        """The short answer, never empty."""
        alone = len(self._inputs) == 1 and self._asking is not None
        if alone and "\n" not in self.question and ". " not in self.question:
            # One sentence and nothing else to read: found out here at once, it is the cheapest call there is.
            return UNKNOWN
        if not self.text.strip():
            return UNKNOWN
        if not self.question:
            return extractive.sentences_of(self.text)[0]
        return extractive.short_answer(self.question, self.text) or UNKNOWN

    @cached_property
    def evidence(self) -> str:
        """The sentence the answer was taken from; empty when there is nothing to read."""
        if not self.text.strip():
            return ""
        return extractive.best_passage(self.question or self.text[:200], self.text).sentence

    def about(self, field: str) -> str:
        """What the text says about `field` (a name such as `birth_year`)."""
        asked = field.replace("_", " ")
        passage = extractive.best_passage(f"{self.question} {asked}", self.text)
        return passage.sentence or self.evidence


def value_for(schema: Any, name: str, reading: PassageValues, *, root: Any = None, depth: int = 0) -> Any:
    """A value of `schema` for the field `name`: read from the inputs where they have one, else an honest default."""
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return reading.answer
    root = root if root is not None else schema
    if "$ref" in schema:
        target = root.get("$defs", {}).get(schema["$ref"].rsplit("/", 1)[-1], {})
        return value_for(target, name, reading, root=root, depth=depth + 1)
    if "const" in schema:
        return schema["const"]
    if options := schema.get("enum"):
        return _choice(options, name, reading)
    if choices := schema.get("anyOf"):
        return _first_of(choices, name, reading, root, depth)
    kind = schema.get("type", "string")
    if kind == "string":
        return _string(name, reading)
    if kind in ("integer", "number"):
        found = _numbers(name, reading)
        number = found[0] if found else 0.0
        return int(number) if kind == "integer" else number
    if kind == "boolean":
        return extractive.says_yes(reading.question or name.replace("_", " "), reading.text)
    if kind == "array":
        return _items(schema.get("items", {}), name, reading, root, depth)
    if kind == "object":
        return _members(schema, name, reading, root, depth)
    return None


def _first_of(choices: list[Any], name: str, reading: PassageValues, root: Any, depth: int) -> Any:
    if {"type": "null"} in choices and not reading.text.strip():
        return None
    real = [choice for choice in choices if choice != {"type": "null"}]
    return value_for(real[0], name, reading, root=root, depth=depth + 1) if real else None


def _choice(options: list[Any], name: str, reading: PassageValues) -> Any:
    if name == "next_tool_name" and "finish" in options:
        # An agent without a model has no reason to call tools: it reads what it was given.
        return "finish"
    labels = [str(option) for option in options]
    source = f"{reading.about(name)} {reading.answer}" if reading.question else reading.text
    return options[extractive.closest(labels, source)]


def _string(name: str, reading: PassageValues) -> str:
    if name in _REASONING:
        evidence = reading.evidence
        return f"The text says: {evidence}" if evidence else "There is no text to read."
    if name in ("answer", "response", "output", "result", "text", "summary") or not reading.text.strip():
        return reading.answer
    return (
        extractive.span(f"{reading.question} {name.replace('_', ' ')}", reading.about(name)) or reading.answer
    )


def _numbers(name: str, reading: PassageValues) -> list[float]:
    return extractive.numbers(reading.about(name)) or extractive.numbers(reading.text)


def _items(items: Any, name: str, reading: PassageValues, root: Any, depth: int) -> list[Any]:
    kind = items.get("type", "") if isinstance(items, dict) else ""
    if kind == "string" and "enum" not in items:
        return (extractive.names(reading.text) or [reading.answer])[:10] if reading.text.strip() else []
    if kind in ("integer", "number"):
        return [int(n) if kind == "integer" else n for n in extractive.numbers(reading.text)[:10]]
    # No items at all where a recursive type would never end.
    return [] if depth > 4 else [value_for(items, name, reading, root=root, depth=depth + 1)]


def _members(
    schema: dict[str, Any], name: str, reading: PassageValues, root: Any, depth: int
) -> dict[str, Any]:
    return {
        key: value_for(member, key, reading, root=root, depth=depth + 1)
        for key, member in schema.get("properties", {}).items()
    }


def _observed(trajectory: str) -> str:
    """What an agent's tools said; not its own thoughts, nor the names of the steps."""
    return "\n".join(
        text for text in map(str.strip, _OBSERVATION.findall(trajectory)) if text != "Completed."
    )


def _unquoted(value: str) -> str:
    """The texts inside a JSON list or object, for reading; anything else as it is."""
    if value[:1] not in "[{":
        return value
    try:
        data = json.loads(value)
    except ValueError:
        return value
    pending, texts = [data], []
    while pending:
        item = pending.pop(0)
        if isinstance(item, dict):
            pending[:0] = [
                f"{key}: {one}" if isinstance(one, (str, int, float)) else one for key, one in item.items()
            ]
        elif isinstance(item, list):
            pending[:0] = item
        elif item is not None:
            texts.append(str(item))
    return "\n".join(texts)
