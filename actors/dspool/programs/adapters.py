"""DSPy's adapters by name; they write the parts of a prompt that depend only on the signature once.

DSPy writes the whole system message and the type descriptions at each call: about a third of the time of a call to an
in-process engine. Messages and parsed values equal those of DSPy's own adapters, which also handle whatever is unusual
(demonstrations, custom types, unparsable answers).
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import dspy
import pydantic
from dspy.adapters.chat_adapter import field_header_pattern
from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER
from dspy.adapters.types.base_type import Type as CustomType
from dspy.adapters.utils import format_field_value, parse_value
from dspy.utils.exceptions import AdapterParseError

from dspool.corrections.dspy_answers import TooMuchToRepair, one_answer
from dspool.errors import InvalidRequest
from dspool.messages import JSON
from dspool.messages.limits import MAX_BODY_DEPTH
from dspool.programs.core_schemas import Branching
from dspool.programs.marks import is_marked, is_marked_json

Message = dict[str, Any]


class _Template:
    """The parts of a prompt that one adapter writes the same for every call of a signature."""

    __slots__ = ("doc", "inputs", "outputs", "plain", "requirements", "system")

    def __init__(self, adapter: Any, signature: Any) -> None:
        self.doc = signature.__doc__
        self.inputs = tuple(signature.input_fields.items())
        self.outputs = {name: field.annotation for name, field in signature.output_fields.items()}
        self.plain = all(_is_plain(field.annotation) for field in signature.fields.values()) and all(
            field.is_required() for field in signature.fields.values()
        )
        self.system = adapter.format_system_message(signature)
        self.requirements = adapter.user_message_output_requirements(signature)


def _is_plain(annotation: Any) -> bool:
    """Whether DSPy treats the type as any other (unlike images, tools, histories, native reasoning)."""
    module = getattr(annotation, "__module__", "")
    return not CustomType.extract_custom_type_from_annotation(annotation) and not module.startswith("dspy.")


class _CheckedFallback:
    """DSPy asks again in JSON when it cannot read an answer, with an adapter of its own that reads anything."""

    def _make_json_adapter_fallback(self) -> Any:
        return JSONAdapter(use_native_function_calling=False)


class _CachedAdapter(_CheckedFallback):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._templates: weakref.WeakKeyDictionary[Any, _Template] = weakref.WeakKeyDictionary()

    def _template(self, signature: Any) -> _Template:
        template = self._templates.get(signature)
        if template is None or template.doc is not signature.__doc__:
            template = self._templates[signature] = _Template(self, signature)
        return template


# The classes keep the names of those they extend: DSPy's stream listeners know an adapter by its class name.
class ChatAdapter(_CachedAdapter, dspy.ChatAdapter):
    """`dspy.ChatAdapter`, faster."""

    def format(self, signature: Any, demos: list[Any], inputs: dict[str, Any]) -> list[Message]:
        template = self._template(signature)
        if demos or not template.plain:
            return super().format(signature, demos, inputs)
        parts = []
        for name, field in template.inputs:
            if name in inputs:
                value = inputs[name]
                text = value if type(value) is str else format_field_value(field_info=field, value=value)
                parts.append(f"[[ ## {name} ## ]]\n{text}")
        parts.append(template.requirements)
        content = "\n\n".join(parts).strip()
        if CUSTOM_TYPE_START_IDENTIFIER in content:
            return super().format(signature, demos, inputs)
        return [{"role": "system", "content": template.system}, {"role": "user", "content": content}]

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        return _read(self, signature, completion, self._parse)

    def _parse(self, signature: Any, completion: str) -> dict[str, Any]:
        template = self._template(signature)
        if not template.plain:
            return self._parse_unusual(signature, completion)
        outputs = template.outputs
        fields: dict[str, Any] = {}
        name: str | None = None
        lines: list[str] = []
        for line in [*completion.splitlines(), "[[ ## completed ## ]]"]:
            header = field_header_pattern.match(line.strip()) if "[[" in line else None
            if header is None:
                lines.append(line)
                continue
            if name is not None and name in outputs and name not in fields:
                text = "\n".join(lines).strip()
                try:
                    if outputs[name] is str:
                        fields[name] = text
                    else:
                        refuse_deep_answer(self, signature, text)
                        fields[name] = parse_value(text, outputs[name])
                except ValueError:
                    return self._parse_unusual(signature, completion)
            name = str(header.group(1))
            rest = line[header.end() :].strip()
            lines = [rest] if rest else []
        if fields.keys() != outputs.keys():
            return self._parse_unusual(signature, completion)
        return {name: fields[name] for name in outputs}

    def _parse_unusual(self, signature: Any, completion: str) -> dict[str, Any]:
        refuse_deep_answer(self, signature, completion)
        answer: dict[str, Any] = super().parse(signature, completion)
        return answer


class JSONAdapter(_CachedAdapter, dspy.JSONAdapter):
    """`dspy.JSONAdapter`, faster: it writes the system message of a signature once."""

    def format(self, signature: Any, demos: list[Any], inputs: dict[str, Any]) -> list[Message]:
        template = self._template(signature)
        if demos or not template.plain:
            return super().format(signature, demos, inputs)
        content = self.format_user_message_content(signature, inputs, main_request=True)
        if CUSTOM_TYPE_START_IDENTIFIER in content:
            return super().format(signature, demos, inputs)
        return [{"role": "system", "content": template.system}, {"role": "user", "content": content}]

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        refuse_deep_answer(self, signature, completion)
        return _read(self, signature, completion, super().parse)


class XMLAdapter(_CheckedFallback, dspy.XMLAdapter):
    """`dspy.XMLAdapter`; it writes what depends on the signature alone once, as nested types take milliseconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._texts: weakref.WeakKeyDictionary[Any, tuple[str, str, str]] = weakref.WeakKeyDictionary()

    def _texts_of(self, signature: Any) -> tuple[str, str, str]:
        texts = self._texts.get(signature)
        if texts is None or texts[0] is not signature.__doc__:
            system = super().format_system_message(signature)
            requirements = super().user_message_output_requirements(signature)
            texts = self._texts[signature] = signature.__doc__, system, requirements
        return texts

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        if any(field.annotation is not str for field in signature.output_fields.values()):
            refuse_deep_answer(self, signature, completion)
        return _read(self, signature, completion, super().parse)

    def format_system_message(self, signature: Any) -> str:
        return self._texts_of(signature)[1]

    def user_message_output_requirements(self, signature: Any) -> str:
        return self._texts_of(signature)[2]


