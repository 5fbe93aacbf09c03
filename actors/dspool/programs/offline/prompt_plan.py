"""What an adapter's system message says: its format, the input names, and a JSON schema for each output field.

The system message is a pure function of the signature, so each distinct message is read once.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any, Literal

import dspy
import pydantic

from dspool.programs.sizes import remembered

Schema = dict[str, Any]

_JSON_MARK = "Outputs will be a JSON object with the following fields."
_FIELD = re.compile(r"^\d+\. `(\w+)` \((.*?)\):(?: |$)", re.MULTILINE)
_NOTE = "        # note: the value you produce must adhere to the JSON schema: "
_ONE_OF = "        # note: the value you produce must be one of: "
_TEXT: Schema = {"type": "string"}
_SIMPLE: dict[str, Schema] = {
    "str": _TEXT,
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "Any": _TEXT,
    "NoneType": {"type": "null"},
    "list": {"type": "array", "items": _TEXT},
    "dict": {"type": "object", "additionalProperties": True},
}


class PromptPlan:
    """How to read the user message of one signature, and what to write."""

    __slots__ = ("_header", "_outputs", "_schemas", "_whole", "format", "inputs", "only_text")

    def __init__(
        self,
        format: Literal["chat", "json", "xml"],
        inputs: tuple[str, ...],
        outputs: dict[str, str],
        schemas: dict[str, Schema],
    ) -> None:
        self.format = format
        self.inputs = inputs
        self._outputs = outputs
        self._schemas = schemas
        self._whole = len(schemas) == len(outputs)
        names = "|".join(map(re.escape, inputs))
        self._header = re.compile(
            rf"^<({names})>\n" if format == "xml" else rf"^\[\[ ## ({names}) ## \]\]\n", re.MULTILINE
        )
        text_only = len(outputs) == 1 and next(iter(schemas.values()), None) is _TEXT
        self.only_text = next(iter(outputs)) if text_only else None
        """The name of the only output, if that is a plain text: the common case, which needs the least work."""

    @property
    def output_count(self) -> int:
        return len(self._outputs)

    def inputs_of(self, message: str) -> dict[str, str]:
        """The input values in the user message, as the adapter wrote them."""
        if self.format == "xml":
            return self._elements_of(message)
        marks = list(self._header.finditer(message))
        values: dict[str, str] = {}
        for index, mark in enumerate(marks):
            last = index + 1 == len(marks)
            end = message.rfind("\n\nRespond with ") if last else marks[index + 1].start()
            values.setdefault(
                mark[1], message[mark.end() : end if end >= mark.end() else len(message)].strip()
            )
        return values

    def _elements_of(self, message: str) -> dict[str, str]:
        """By name what stands between its tags, each on a line of its own. Looks at each character once per name."""
        values: dict[str, str] = {}
        unclosed: set[str] = set()
        at = 0
        while (mark := self._header.search(message, at)) is not None:
            name, at = mark[1], mark.end()
            tag = f"\n</{name}>"
            end = -1 if name in unclosed else message.find(tag, at)
            while end >= 0 and message[end + len(tag) : end + len(tag) + 1] not in ("", "\n"):
                end = message.find(tag, end + 1)
            if end < 0:
                unclosed.add(name)
            else:
                values[name] = message[at:end]
                at = end + len(tag)
        return values

    def schemas(self) -> dict[str, Schema]:
        """A JSON schema for each output field, in order."""
        if self._whole:
            return self._schemas
        # The XML format has the tags of nested objects but not the types inside: the running predictor has those.
        annotations = _running_outputs()
        return {name: self._schemas.get(name) or _schema_of(annotations.get(name)) for name in self._outputs}


@remembered(512, longest=16_384)
def plan_of(system: str) -> PromptPlan | None:
    """The plan in `system`; None if no known adapter wrote it."""
    inputs_at = system.find("Your input fields are:\n")
    outputs_at = system.find("\nYour output fields are:\n", inputs_at)
    structure_at = system.find("\nAll interactions will be structured in the following way", outputs_at)
    if min(inputs_at, outputs_at, structure_at) < 0:
        return None
    inputs = tuple(m[1] for m in _FIELD.finditer(system[inputs_at:outputs_at]))
    structure = system[structure_at:]
    outputs = {m[1]: m[2] for m in _FIELD.finditer(system[outputs_at:structure_at])}
    notes: dict[str, str]
    if _JSON_MARK in structure:
        kind: Literal["chat", "json", "xml"] = "json"
        start = structure.index("{", structure.index(_JSON_MARK))
        notes = json.JSONDecoder().raw_decode(structure, start)[0]
        outputs = {name: outputs[name] for name in notes if name in outputs}
    elif "[[ ## completed ## ]]" in structure:
        kind = "chat"
        notes = dict(re.findall(r"^\[\[ ## (\w+) ## \]\]\n(.*)$", structure, re.MULTILINE))
    else:
        kind = "xml"
        notes = dict(re.findall(r"^<(\w+)>\n(.*)\n</\1>$", structure, re.MULTILINE))
    outputs = {name: type_ for name, type_ in outputs.items() if name in notes or kind == "xml"}
    schemas = {}
    for name, type_ in outputs.items():
        schema = _schema_from_note(notes.get(name, "")) or _schema_from_text(type_)
        if schema is not None:
            schemas[name] = schema
    return PromptPlan(kind, inputs, outputs, schemas) if inputs and outputs else None


def _schema_from_note(note: str) -> Schema | None:
    """The schema that DSPy writes beside an output whose type has no name in Python's own words."""
    _, mark, schema = note.partition(_NOTE)
    if mark:
        found: Schema = json.JSONDecoder().raw_decode(schema)[0]
        return found
    _, mark, values = note.partition(_ONE_OF)
    return {"enum": values.split("; ")} if mark else None


def _schema_from_text(text: str) -> Schema | None:
    """The schema of a type as DSPy writes it (`list[int]`, `Literal['a', 1]`); None for an object's name."""
    try:
        return _schema_from_node(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _schema_from_node(node: ast.expr) -> Schema | None:
    if isinstance(node, ast.Name):
        return _SIMPLE.get(node.id)
    if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Name):
        return None
    arguments = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if node.value.id == "Literal":
        return {"enum": [ast.literal_eval(a) for a in arguments]}
    inner = [_schema_from_node(a) for a in arguments]
    if any(schema is None for schema in inner):
        return None
    if node.value.id == "list":
        return {"type": "array", "items": inner[0]}
    if node.value.id == "dict" and len(inner) == 2:
        return {"type": "object", "additionalProperties": inner[1]}
    if node.value.id in ("Union", "Optional"):
        return {"anyOf": [*inner, {"type": "null"}] if node.value.id == "Optional" else inner}
    return None


def _running_outputs() -> dict[str, Any]:
    modules = dspy.settings.caller_modules or []
    signature = getattr(modules[-1], "signature", None) if modules else None
    fields = getattr(signature, "output_fields", {})
    return {name: field.annotation for name, field in fields.items()}


def _schema_of(annotation: Any) -> Schema:
    if annotation is None:
        return _TEXT
    try:
        return pydantic.TypeAdapter(annotation).json_schema()
    except pydantic.PydanticUserError:
        return _TEXT
