"""Inputs that come as `multipart/form-data`, as files do: `curl -F picture=@cat.png -F question='What is it?'`.

A part is an input. A text is itself, `application/json` is what it says, and a file is `{"file_data": <data URL>,
"filename": ...}`, of which a worker makes an image, a sound, a file, a document or bytes if the program declares one;
for a text it is refused. Parts of one name are a list. Read strictly: what two programs could read in two ways is
refused.
"""

from __future__ import annotations

import base64
import re
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from dspool.errors import PayloadTooLarge
from dspool.messages import JSON
from dspool.messages.limits import MAX_FORM_PARTS
from dspool_serve.http.problems import MalformedRequest
from dspool_serve.http.requests import Request, decode, refuse_too_much

FORM: Final = b"multipart/form-data"
_BOUNDARY: Final = re.compile(
    rb'multipart/form-data\s*;\s*boundary=(?:"([^"\r\n]{1,70})"|([!-:<-~]{1,70}))', re.I
)
_DISPOSITION: Final = re.compile(r'form-data((?:; *[a-z*]+=(?:"[^"\r\n]*"|[^";\s]+))+)', re.I)
_PARAMETER: Final = re.compile(r'; *([a-z*]+)=(?:"([^"\r\n]*)"|([^";\s]+))', re.I)
_MEDIA: Final = re.compile(r"[a-z0-9.+-]{1,80}/[a-z0-9.+-]{1,80}", re.I)
_LONGEST_HEAD: Final = 4096
_LONGEST_NAME: Final = 200
_json = msgspec.json.Decoder(Any)


def is_form(request: Request) -> bool:
    return request.headers.get(b"content-type", b"")[: len(FORM)].lower() == FORM


def form_inputs(request: Request, body: bytes) -> dict[str, JSON]:
    """The inputs of a form.

    Raises:
        MalformedRequest: it cannot be read. PayloadTooLarge: it has too many parts.
    """
    found = _BOUNDARY.fullmatch(request.headers[b"content-type"].strip())
    if found is None:
        raise MalformedRequest("multipart/form-data needs a boundary, and nothing else, in Content-Type")
    boundary = b"\r\n--" + (found[1] or found[2])
    # One more than may be: the rest need not be taken apart.
    parts = (b"\r\n" + body).split(boundary, MAX_FORM_PARTS + 2)
    if len(parts) > MAX_FORM_PARTS + 2:
        raise PayloadTooLarge(f"a form has at most {MAX_FORM_PARTS} parts", limit=MAX_FORM_PARTS)
    if len(parts) < 2 or parts[0] or parts[-1] not in (b"--", b"--\r\n"):
        raise MalformedRequest("the form does not begin or does not end with its boundary")
    read = [_input(part) for part in parts[1:-1]]
    # The bounds of what is JSON are those of the whole request.
    refuse_too_much(b",".join(value for _, value in read if type(value) is _Encoded))
    inputs: dict[str, list[JSON]] = {}
    for name, value in read:
        inputs.setdefault(name, []).append(decode(_json, value) if type(value) is _Encoded else value)
    return {name: values[0] if len(values) == 1 else values for name, values in inputs.items()}


class _Encoded(bytes):
    """A value that is JSON still."""


def _input(part: bytes) -> tuple[str, JSON | _Encoded]:
    head, end, content = part.partition(b"\r\n\r\n")
    if not end or not head.startswith(b"\r\n") or len(head) > _LONGEST_HEAD:
        raise MalformedRequest("a part of the form has no head, or one that is too long")
    headers: dict[str, str] = {}
    for line in _text(head[2:], "the head of a part").split("\r\n"):
        key, colon, value = line.partition(":")
        if not colon or key.lower() in headers:
            raise MalformedRequest("a part of the form has a header that cannot be read, or one twice")
        headers[key.lower()] = value.strip()
    name, filename = _names(headers.get("content-disposition", ""))
    if headers.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
        raise MalformedRequest(f"part {name!r} is encoded: send it as it is")
    media = headers.get("content-type", "text/plain" if filename is None else "application/octet-stream")
    media = media.partition(";")[0].strip().lower()
    if filename is None and media == "text/plain":
        return name, _text(content, f"part {name!r}")
    if filename is None and media == "application/json":
        return name, _Encoded(content)
    if _MEDIA.fullmatch(media) is None:
        raise MalformedRequest(f"part {name!r} has a Content-Type that cannot be read")
    return name, {
        "file_data": f"data:{media};base64,{base64.b64encode(content).decode()}",
        "filename": filename,
    }


def _names(disposition: str) -> tuple[str, str | None]:
    """The name of the input, and that of the file if it is one."""
    found = _DISPOSITION.fullmatch(disposition)
    pairs = [] if found is None else _PARAMETER.findall(found[1])
    given = {key.lower(): quoted or bare for key, quoted, bare in pairs}
    if len(given) != len(pairs) or not 0 < len(given.get("name", "")) <= _LONGEST_NAME:
        raise MalformedRequest("a part of the form needs `Content-Disposition: form-data` with one name")
    filename = given.get("filename")
    if "filename*" in given:
        filename = unquote(given["filename*"].rpartition("'")[2])
    return given["name"], None if filename is None else filename[:_LONGEST_NAME]


def _text(content: bytes, what: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise MalformedRequest(f"{what} is not valid UTF-8") from None


__all__ = ["FORM", "form_inputs", "is_form"]
