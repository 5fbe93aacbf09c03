"""How DSPy's own types are read from what callers send: images, sounds, files, documents, bytes, conversations.

A caller sends the fields that the type has in DSPy, a data URL, base64, or a file of a form, which arrives as
`{"file_data": <data URL>, "filename": ...}`. Nothing is opened or downloaded here: an `http(s)` URL of an image goes to
the model as it is, and one that names a machine of this network goes nowhere. A file's id means a file in the account
of the operator at a provider: no caller can give one.
"""

from __future__ import annotations

import re
import types
import typing
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, NotRequired, Required, get_args, get_origin

import dspy
import msgspec
import pydantic
import typing_extensions
from dspy.adapters.types.document import Document
from pydantic import BeforeValidator, WithJsonSchema

from dspool.messages import JSON
from dspool.programs.contents import OCTETS, NotAMedium, content_of, decoded, refuse_own_network
from dspool.programs.marks import MARKS, has_mark, within


def readable(annotation: Any) -> Any:
    """`annotation` with all types of `_READERS` in it read as this module says; those inside of classes stay, see
    `inner_types`."""
    return _readable(annotation, {})


def reads(thing: Any) -> bool:
    """Whether this is a class that is read here, or a function that reads one."""
    if isinstance(thing, type):
        return _kind(thing) is not None
    return any(thing is read for read, _ in _READERS.values())


def _readable(annotation: Any, made: dict[Any, Any]) -> Any:
    """`made`: what became of the typed dicts that this one is within."""
    if annotation is float:
        return Annotated[float, pydantic.AllowInfNan(False)]  # as a text, "nan" is one
    if typing.is_typeddict(annotation):
        return _typed_dict(annotation, made)
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        kind = _kind(annotation)
        if kind is None:
            return list if annotation in _READ_LATE else annotation
        read, schema = _READERS[kind]
        taken = WithJsonSchema(schema, mode="validation")
        if kind in _WRITTEN:
            given = WithJsonSchema(_WRITTEN[kind], mode="serialization")
            return Annotated[annotation, BeforeValidator(read), taken, given]
        return Annotated[annotation, BeforeValidator(read), taken]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if any(isinstance(said, pydantic.EncodedBytes) for said in arguments[1:]):
            return annotation
        return Annotated[_readable(arguments[0], made), *arguments[1:]]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_readable(argument, made) for argument in arguments)]  # noqa: UP007
    if origin is list and arguments and arguments[0] in _READERS:
        # A form with one file says nothing of a list.
        return Annotated[list[_readable(arguments[0], made)], BeforeValidator(_several)]  # type: ignore[misc]
    if origin in _READ_LATE:
        return _readable(list[arguments], made) if arguments else list  # type: ignore[valid-type]
    if origin in (list, set, frozenset, tuple, dict, deque, Sequence, Mapping):
        return origin[tuple(_readable(argument, made) for argument in arguments)]
    return annotation


_READ_LATE: Final = (Iterable, Collection)
"""Pydantic would read the items of the one when the program asks for them, too late to refuse one; the other never."""


def _kind(annotation: type) -> Any:
    """The type of `_READERS` that it is, if it is one."""
    return next(
        (
            kind
            for kind in _READERS
            if annotation is kind or (kind is not bytes and issubclass(annotation, kind))
        ),
        None,
    )


def _typed_dict(keys: Any, made: dict[Any, Any]) -> Any:
    """The same, of the kind that pydantic takes in every version of Python."""
    if keys in made:
        return made[keys]
    make: Any = typing_extensions.TypedDict
    new = make(keys.__name__, {})
    made[keys] = new
    new.__annotations__ = {
        name: Required[_readable(hint, made)] if required else NotRequired[_readable(hint, made)]
        for name, (hint, required) in requirements(keys).items()
    }
    if (config := getattr(keys, "__pydantic_config__", None)) is not None:
        new.__pydantic_config__ = config
    return new


def requirements(keys: Any) -> dict[str, tuple[Any, bool]]:
    """By name of a typed dict's keys their type, and whether one must be there: also where its annotations were texts
    when Python looked at them."""
    found: dict[str, tuple[Any, bool]] = {}
    for name, hint in typing_extensions.get_type_hints(keys, include_extras=True).items():
        required = name in getattr(keys, "__required_keys__", (name,))
        while (origin := get_origin(hint)) in _QUALIFIERS:
            required = required if (says := _QUALIFIERS[origin]) is None else says
            hint = get_args(hint)[0]
        found[name] = hint, required
    return found


_QUALIFIERS: Final[dict[Any, bool | None]] = {
    typing.Required: True,
    typing.NotRequired: False,
    typing_extensions.Required: True,
    typing_extensions.NotRequired: False,
    typing_extensions.ReadOnly: None,
}


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


def unmarked(value: Any, annotation: Any) -> Any:
    """`value`, which DSPy saved, with images, sounds and files as such where `annotation` has them; any other mark
    stays.

    Raises:
        NotAMedium: one that no caller could send either.
    """
    if isinstance(value, list):
        return [unmarked(item, annotation) for item in value]
    if isinstance(value, dict):
        return {key: unmarked(item, annotation) for key, item in value.items()}
    if not isinstance(value, str) or (found := _SAVED.fullmatch(value)) is None:
        return value
    try:
        (part,) = msgspec.json.decode(found[1])
        kind, name, content = part["type"], *_SAVED_AS[part["type"]]
        made = part[kind]
    except (ValueError, KeyError, TypeError):
        return value
    if not _has(annotation, name):
        return value
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(readable(name))
    try:
        return adapter.validate_python(content(made))
    except (pydantic.ValidationError, KeyError, TypeError, AttributeError):
        raise NotAMedium("a saved image, sound or file that no caller could send either") from None


_SAVED: Final = re.compile(f"{re.escape(MARKS[0])}(.*){re.escape(MARKS[1])}", re.DOTALL)
_SAVED_AS: Final[dict[str, tuple[Any, Callable[[Any], Any]]]] = {
    "image_url": (dspy.Image, lambda part: {"url": part["url"]}),
    "input_audio": (dspy.Audio, lambda part: {"data": part["data"], "audio_format": part["format"]}),
    "file": (dspy.File, dict),
}
"""By the type of the part of a message: what it was, and its fields."""


def _has(annotation: Any, kind: Any) -> bool:
    return annotation is kind or any(_has(argument, kind) for argument in get_args(annotation))


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

__all__ = ["NotAMedium", "check_made", "readable", "reads", "requirements", "unmarked"]
