"""What a request that changes something has to show, so that no page of another site can send it for a visitor."""

from __future__ import annotations

import hmac
from typing import Any, Final
from urllib.parse import urlsplit

from dspool.errors import NotAllowed
from dspool_console.dashboard.context import ConsoleContext
from dspool_serve.http.requests import Request
from dspool_serve.http.routing import Handler

HEADER: Final = b"x-dspool-csrf"


class CsrfRefused(NotAllowed):
    """The request does not prove that it comes from the dashboard's own page."""

    code = "csrf"


def guarded(handler: Handler, *, any_word: bool = False) -> Handler:
    """`handler`, for requests of the dashboard's own page only. A bearer token is proof enough: no browser adds one.

    Args:
        any_word: there is no session yet whose word could be repeated. That there is a header of this name at all,
            which no form can send and no other origin may, is the guard then.
    """

    async def guard(context: ConsoleContext, request: Request) -> Any:
        if b"authorization" not in request.headers:
            same_origin(request)
            given = request.headers.get(HEADER, b"")
            wanted = context.dashboard.logins.csrf(request.login).encode()
            if not (given if any_word else hmac.compare_digest(given, wanted)):
                raise CsrfRefused(
                    "x-dspool-csrf must hold the word that GET /dashboard/api/me gives; load the page again"
                )
        return await handler(context, request)

    return guard


def same_origin(request: Request) -> None:
    """Raises: CsrfRefused: a browser says that another page sent this."""
    site = request.headers.get(b"sec-fetch-site")
    if site is not None and site not in (b"same-origin", b"none"):
        raise CsrfRefused("requests from pages of other origins are refused")
    origin = request.headers.get(b"origin")
    if origin is not None:
        # Behind a proxy the scheme may be another; host and port are what the browser was told.
        host = urlsplit(origin.decode("latin-1")).netloc
        if host.lower().encode("latin-1") != request.headers.get(b"host", b"").lower():
            raise CsrfRefused("requests from pages of other origins are refused")


__all__ = ["HEADER", "CsrfRefused", "guarded", "same_origin"]
