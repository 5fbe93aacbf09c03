"""What a browser must show to change something, so that no page of another site can send it for a visitor."""

from __future__ import annotations

import hmac
from typing import Final
from urllib.parse import urlsplit

from dspool.errors import NotAllowed
from dspool_serve.access.logins import Logins
from dspool_serve.http.requests import Request

HEADER: Final = b"x-dspool-csrf"
SAFE: Final = ("GET", "HEAD")
"""Methods that change nothing."""


class CsrfRefused(NotAllowed):
    """The request does not prove that it comes from the dashboard's own page."""

    code = "csrf"


def check_login(request: Request, logins: Logins) -> None:
    """Refuse what a login's own page did not send. Raises: CsrfRefused."""
    same_origin(request)
    if not hmac.compare_digest(request.headers.get(HEADER, b""), logins.csrf(request.login).encode()):
        raise CsrfRefused(
            "x-dspool-csrf must hold the word that GET /dashboard/me gives; load the page again"
        )


def same_origin(request: Request) -> None:
    """Raises: CsrfRefused: a browser says that another page sent this."""
    site = request.headers.get(b"sec-fetch-site")
    if site is not None and site not in (b"same-origin", b"none"):
        raise CsrfRefused("requests from pages of other origins are refused")
    origin = request.headers.get(b"origin")
    if origin is not None:
        # Behind a proxy the scheme may be another; host and port are what the browser was told.
        try:
            host = urlsplit(origin.decode("latin-1")).netloc
        except ValueError:
            raise CsrfRefused("the origin of this request cannot be read") from None
        if host.lower().encode("latin-1") != request.headers.get(b"host", b"").lower():
            raise CsrfRefused("requests from pages of other origins are refused")


__all__ = ["HEADER", "SAFE", "CsrfRefused", "check_login", "same_origin"]
