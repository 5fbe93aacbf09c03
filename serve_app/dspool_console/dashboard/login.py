"""The page and its files, logging in and out, and the audit log."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Final

import msgspec

from dspool.core.admission.access import Role
from dspool.errors import PoolError, RateLimited, Unauthenticated
from dspool_console.dashboard import files
from dspool_console.dashboard.service import ConsoleContext
from dspool_serve.access.csrf import HEADER, CsrfRefused, has_bearer
from dspool_serve.access.logins import cookie_of, no_cookies
from dspool_serve.api.common import answer_packed, whole_number
from dspool_serve.http.problems import problem
from dspool_serve.http.requests import Login, Request, decode
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

MAX_RECORDS: Final = 1000
MAX_BODY_BYTES: Final = 4096

_encode = msgspec.json.Encoder().encode


class AuditRecords(msgspec.Struct):
    """What admins did, and what others tried, newest first. `file` is false where nothing is written down."""

    records: list[dict[str, Any]]
    file: bool
    dropped: int
    """Records that this ingress process could not write, since it began."""


class Who(msgspec.Struct):
    """Who looks at the page, and what they may see."""

    login_needed: bool
    principal: str | None = None
    role: Role | None = None
    csrf: str | None = None
    """What requests that change something must repeat."""
    expires_at: int | None = None
    """Wall-clock seconds; None: never."""
    pools: list[str] = []


class LoginRequest(msgspec.Struct, forbid_unknown_fields=True):
    token: str


_login_body = msgspec.json.Decoder(LoginRequest)


async def home(context: ConsoleContext, request: Request) -> Response:
    """Whoever types the service's address means its dashboard. Relative, as a proxy may serve it below a path."""
    return Response(307, b"", headers=((b"location", b"dashboard"),))


async def shell(context: ConsoleContext, request: Request) -> Response:
    return files.serve_shell(request)


async def static(context: ConsoleContext, request: Request) -> Response:
    params = request.params
    name = f"{params['file']}/{params['inner']}" if "inner" in params else params["file"]
    return files.serve(request, request.params["version"], name)


async def me(context: ConsoleContext, request: Request) -> Response:
    """Who looks, and the word that their requests must repeat. A login in use is prolonged here."""
    tokens, logins = context.security.tokens, context.dashboard.logins
    if tokens is None:
        return _who(context, None)
    login = await _current(context, request)
    if login is None:
        return Response(200, _encode(Who(login_needed=True)))
    longer = logins.renewed(login)
    if longer is None:
        return _who(context, login)
    return _who(context, longer, *logins.cookies(longer, **_cookie_form(context, request)))


async def login(context: ConsoleContext, request: Request) -> Response:
    _own_page(request)
    tokens = context.security.tokens
    if tokens is None:
        return _who(context, None)
    body = decode(_login_body, await request.body(MAX_BODY_BYTES))
    token = tokens.current().recognise(body.token.strip().encode(), now=time.time())
    if token is None:
        # A right token is never made to wait for what others do; not even for what its own address did.
        wait_s = context.dashboard.wrong_logins.count(request.client, now=time.monotonic())
        problem = RateLimited.code if wait_s else Unauthenticated.code
        context.security.audit.denied(request, LOGIN, problem)
        if wait_s:
            raise RateLimited("too many wrong tokens from this address; wait", retry_after_s=wait_s)
        raise Unauthenticated("this access token is not valid here")
    request.principal = token.name
    await context.security.audit.login(request, token.role)
    logins = context.dashboard.logins
    # The one before ends with it: a browser has one.
    if (before := await _current(context, request)) is not None:
        with contextlib.suppress(PoolError):
            await logins.end(before)
    login = logins.begin(token)
    return _who(context, login, *logins.cookies(login, **_cookie_form(context, request)))


async def logout(context: ConsoleContext, request: Request) -> Response:
    # Ending one's own login does no harm, and must be possible when it is over already.
    _own_page(request)
    answer = Response(204, b"")
    if (login := await _current(context, request)) is not None:
        request.principal = login.token.name
        try:
            await context.dashboard.logins.end(login)
        except PoolError as failed:
            # The browser forgets it in any case; that others may not have heard of it is said.
            answer = problem(failed)
        await context.security.audit.login(request, login.token.role, answer.status)
    return answer._replace(headers=(*answer.headers, *no_cookies(**_cookie_form(context, request))))


async def _current(context: ConsoleContext, request: Request) -> Login | None:
    """The login that the request came with."""
    tokens, logins = context.security.tokens, context.dashboard.logins
    if tokens is None:
        return None
    await logins.refresh()
    return logins.recognise(cookie_of(request.headers.get(b"cookie")), tokens.current())


def _own_page(request: Request) -> None:
    """There is no login yet whose word could be repeated. That there is a header of this name at all, which no form can
    send and no other origin may, is the guard then. Raises: CsrfRefused.
    """
    if not has_bearer(request) and not request.headers.get(HEADER):
        raise CsrfRefused(f"{HEADER.decode()} is missing; load the page again")


async def list_audit_records(context: ConsoleContext, request: Request) -> Response:
    limit = whole_number(request.query(frozenset({"limit"})), "limit", 1, MAX_RECORDS, 200) or 200
    audit = context.security.audit
    await audit.written()
    records = await asyncio.to_thread(audit.newest, limit)
    return answer_packed(request, AuditRecords(records or [], records is not None, audit.dropped))


def _who(context: ConsoleContext, login: Login | None, *headers: tuple[bytes, bytes]) -> Response:
    """The answer about `login`; None: without tokens everybody is the admin of this machine."""
    about = Who(
        login_needed=False,
        principal="local" if login is None else login.token.name,
        role="admin" if login is None else login.token.role,
        csrf=context.dashboard.logins.csrf(login),
        expires_at=None if login is None else login.ends,
        pools=context.dashboard.names(),
    )
    return Response(200, _encode(about), headers=headers)


def _cookie_form(context: ConsoleContext, request: Request) -> dict[str, Any]:
    secure = context.settings.tls or request.headers.get(b"x-forwarded-proto") == b"https"
    return {"secure": secure, "root_path": context.settings.root_path}


LOGIN: Final = Route("POST", "/dashboard/login", login, "Log in with a token", role=None)
ROUTES: Final[tuple[Route, ...]] = (
    LOGIN,
    Route("GET", "/", home, "To the dashboard", role=None),
    Route("GET", "/dashboard", shell, "The dashboard", media="text/html", role=None),
    Route("GET", "/dashboard/", shell, "The dashboard", media="text/html", role=None),
    Route("GET", "/dashboard/static/{version}/{file}", static, "A file of the dashboard", role=None),
    Route("GET", "/dashboard/static/{version}/{file}/{inner}", static, "A file of the dashboard", role=None),
    Route("GET", "/dashboard/me", me, "Who looks", role=None),
    Route("POST", "/dashboard/logout", logout, "Log out", role=None),
    Route(
        "GET",
        "/v1/audit",
        list_audit_records,
        "Who did or tried what needs an admin, newest first",
        AuditRecords,
        problems=("invalid_request",),
        query=(("limit", {"type": "integer", "minimum": 1, "maximum": MAX_RECORDS, "default": 200}),),
    ),
)

__all__ = ["ROUTES", "AuditRecords"]
