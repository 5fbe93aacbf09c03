"""Who a request comes from, and whether they may do it.

Without tokens (possible on loopback only) everybody is the admin `local`, and nothing of this is on the way of an
operation but a look at the `Host` header. With tokens each route's handler is wrapped once, when the application is
made.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import msgspec

from dspool.core.admission.access import ROLES, Role, Token, allowed
from dspool.core.admission.fair import Priority
from dspool.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotAllowed,
    Unauthenticated,
)
from dspool.tokens import TokenSource
from dspool_serve.access.audit import Audit
from dspool_serve.access.callers import Admissions, Caller, CallerPool
from dspool_serve.access.cors import API
from dspool_serve.access.csrf import SAFE, check_word, has_bearer, refuse_other_pages, require_json
from dspool_serve.access.deeds import recorded
from dspool_serve.access.logins import Logins, cookie_of
from dspool_serve.access.streams import MAX_EACH, MAX_OPEN, OpenStreams, Right
from dspool_serve.context import Context
from dspool_serve.http.event_stream import EVENT_STREAM, EventStream
from dspool_serve.http.requests import Request
from dspool_serve.http.routing import Handler, Route

TIMEOUT: Final = b"x-dspool-timeout-seconds"
"""What HAProxy makes of `x-request-timeout-seconds`: Serve would answer that one itself, in plain text."""
_TIMEOUT_PLAIN: Final = b"x-request-timeout-seconds"
_PRIORITY: Final = b"x-dspool-priority"
_GRACE_S: Final = 0.1
"""The pool's own deadline speaks first: it knows whether the operation had started."""
_HOSTS_KEPT: Final = 64
_API: Final = "/v1/"
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")