_ADAPTERS: dict[str, Any] = {"chat": ChatAdapter(), "json": JSONAdapter(), "xml": XMLAdapter()}


def adapter_named(name: str | None) -> Any:
    """The shared adapter called `name`: chat (the default), json or xml.

    Raises:
        InvalidRequest: no such adapter.
    """
    adapter = _ADAPTERS.get(name or "chat")
    if adapter is None:
        raise InvalidRequest(
            f"unknown adapter {str(name)[:80]!r}; known are {', '.join(_ADAPTERS)}", field="adapter"
        )
    return adapter


def _unreadable(adapter: Any, signature: Any, completion: str, message: str) -> AdapterParseError:
    return AdapterParseError(
        adapter_name=type(adapter).__name__,
        signature=signature,
        lm_response=completion[:1_000],
        message=message,
    )


def _read(
    adapter: Any, signature: Any, completion: str, parse: Callable[[Any, str], dict[str, Any]]
) -> dict[str, Any]:
    """What `parse` makes of an answer. Raises `AdapterParseError` if it is too broken, or a value has one of `MARKS`.

    Agents and comparisons put values into their next prompt, where a mark would be a part that is no text.
    """
    branching = _branching_of(signature)
    if branching.any and branching.is_too_much_text(completion):
        raise _unreadable(
            adapter, signature, completion, "the answer nests too deep for a union that holds itself"
        )
    try:
        with one_answer():
            answer = parse(signature, completion)
    except TooMuchToRepair as refused:
        raise _unreadable(adapter, signature, completion, str(refused)) from refused
    if is_marked(answer):
        raise _unreadable(adapter, signature, completion, "the answer holds a mark of DSPy")
    return answer


_branchings: weakref.WeakKeyDictionary[Any, Branching] = weakref.WeakKeyDictionary()


def _branching_of(signature: Any) -> Branching:
    """How reading the outputs of a signature branches."""
    branching = _branchings.get(signature)
    if branching is None:
        annotations = [field.annotation for field in signature.output_fields.values()]
        schemas: list[Any] = []
        for annotation in annotations:
            # A type that pydantic cannot make is none to read with it.
            with suppress(Exception):
                schemas += [] if annotation is str else [pydantic.TypeAdapter(annotation).core_schema]
        branching = _branchings[signature] = Branching(*schemas)
    return branching


def refuse_deep_answer(adapter: Any, signature: Any, completion: str) -> None:
    """Raises `AdapterParseError` for an answer that opens more brackets than a value of ours nests.

    What DSPy repairs such JSON with takes seconds for 15 kB of braces, on the event loop, and callers can have a model
    answer what they like.
    """
    if completion.count("{") + completion.count("[") + completion.count("(") <= MAX_BODY_DEPTH:
        return
    with suppress(ValueError, RecursionError):
        json.loads(completion)
        return  # nothing to repair
    depth = 0
    for bracket in _BRACKET.findall(completion):
        if bracket in "{[(":
            depth += 1
        elif depth:
            depth -= 1
        if depth > MAX_BODY_DEPTH:
            message = f"the answer nests more than {MAX_BODY_DEPTH} deep"
            raise _unreadable(adapter, signature, completion, message)


_BRACKET: Final = re.compile(r"[\[\]{}()]")


def refuse_message_parts(values: Mapping[str, JSON]) -> None:
    """Raises `InvalidRequest`, which names the value, if a text in `values` holds one of `MARKS`, however deep."""
    for name, value in values.items():
        if is_marked(name) or is_marked_json(value):
            raise InvalidRequest(
                f"{name[:80]!r} holds a mark with which DSPy makes parts of a message that are no text",
                field=name[:80],
            )
