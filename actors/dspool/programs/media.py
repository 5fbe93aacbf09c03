"""How DSPy's own types are read from what callers send: images, sounds, files, documents, bytes, conversations.

A caller sends the fields that the type has in DSPy, a data URL, base64, or a file of a form, which arrives as
`{"file_data": <data URL>, "filename": ...}`. Nothing is opened or downloaded here: an `http(s)` URL of an image goes to
the model as it is, and one that names a machine of this network goes nowhere. A file's id means a file in the account
of the operator at a provider: no caller can give one.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Final, NotRequired, Required, get_args, get_origin
from urllib.parse import unquote, urlsplit

import dspy
import pydantic
import typing_extensions
from dspy.adapters.types.document import Document
from pydantic import BeforeValidator, WithJsonSchema

from dspool.messages import JSON

_DATA: Final = re.compile(
    r"data:([a-zA-Z0-9.+-]+/[a-zA-Z0-9.+-]+)?((?:;[a-zA-Z0-9.+_-]+=[^;,]*)*);base64,", re.A
)
_NAME: Final = re.compile(r";(?:file)?name=([^;,]*)")
_OCTETS: Final = "application/octet-stream"
_SIGNS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mp3"),
    (b"\xff\xfb", "audio/mp3"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
)
"""How files of these kinds begin."""
_CONTAINERS: Final = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}


class NotAMedium(ValueError):
    """`str()` says what is wanted, and nothing of what came."""


class Content(typing.NamedTuple):
    """What a data URL, base64 or a file of a form holds."""

    mime: str
    text: str
    """Base64."""
    filename: str | None = None

    @property
    def url(self) -> str:
        return f"data:{self.mime};base64,{self.text}"


def readable(annotation: Any) -> Any:
    """`annotation` with all types of `_READERS` in it read as this module says; those inside of models stay."""
    if annotation is float:
        return Annotated[float, pydantic.AllowInfNan(False)]  # as a text, "nan" is one
    if typing.is_typeddict(annotation):
        return _typed_dict(annotation)
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        for kind, (read, schema) in _READERS.items():
            if annotation is kind or (kind is not bytes and issubclass(annotation, kind)):
                return Annotated[annotation, BeforeValidator(read), WithJsonSchema(schema, mode="validation")]
        return annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[readable(arguments[0]), *arguments[1:]]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(readable(argument) for argument in arguments)]  # noqa: UP007
    if origin is list and arguments and arguments[0] in _READERS:
        # A form with one file says nothing of a list.
        return Annotated[list[readable(arguments[0])], BeforeValidator(_several)]  # type: ignore[misc]
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


def content_of(value: Any, wanted: str = "") -> Content | None:
    """What a data URL, base64 or a file of a form holds, if `value` is one; `wanted` is how its kind must begin.

    Raises:
        NotAMedium: it is one, but broken, or of another kind.
    """
    name = None
    if isinstance(value, dict) and value.keys() <= {"file_data", "filename"} and "file_data" in value:
        name, value = value.get("filename"), value["file_data"]
    if not isinstance(value, str):
        return None
    if (head := _DATA.match(value)) is not None:
        mime, text = (head[1] or _OCTETS).lower(), value[head.end() :]
        named = _NAME.search(head[2] or "")
        name = name or (unquote(named[1]) if named is not None else None)
    elif value.startswith("data:"):
        raise NotAMedium("expected a data URL with base64: data:<type>;base64,<content>")
    else:
        mime, text = _OCTETS, value
    start = _decoded(text)
    if mime in (_OCTETS, "text/plain") or (wanted and not mime.startswith(wanted)):
        mime = _kind(start) or mime
    if wanted and not mime.startswith(wanted):
        raise NotAMedium(f"expected content of a type that begins with {wanted}")
    return Content(mime, text, name if isinstance(name, str) else None)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NotAMedium("expected a data URL, or content in base64") from None


def _kind(content: bytes) -> str | None:
    if content[:4] == b"RIFF":
        return _CONTAINERS.get(content[8:12])
    return next((mime for sign, mime in _SIGNS if content.startswith(sign)), None)


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
            _decoded(value["data"])
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
        return {"data": _decoded(content.text).decode(), "title": content.filename}
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
    return value if content is None else _decoded(content.text)


def refuse_own_network(url: str) -> None:
    """Refuse a URL by which whoever fetches it would reach a machine of its own network.

    Raises:
        NotAMedium: it names this machine, or an address that is not of the internet.
    """
    try:
        host = (urlsplit(url).hostname or "").rstrip(".").lower()
        own = not host or host == "localhost" or host.endswith(".localhost")
        if not own and (":" in host or (host.replace(".", "").isalnum() and host[-1].isdigit())):
            own = not ipaddress.ip_address(host).is_global
    except ValueError:
        # Such as an address in hexadecimal or with fewer than four parts, which some take for one.
        own = True
    if own:
        raise NotAMedium("expected a URL of a host on the internet")


# --- what was made ----------------------------------------------------------------------------------


def holds_media(schema: Any) -> bool:
    """Whether values of this pydantic schema may hold images or files, however deep."""
    pending, seen = [schema], set()
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            if id(part) in seen:
                continue
            seen.add(id(part))
            kind = part.get("cls")
            if isinstance(kind, type) and issubclass(kind, dspy.Image | dspy.File):
                return True
            pending.extend(part.values())
        elif isinstance(part, list | tuple):
            pending.extend(part)
    return False


def check_references(value: Any) -> None:
    """What images and files within `value` refer to, those inside of models too. Raises: NotAMedium."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, dspy.Image):
            if not part.url.startswith("data:"):
                _image(part.url)
        elif isinstance(part, dspy.File):
            if part.file_id is not None:
                _file({"file_id": part.file_id})
        elif isinstance(part, dict):
            pending.extend(part.values())
        elif isinstance(part, list | tuple | set | frozenset):
            pending.extend(part)
        elif isinstance(part, pydantic.BaseModel) or hasattr(part, "__dataclass_fields__"):
            pending.extend(vars(part).values())


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
    dspy.File: (_file, _content("file", _OCTETS, "a file: a data URL or base64", _UPLOAD)),
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
    bytes: (_bytes, _content("bytes", _OCTETS, "content in base64 or a data URL", _UPLOAD)),
}

__all__ = ["Content", "NotAMedium", "check_references", "content_of", "holds_media", "readable"]