class Security:
    """What stands between the router and the handlers.

    Args:
        tokens: None leaves the doors open, for loopback.
        hosts: without tokens, the names under which the service may be addressed; None is any. A web page whose name
            was made to point at 127.0.0.1 is of the "same site" for the browser, and only its `Host` gives it away.
        origins: pages of other origins that may use the API.
        max_waiting: requests of one token that wait while others have their turn.
        max_streams, max_streams_each: event streams that are open at once, in all and of one principal.
    """

    def __init__(
        self,
        tokens: TokenSource | None = None,
        *,
        hosts: Iterable[str] | None = None,
        origins: Iterable[str] = (),
        audit: Audit | None = None,
        max_waiting: int = 256,
        max_streams: int = MAX_OPEN,
        max_streams_each: int = MAX_EACH,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.tokens = tokens
        self._hosts = None if hosts is None else {name.lower().encode() for name in hosts}
        self._hosts_seen: set[bytes] = set()
        self._origins = frozenset(origin.encode() for origin in origins)
        self.audit = audit or Audit(None)
        self.logins: Logins | None = None
        """Set by the console: who logged in there, which counts below `/v1/` only."""
        self.streams = OpenStreams(max_streams, max_streams_each, tokens=tokens, wall=wall)
        self.waits = OpenStreams(2 * max_streams, 2 * max_streams_each)
        """Questions for news that wait. A stream has one, and leaves it behind for some seconds when it ends."""
        self._max_waiting = max_waiting
        self._wall = wall
        self._views: dict[tuple[str, Priority], tuple[Token, Context]] = {}
        self._admissions: Admissions = {}

    def secured(self, routes: Iterable[Route]) -> tuple[Route, ...]:
        """The same routes, with handlers that look at who asks first."""
        return tuple(route._replace(handler=self._wrapped(route)) for route in routes)

    def _wrapped(self, route: Route) -> Handler:
        need = route.role
        handler = route.handler
        if route.method not in SAFE:
            handler = self._guarded(handler, with_word=need is not None, form=route.takes_form)
        if route.stream or route.media == EVENT_STREAM.decode():
            handler = self._streaming(handler)
        if need == "admin" and route.method not in SAFE:
            handler = recorded(self.audit, route, handler)
        handler = _timely(handler)
        if self.tokens is not None and need is not None:
            handler = self._authorised(route, need, handler)
        elif self.tokens is not None and route.knows_caller:
            handler = self._recognising(handler)
        return self._shielded(route, handler)

    def _authorised(self, route: Route, need: Role, handler: Handler) -> Handler:
        # An admin may mean another's session, as `principal/id`: that is an admin's deed on a caller's route.
        over_others = (
            recorded(self.audit, route, handler) if "{session}" in route.path and need != "admin" else None
        )

        async def authorised(context: Context, request: Request) -> Any:
            if self.logins is not None and b"authorization" not in request.headers:
                await self.logins.refresh()
            token = self.identify(request)
            request.token, request.principal, request.role = token, token.name, token.role
            if not allowed(token.role, need):
                self.audit.denied(request, route, NotAllowed.code, role=token.role, needs=need)
                raise NotAllowed(
                    f"{token.name} is a {token.role}; this needs {' or '.join(ROLES[ROLES.index(need) :])}",
                    needs=need,
                )
            theirs = over_others is not None and token.role == "admin" and "/" in request.params["session"]
            serve = over_others if over_others is not None and theirs else handler
            view = self._view(context, token, _priority(request, token))
            if token.limited and route.method not in SAFE and "{pool}" in route.path:
                pool = view.caller(request.params["pool"])
                assert isinstance(pool, CallerPool)
                await pool.begin()
            return await serve(view, request)

        return authorised

    def _recognising(self, handler: Handler) -> Handler:
        def recognising(context: Context, request: Request) -> Any:
            try:
                self.identify(request)
            except Unauthenticated:
                request.is_stranger = True
            return handler(context, request)

        return recognising

    def identify(self, request: Request) -> Token:
        """Whose request it is.

        Raises:
            Unauthenticated: no token, or none of ours (also an expired one): the answer does not say which.
        """
        assert self.tokens is not None
        if self.logins is not None and b"authorization" not in request.headers:
            return self._of_login(request)
        scheme, _, presented = request.headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthenticated("send an access token: `Authorization: Bearer dsp_...`")
        token = self.tokens.current().recognise(presented.strip(), now=self._wall())
        if token is None:
            raise Unauthenticated("this access token is not valid here")
        return token

    def _of_login(self, request: Request) -> Token:
        path = request.scope["path"]
        if path.startswith(_API) and self.logins is not None and self.tokens is not None:
            cookie = cookie_of(request.headers.get(b"cookie"))
            request.login = self.logins.recognise(cookie, self.tokens.current())
            if request.login is not None:
                return request.login.token
            raise Unauthenticated("log in with an access token")
        raise Unauthenticated("send an access token: `Authorization: Bearer dsp_...`")

    def _guarded(self, handler: Handler, *, with_word: bool, form: bool) -> Handler:
        """`handler`, which changes something, for no browser that another page may have sent.

        A bearer token is proof enough, as browsers add none by themselves; they do add what belongs to other schemes.
        """
        by_login = with_word and self.tokens is not None

        def guarded(context: Context, request: Request) -> Any:
            if self.tokens is None or not has_bearer(request):
                require_json(request, or_form=form)
                if by_login and self.logins is not None:
                    check_word(request, self.logins)
            return handler(context, request)

        return guarded

    def _shielded(self, route: Route, handler: Handler) -> Handler:
        """`handler`, for no page of another origin, whatever it asks, and under no name that is not ours."""
        hosts, seen, trust_bearer = self._hosts, self._hosts_seen, self.tokens is not None
        welcome = self._origins if route.path.startswith(API) else frozenset()

        def shielded(context: Context, request: Request) -> Any:
            headers = request.headers
            if hosts is not None and (host := headers.get(b"host", b"")) not in seen:
                self._check_host(host)
            if (b"sec-fetch-site" in headers or b"origin" in headers) and headers.get(
                b"origin"
            ) not in welcome:
                try:
                    refuse_other_pages(request, trust_bearer=trust_bearer)
                except NotAllowed as refused:
                    if route.role == "admin":
                        self.audit.denied(request, route, refused.code)
                    raise
            return handler(context, request)

        return shielded

    def _streaming(self, handler: Handler) -> Handler:
        """`handler`, which may answer with a stream: that ends with the right to it, and there are only so many."""
        streams = self.streams

        async def streaming(context: Context, request: Request) -> Any:
            principal = request.principal or "local"
            streams.enter(principal)
            answer = None
            try:
                answer = await handler(context, request)
            finally:
                if not isinstance(answer, EventStream):
                    streams.leave(principal)
            if isinstance(answer, EventStream):
                answer.on_end.append(lambda: streams.leave(principal))
                if request.token is not None:
                    streams.watch(answer, Right(request.token, request.login), self.logins)
            return answer

        return streaming

    def _view(self, context: Context, token: Token, priority: Priority) -> Context:
        """What the holder of `token` gets: its own sessions, its share of the pool."""
        known = self._views.get((token.id, priority))
        if known is not None and known[0] is token:
            return known[1]
        caller = Caller(context.pools, token, priority, self._admissions, max_waiting=self._max_waiting)
        view = replace(context, caller=caller.pool)
        self._views[token.id, priority] = (token, view)
        return view

    def _check_host(self, host: bytes) -> None:
        name = host.lower()
        if not name.endswith(b"]"):
            before, colon, port = name.rpartition(b":")
            name = before if colon and port.isdigit() else name
        assert self._hosts is not None
        if name not in self._hosts:
            raise NotAllowed(
                "without access tokens this service answers to its loopback name only; "
                "send `Host: localhost`, or give it tokens"
            )
        if len(self._hosts_seen) < _HOSTS_KEPT:
            self._hosts_seen.add(host)


def _priority(request: Request, token: Token) -> Priority:
    asked = request.headers.get(_PRIORITY)
    if asked is None:
        return token.priority
    if asked not in (b"interactive", b"batch"):
        raise InvalidRequest("x-dspool-priority is interactive or batch")
    # A token for batch work stays behind whatever it says.
    return "batch" if asked == b"batch" or token.priority == "batch" else "interactive"


def _timely(handler: Handler) -> Handler:
    def timely(context: Context, request: Request) -> Any:
        headers = request.headers
        if TIMEOUT in headers or _TIMEOUT_PLAIN in headers:
            return _within(handler, context, request)
        return handler(context, request)

    return timely


async def _within(handler: Handler, context: Context, request: Request) -> Any:
    raw = request.headers.get(TIMEOUT) or request.headers.get(_TIMEOUT_PLAIN) or b""
    try:
        seconds = float(raw)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest("x-request-timeout-seconds is a positive number of seconds")
    settings = context.settings
    if seconds >= settings.operation_timeout_s:
        return await handler(context, request)
    view = replace(context, settings=msgspec.structs.replace(settings, operation_timeout_s=seconds))
    until = asyncio.get_running_loop().time() + seconds + _GRACE_S
    try:
        async with asyncio.timeout_at(until):
            answer = await handler(view, request)
    except TimeoutError:
        raise DeadlineExceeded(f"not answered within the {seconds:g} s that the request allowed") from None
    if isinstance(answer, EventStream):
        answer.until = until
    return answer


__all__ = ["LOOPBACK_NAMES", "Security"]
