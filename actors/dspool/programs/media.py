"""How DSPy's own types are read from what callers send: images, sounds, files, documents, bytes, conversations.

A caller sends the fields that the type has in DSPy, a data URL, base64, or a file of a form, which arrives as
`{"file_data": <data URL>, "filename": ...}`. Nothing is opened or downloaded here: an `http(s)` URL of an image goes to
the model as it is, and one that names a machine of this network goes nowhere. A file's id means a file in the account
of the operator at a provider: no caller can give one.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, NotRequired, Required, get_args, get_origin

import dspy
import pydantic
import typing_extensions
from dspy.adapters.types.document import Document
from pydantic import BeforeValidator, WithJsonSchema

from dspool.messages import JSON
from dspool.programs.contents import OCTETS, NotAMedium, content_of, decoded, refuse_own_network
from dspool.programs.marks import has_mark, within


def readable(annotation: Any) -> Any:
    """`annotation` with all types of `_READERS` in it read as this module says; those inside of models stay."""
    if annotation is float:
        return Annotated[float, pydantic.AllowInfNan(False)]  # as a text, "nan" is one
    if typing.is_typeddict(annotation):
        return _typed_dict(annotation)
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        for kind, (read, schema) in _READERS.items():
            if annotation is kind or (kind is not bytes and issubclass(annotation, kind)):
                taken = WithJsonSchema(schema, mode="validation")
                if kind in _WRITTEN:
                    given = WithJsonSchema(_WRITTEN[kind], mode="serialization")
                    return Annotated[annotation, BeforeValidator(read), taken, given]
                return Annotated[annotation, BeforeValidator(read), taken]
        return annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[readable(arguments[0]), *arguments[1:]]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(readable(argument) for argument in arguments)]  # noqa: UP007
    if origin is list and arguments and arguments[0] in _READERS:
        # A form with one file says nothing of a list.
        return Annotated[list[readable(arguments[0])], BeforeValidator(_several)]  # type: ignore[misc]
    if origin is Iterable:
        # Pydantic would read each item when the program asks for it: too late to refuse one.
        return readable(list[arguments])  # type: ignore[valid-type]
    if origin in (list, set, frozenset, tuple, dict):
        return origin[tuple(readable(argument) for argument in arguments)]
    return annotation


def _typed_dict(keys: Any) -> Any:
    """The same, of the kind that pydantic takes in every version of Python."""
    hints = {
        name: Required[readable(hint)] if name in keys.__required_keys__ else NotRequired[readable(hint)]
        for name, hint in typing.get_type_hints(keys).items()
    }
    return typing_extensions.TypedDict(keys.__name__, hints)  # type: ignore[operator]


# --- from what is sent ------------------------------------------------------------------------------


def _image(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"url"}:
        value = value["url"]
    if isinstance(value, str) and (value := value.strip()).lower().startswith(("http://", "https://")):
        refuse_own_network(value)
        return {"url": value}
    content = content_of(value, "image/")
    if content is None:
        raise NotAMedium("expected an image: an http(s) URL, a data URL, content in base64, or a file")
    return {"url": content.url}


def _audio(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"data", "audio_format"}:
        if isinstance(value["data"], str):
            decoded(value["data"])
        return value
    content = content_of(value, "audio/")
    if content is None:
        raise NotAMedium("expected a sound: a data URL, content in base64, {data, audio_format}, or a file")
    return {"data": content.text, "audio_format": content.mime.partition("/")[2].removeprefix("x-")}


def _file(value: Any) -> Any:
    if isinstance(value, dict) and value.get("file_id") is not None:
        raise NotAMedium("a file_id means a file of the operator's own account: send the content")
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key != "file_id" or item is not None}
    content = content_of(value)
    if content is None:
        raise NotAMedium("expected a file: a data URL, content in base64, {file_data, filename}, or a file")
    return {"file_data": content.url, "filename": content.filename}


def _document(value: Any) -> Any:
    if not isinstance(value, dict) or "file_data" not in value:
        return value
    content = content_of(value)
    assert content is not None
    if content.mime == "application/pdf":
        return {"data": content.text, "media_type": content.mime, "title": content.filename}
    try:
        return {"data": decoded(content.text).decode(), "title": content.filename}
    except UnicodeDecodeError:
        raise NotAMedium("expected a document: a text in UTF-8, or PDF") from None


def _several(value: Any) -> Any:
    return [value] if isinstance(value, dict) and "file_data" in value else value


def _as_it_is(value: Any) -> Any:
    return value


def _history(value: Any) -> Any:
    return {"messages": value} if isinstance(value, list) else value


def _bytes(value: Any) -> Any:
    content = content_of(value)
    return value if content is None else decoded(content.text)


# --- what was made ----------------------------------------------------------------------------------


def check_made(value: Any) -> None:
    """What images and files within `value` refer to, those inside of models too, and that no text is marked.

    Raises: NotAMedium.
    """
    for part in within(value):
        if has_mark(part):
            raise NotAMedium("it holds a mark with which DSPy makes parts of a message that are no text")
        if isinstance(part, dspy.Image):
            if not part.url.startswith("data:"):
                _image(part.url)
        elif isinstance(part, dspy.File):
            if part.file_id is not None or not (part.file_data or "data:").startswith("data:"):
                _file({"file_data": part.file_data, "file_id": part.file_id})
        elif isinstance(part, dspy.Audio):
            decoded(part.data)


# --- what is told of them ---------------------------------------------------------------------------

_TEXT: Final[dict[str, JSON]] = {"type": "string"}
_TEXT_OR_NULL: Final[dict[str, JSON]] = {"type": ["string", "null"]}


def _content(kind: str, media: str, text: str, *objects: dict[str, JSON]) -> dict[str, JSON]:
    texts = {**_TEXT, "contentEncoding": "base64", "contentMediaType": media, "description": text}
    return {"anyOf": [texts, *objects], "description": text, "x-dspool-type": kind}


def _fields(*names: str, **optional: JSON) -> dict[str, JSON]:
    properties = dict.fromkeys(names, _TEXT) | optional
    return {
        "type": "object",
        "properties": properties,
        "required": list(names),
        "additionalProperties": False,
    }


_CALLS: Final[dict[str, JSON]] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": _TEXT, "args": {"type": "object"}},
        "required": ["name"],
    },
}
_UPLOAD: Final = _fields("file_data", filename=_TEXT_OR_NULL)
_READERS: Final[dict[Any, tuple[Callable[[Any], Any], dict[str, JSON]]]] = {
    dspy.Image: (
        _image,
        _content(
            "image", "image/*", "an image: an http(s) URL, a data URL or base64", _fields("url"), _UPLOAD
        ),
    ),
    dspy.Audio: (
        _audio,
        _content(
            "audio", "audio/*", "a sound: a data URL or base64", _fields("data", "audio_format"), _UPLOAD
        ),
    ),
    dspy.File: (_file, _content("file", OCTETS, "a file: a data URL or base64", _UPLOAD)),
    Document: (
        _document,
        _content(
            "document",
            "text/plain",
            "a document: its text",
            _fields("data", title=_TEXT_OR_NULL, media_type=_TEXT, context=_TEXT_OR_NULL),
            _UPLOAD,
        ),
    ),
    dspy.History: (
        _history,
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"messages": {"type": "array", "items": {"type": "object"}}},
                    "required": ["messages"],
                    "additionalProperties": False,
                },
                {"type": "array", "items": {"type": "object"}},
            ],
            "description": "a conversation: one object of inputs and outputs for each turn",
            "x-dspool-type": "history",
        },
    ),
    dspy.Reasoning: (
        _as_it_is,
        {"anyOf": [_TEXT, _fields("content")], "description": "reasoning", "x-dspool-type": "reasoning"},
    ),
    dspy.Code: (
        _as_it_is,
        {"anyOf": [_TEXT, _fields("code")], "description": "code", "x-dspool-type": "code"},
    ),
    dspy.ToolCalls: (
        _as_it_is,
        {
            "anyOf": [_fields("tool_calls") | {"properties": {"tool_calls": _CALLS}}, _CALLS],
            "description": "calls of tools, each with a name and arguments",
        },
    ),
    bytes: (_bytes, _content("bytes", OCTETS, "content in base64 or a data URL", _UPLOAD)),
}

_WRITTEN: Final[dict[Any, dict[str, JSON]]] = {
    dspy.Code: _TEXT,
    dspy.Reasoning: _TEXT,
    bytes: {**_TEXT, "contentEncoding": "base64"},
}
"""What is sent of those that are sent otherwise than as an object of their fields."""

__all__ = ["NotAMedium", "check_made", "readable"]
