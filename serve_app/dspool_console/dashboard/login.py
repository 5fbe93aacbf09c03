"""The page, its files, and who may pass: logging in and out."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import msgspec

import dspool
from dspool.errors import PoolError, RateLimited, Unauthenticated
from dspool_console.dashboard import files
from dspool_console.dashboard.context import ConsoleContext
from dspool_console.dashboard.csrf import guarded
from dspool_serve.access.logins import cookie_of, end
from dspool_serve.http.requests import Login, Request, decode
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

WRONG_AT_ONCE: Final = 20
WRONG_IN_S: Final = 60.0
"""So many wrong tokens in this time, whoever sends them; guessing 256 random bits is hopeless all the same."""

_encode = msgspec.json.Encoder().encode


class LoginRequest(msgspec.Struct, forbid_unknown_fields=True):
    token: str


_login_body = msgspec.json.Decoder(LoginRequest)


async def shell(context: ConsoleContext, request: Request) -> Response:
    return files.serve_shell(request)


async def static(context: ConsoleContext, request: Request) -> Response:
    params = request.params
    name = f"{params['file']}/{params['inner']}" if "inner" in params else params["file"]
    return files.serve(request, request.params["version"], name)


async def me(context: ConsoleContext, request: Request) -> Response:
    """Who looks, and the word that their requests must repeat. A login in use is prolonged here."""
    tokens = context.security.tokens
    if tokens is None:
        return Response(200, _encode(_about(context, None, "local", "admin")))
    logins = context.dashboard.logins
    login = logins.recognise(cookie_of(request.headers.get(b"cookie")), tokens.current())
    if login is None:
        return Response(200, _encode(_nobody()))
    longer = logins.renewed(login)
    headers = (
        () if longer is None else ((b"set-cookie", logins.cookie(longer, secure=_secure(context, request))),)
    )
    return Response(200, _encode(_of(context, longer or login)), headers=headers)


async def login(context: ConsoleContext, request: Request) -> Response:
    tokens = context.security.tokens
    if tokens is None:
        return Response(200, _encode(_about(context, None, "local", "admin")))
    now, wrong = time.monotonic(), context.dashboard.wrong_logins
    while wrong and now - wrong[0] >= WRONG_IN_S:
        wrong.popleft()
    if len(wrong) >= WRONG_AT_ONCE:
        raise RateLimited("too many wrong tokens; wait", retry_after_s=WRONG_IN_S - (now - wrong[0]))
    asked = decode(_login_body, await request.body(4096))
    token = tokens.current().recognise(asked.token.strip().encode(), now=time.time())
    if token is None:
        wrong.append(now)
        context.security.audit.login(request, "reader", "unauthenticated")
        raise Unauthenticated("this access token is not valid here")
    request.principal = token.name
    context.security.audit.login(request, token.role)
    login = context.dashboard.logins.begin(token)
    cookie = context.dashboard.logins.cookie(login, secure=_secure(context, request))
    return Response(200, _encode(_of(context, login)), headers=((b"set-cookie", cookie),))


async def logout(context: ConsoleContext, request: Request) -> Response:
    return Response(204, b"", headers=((b"set-cookie", end(secure=_secure(context, request))),))


async def audit(context: ConsoleContext, request: Request) -> Response:
    limit = int(request.query(frozenset({"limit"})).get("limit", "200")[:4])
    records = await asyncio.to_thread(context.security.audit.newest, max(1, min(1000, limit)))
    return Response(200, _encode({"records": records or [], "file": records is not None}))


def _nobody() -> dict[str, Any]:
    return {
        "login_needed": True,
        "principal": None,
        "role": None,
        "csrf": None,
        "expires_at": None,
        "pools": [],
    }


def _of(context: ConsoleContext, login: Login) -> dict[str, Any]:
    return _about(context, login, login.token.name, login.token.role)


def _about(context: ConsoleContext, login: Login | None, principal: str, role: str) -> dict[str, Any]:
    ray_dashboard, content = None, False
    for name in context.dashboard.names():
        try:
            pool = context.dashboard.of(name).pool
        except PoolError:
            continue
        ray_dashboard = ray_dashboard or pool.ray_dashboard
        content = content or pool.config.telemetry.capture_content
    return {
        "login_needed": False,
        "principal": principal,
        "role": role,
        "csrf": context.dashboard.logins.csrf(login),
        "expires_at": None if login is None else login.ends,
        "version": str(getattr(dspool, "__version__", "0")),
        "pools": context.dashboard.names(),
        "ray_dashboard": ray_dashboard,
        "content_capture": content,
    }


def _secure(context: ConsoleContext, request: Request) -> bool:
    return context.settings.tls or request.headers.get(b"x-forwarded-proto") == b"https"


_API: Final = "/dashboard/api"

LOGIN: Final = (
    Route("GET", "/dashboard", shell, "The dashboard", media="text/html", role=None),
    Route("GET", "/dashboard/", shell, "The dashboard", media="text/html", role=None),
    Route("GET", "/dashboard/static/{version}/{file}", static, "A file of the dashboard", role=None),
    Route("GET", "/dashboard/static/{version}/{file}/{inner}", static, "A file of the dashboard", role=None),
    Route("GET", f"{_API}/me", me, "Who looks", role=None),
    Route("POST", f"{_API}/login", guarded(login, any_word=True), "Log in with a token", role=None),
    # Ending one's own login does no harm, and must be possible when it is over already.
    Route("POST", f"{_API}/logout", guarded(logout, any_word=True), "Log out", role=None),
    Route("GET", f"{_API}/audit", audit, "Who did or tried what needs an admin"),
)

__all__ = ["LOGIN"]
