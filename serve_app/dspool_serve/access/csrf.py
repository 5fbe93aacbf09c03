"""What keeps pages of other origins from using the service through a visitor's browser.

A browser says by itself which page a request comes from, adds cookies, and sends forms and plain text anywhere; it adds
no bearer token, and asks before it sends JSON or a header of ours to another origin, to which nobody here says yes.
"""

from __future__ import annotations

import hmac
import re
from typing import Final

from dspool.errors import NotAllowed
from dspool_serve.access.logins import Logins
from dspool_serve.http.forms import FORM
from dspool_serve.http.problems import UnsupportedBody
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import JSON_TYPE

HEADER: Final = b"x-dspool-csrf"
SAFE: Final = ("GET", "HEAD")
"""Methods that change nothing."""
_CHARSET: Final = re.compile(rb"""charset\s*=\s*["']?([^\s"';]+)""")
_UNICODE: Final = (b"utf-8", b"utf8", b"us-ascii", b"ascii")
_OWN: Final = (b"same-origin", b"none")


class CsrfRefused(NotAllowed):
    """The request does not prove that it comes from the dashboard's own page."""

    code = "csrf"


def has_bearer(request: Request) -> bool:
    """Whether a bearer token came with it, right or wrong: no browser adds one by itself."""
    return request.headers.get(b"authorization", b"")[:7].lower() == b"bearer "


def refuse_other_pages(request: Request, *, trust_bearer: bool) -> None:
    """Refuse what a browser says that a page of another origin sent, also what only reads: it could be counted, timed
    or shown in a frame. Programs send none of these headers.

    With `trust_bearer`, the origin of a request with a bearer token does not count: a proxy may have changed `Host`.

    Raises:
        NotAllowed: another site. CsrfRefused: another origin, such as another port of this machine.
    """
    headers = request.headers
    site = headers.get(b"sec-fetch-site")
    if site is not None and site not in _OWN:
        if site == b"cross-site":
            raise NotAllowed("requests from pages of other sites are refused")
        # A link to the dashboard, and the frame that Ray's own dashboard shows: pages that nobody else can read.
        if headers.get(b"sec-fetch-mode") != b"navigate" or request.scope["method"] not in SAFE:
            raise CsrfRefused("requests from pages of other origins are refused")
    origin = headers.get(b"origin")
    if origin is None or (trust_bearer and has_bearer(request)):
        return
    # Behind a proxy the scheme may be another; host and port are what the browser was told.
    scheme, _, host = origin.partition(b"://")
    if scheme not in (b"http", b"https") or host.lower() != headers.get(b"host", b"").lower():
        raise CsrfRefused("requests from pages of other origins are refused")


def require_json(request: Request, *, or_form: bool = False) -> None:
    """With `or_form` a form will do, for what is no browser, or one that says that its own page sends it: an old one
    sends forms anywhere and says nothing.

    Raises: UnsupportedBody: there is a body, and it is not said to be JSON, or said to be compressed.
    """
    headers = request.headers
    if not request.has_body:
        return
    request.refuse_compressed()
    kind, _, parameters = headers.get(b"content-type", b"").lower().partition(b";")
    kind = kind.strip()
    if kind == JSON_TYPE:
        if (charset := _CHARSET.search(parameters)) is not None and charset[1] not in _UNICODE:
            raise UnsupportedBody("JSON is text in UTF-8 (RFC 8259): send it so, and name no other `charset`")
        return
    is_browser = headers.get(b"user-agent", b"").startswith(b"Mozilla")
    if or_form and kind == FORM and (not is_browser or headers.get(b"sec-fetch-site") == b"same-origin"):
        return
    raise UnsupportedBody("send `Content-Type: application/json` with the body")


def check_word(request: Request, logins: Logins) -> None:
    """Refuse what a login's own page did not send. Raises: CsrfRefused."""
    if not hmac.compare_digest(request.headers.get(HEADER, b""), logins.csrf(request.login).encode()):
        raise CsrfRefused(
            "x-dspool-csrf must hold the word that GET /dashboard/me gives; load the page again"
        )


__all__ = [
    "HEADER",
    "SAFE",
    "CsrfRefused",
    "check_word",
    "has_bearer",
    "refuse_other_pages",
    "require_json",
]
