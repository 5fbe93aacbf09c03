"""The dashboard's own files, and the chart library out of the package that brings it: read, hashed and packed once."""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from dspool_serve.api.common import SMALLEST_PACKED, VARY, takes_gzip
from dspool_serve.http.problems import RouteNotFound
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response

STATIC: Final = Path(__file__).with_name("static")
PREFIX: Final = "/dashboard/static"
PLACEHOLDER: Final = b"{{static}}"

VENDOR: Final = {"chart.js": ("chartkick", "django/static/chartkick/Chart.bundle.js")}
"""Name below `vendor/` -> the installed package that brings the file, and where in it."""

SHEETS: Final = tuple(f"css/{name}.css" for name in ("theme", "layout", "parts", "charts", "views"))
"""What `css/page.css` is put together from: one answer in place of five, before which nothing is drawn."""

TYPES: Final = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".png": b"image/png",
    ".json": b"application/json",
    ".webmanifest": b"application/manifest+json",
}
POLICY: Final = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    b"font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)
"""Only what this service itself serves, and nothing that is written into the page: markup in a name stays text."""
_REFERRER: Final = (b"referrer-policy", b"no-referrer")
_FOR_EVER: Final = (b"cache-control", b"public, max-age=31536000, immutable")
_ASK_AGAIN: Final = (b"cache-control", b"no-cache")


class Packed(NamedTuple):
    body: bytes
    packed: bytes | None
    etag: bytes
    type: bytes


@cache
def files() -> dict[str, Packed]:
    """All files by their path below the version."""
    found = {}
    for path in sorted(STATIC.rglob("*")):
        if path.is_file() and path.suffix in TYPES and path.name != "index.html":
            found[path.relative_to(STATIC).as_posix()] = _pack(path.read_bytes(), TYPES[path.suffix])
    sheets = b"".join((STATIC / name).read_bytes() for name in SHEETS)
    found["css/page.css"] = _pack(sheets, TYPES[".css"])
    for name, (package, inside) in VENDOR.items():
        spec = find_spec(package)
        brought = Path(spec.origin).parent / inside if spec is not None and spec.origin else None
        if brought is not None and brought.is_file():
            found[f"vendor/{name}"] = _pack(brought.read_bytes(), TYPES[brought.suffix])
    return found


@cache
def version() -> str:
    """Changes with any file: what a browser has kept under another version is never mixed with this one."""
    together = hashlib.sha256()
    for name, file in files().items():
        together.update(name.encode() + b"\0" + file.etag)
    return together.hexdigest()[:12]


@cache
def shell(*, below: bool = False) -> Packed:
    """The one HTML page, at `/dashboard` or `below` it at `/dashboard/`. It names its files from there: only a proxy
    knows what stands before."""
    path = STATIC / "index.html"
    folder = PREFIX.removeprefix("/dashboard/" if below else "/")
    text = path.read_bytes() if path.is_file() else b"<!doctype html><title>dspool</title>"
    return _pack(text.replace(PLACEHOLDER, f"{folder}/{version()}".encode()), TYPES[".html"])


def serve_shell(request: Request) -> Response:
    below = str(request.scope["path"]).endswith("/")
    return _answer(request, shell(below=below), _ASK_AGAIN, POLICY, _REFERRER)


def serve(request: Request, asked: str, name: str) -> Response:
    """The file `name`. Kept for ever under the present version; under another one it is not kept.

    Raises:
        RouteNotFound: there is no such file.
    """
    file = files().get(name)
    if file is None:
        raise RouteNotFound(f"the dashboard has no file {name[:100]!r}")
    return _answer(request, file, _FOR_EVER if asked == version() else _ASK_AGAIN, POLICY)


def _answer(request: Request, file: Packed, *headers: tuple[bytes, bytes]) -> Response:
    headers = ((b"etag", file.etag), VARY, *headers)
    if file.etag in request.headers.get(b"if-none-match", b""):
        return Response(304, b"", file.type, headers)
    if file.packed is not None and takes_gzip(request):
        return Response(200, file.packed, file.type, (*headers, (b"content-encoding", b"gzip")))
    return Response(200, file.body, file.type, headers)


def _pack(body: bytes, kind: bytes) -> Packed:
    packed = gzip.compress(body, 9, mtime=0) if len(body) >= SMALLEST_PACKED else None
    etag = b'"%s"' % hashlib.sha256(body).hexdigest()[:20].encode()
    return Packed(body, packed if packed and len(packed) < len(body) else None, etag, kind)


__all__ = ["POLICY", "VENDOR", "files", "serve", "serve_shell", "shell", "version"]
