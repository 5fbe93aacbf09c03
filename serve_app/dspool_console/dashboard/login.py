"""The page, its files, and who may pass: logging in and out."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

import dspool
from dspool.errors import PoolError, RateLimited, Unauthenticated
from dspool_console.dashboard import files
from dspool_console.dashboard.csrf import guarded
from dspool_serve.access.logins import Session, cookie_of, end
from dspool_serve.http.bodies import decode
from dspool_serve.http.requests import Request, Response
from dspool_serve.http.routing import Route

if TYPE_CHECKING:
    from dspool_serve.api.application import Application

WRONG_AT_ONCE: Final = 20
WRONG_IN_S: Final = 60.0
"""So many wrong tokens in this time, whoever sends them; guessing 256 random bits is hopeless all the same."""

_encode = msgspec.json.Encoder().encode


class LoginRequest(msgspec.Struct, forbid_unknown_fields=True):
    token: str


_login_body = msgspec.json.Decoder(LoginRequest)


async def shell(app: Application, request: Request) -> Response:
    return files.serve_shell(request)


async def static(app: Application, request: Request) -> Response:
    params = request.params
    name = f"{params['file']}/{params['inner']}" if "inner" in params else params["file"]
    return files.serve(request, request.params["version"], name)


async def me(app: Application, request: Request) -> Response:
    """Who looks, and the word that their requests must repeat. A session in use is prolonged here."""
    tokens = app.security.tokens
    if tokens is None:
        return Response(200, _encode(_about(app, None, "local", "admin")))
    sessions = app.dashboard.sessions
    session = sessions.recognise(cookie_of(request.headers.get(b"cookie")), tokens.current())
    if session is None:
        return Response(200, _encode(_nobody()))
    longer = sessions.renewed(session)
    headers = (
        () if longer is None else ((b"set-cookie", sessions.cookie(longer, secure=_secure(app, request))),)
    )
    return Response(200, _encode(_of(app, longer or session)), headers=headers)


async def login(app: Application, request: Request) -> Response:
    tokens = app.security.tokens
    if tokens is None:
        return Response(200, _encode(_about(app, None, "local", "admin")))
    now, wrong = time.monotonic(), app.dashboard.wrong_logins
    while wrong and now - wrong[0] >= WRONG_IN_S:
        wrong.popleft()
    if len(wrong) >= WRONG_AT_ONCE:
        raise RateLimited("too many wrong tokens; wait", retry_after_s=WRONG_IN_S - (now - wrong[0]))
    asked = decode(_login_body, await request.body(4096))
    token = tokens.current().recognise(asked.token.strip().encode(), now=time.time())
    if token is None:
        wrong.append(now)
        app.security.audit.login(request, "reader", "unauthenticated")
        raise Unauthenticated("this access token is not valid here")
    request.principal = token.name
    app.security.audit.login(request, token.role)
    session = app.dashboard.sessions.begin(token)
    cookie = app.dashboard.sessions.cookie(session, secure=_secure(app, request))
    return Response(200, _encode(_of(app, session)), headers=((b"set-cookie", cookie),))


async def logout(app: Application, request: Request) -> Response:
    return Response(204, b"", headers=((b"set-cookie", end(secure=_secure(app, request))),))


async def audit(app: Application, request: Request) -> Response:
    limit = int(request.query(frozenset({"limit"})).get("limit", "200")[:4])
    records = await asyncio.to_thread(app.security.audit.newest, max(1, min(1000, limit)))
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


def _of(app: Application, session: Session) -> dict[str, Any]:
    return _about(app, session, session.token.name, session.token.role)


def _about(app: Application, session: Session | None, principal: str, role: str) -> dict[str, Any]:
    ray_dashboard, content = None, False
    for name in app.dashboard.names():
        try:
            insight = app.dashboard.of(name).insight
        except PoolError:
            continue
        ray_dashboard = ray_dashboard or insight.ray_dashboard
        content = content or insight.config.telemetry.capture_content
    return {
        "login_needed": False,
        "principal": principal,
        "role": role,
        "csrf": app.dashboard.sessions.csrf(session),
        "expires_at": None if session is None else session.ends,
        "version": str(getattr(dspool, "__version__", "0")),
        "pools": app.dashboard.names(),
        "ray_dashboard": ray_dashboard,
        "content_capture": content,
    }


def _secure(app: Application, request: Request) -> bool:
    return app.settings.tls or request.headers.get(b"x-forwarded-proto") == b"https"


_API: Final = "/dashboard/api"

DOORS: Final = (
    Route("GET", "/dashboard", shell, "The dashboard", media="text/html"),
    Route("GET", "/dashboard/", shell, "The dashboard", media="text/html"),
    Route("GET", "/dashboard/static/{version}/{file}", static, "A file of the dashboard"),
    Route("GET", "/dashboard/static/{version}/{file}/{inner}", static, "A file of the dashboard"),
    Route("GET", f"{_API}/me", me, "Who looks"),
    Route("POST", f"{_API}/login", guarded(login, any_word=True), "Begin a session with a token"),
    # Ending one's own session does no harm, and must be possible when it is over already.
    Route("POST", f"{_API}/logout", guarded(logout, any_word=True), "End the session"),
    Route("GET", f"{_API}/audit", audit, "Who did or tried what needs an admin"),
)

__all__ = ["DOORS"]
