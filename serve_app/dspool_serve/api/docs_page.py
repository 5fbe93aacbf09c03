"""The pages of `/docs`: the OpenAPI document to read in a browser, with nothing from the internet."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from dspool_serve.http.requests import Response

_TYPES = {".html": b"text/html; charset=utf-8", ".js": b"text/javascript", ".css": b"text/css"}
# Only what this service itself serves: a description that held markup could do nothing with it.
_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)


@cache
def file(name: str) -> Response:
    """One of the packaged files."""
    path = Path(__file__).with_name("static") / name
    return Response(200, path.read_bytes(), _TYPES[path.suffix], (_POLICY,))
