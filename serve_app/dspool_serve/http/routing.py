"""The table of routes, and which of them a path means: a tree of segments, walked once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote

from dspool.core.admission.access import Role
from dspool.messages.limits import MAX_PATH_NAME
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.problems import MalformedRequest, MethodNotAllowed, RouteNotFound
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response

Handler = Callable[[Any, Request], Awaitable[Response | EventStream]]


class Route(NamedTuple):
    """One route: what serves it, and what the OpenAPI document says about it."""

    method: str
    path: str
    handler: Handler
    summary: str
    answer: Any = None
    takes: Any = None
    status: int = 200
    problems: tuple[str, ...] = ()
    query: tuple[tuple[str, dict[str, Any]], ...] = ()
    stream: str = ""
    """The kind of events it sends ("program", "warm", "events"); `answer` is then what its last or only event holds."""
    body_optional: bool = False
    media: str = "application/json"
    role: Role | None = "admin"
    """The least role that may use it; None is open to everybody who reaches the port."""
    takes_form: bool = False
    """Its inputs may come as a form, with files."""
    knows_caller: bool = False
    """Open to everybody, but it tells strangers less: where there are tokens, it looks for one."""


class _Node:
    __slots__ = ("children", "parameter", "routes")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.parameter: tuple[str, _Node] | None = None
        """Its name, and what comes after it."""
        self.routes: dict[str, Route] = {}
        """By method."""


class Router:
    def __init__(self, routes: Iterable[Route]) -> None:
        self._root = _Node()
        for route in routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        node = self._root
        # A trailing slash is a segment of its own, and another route than the path without.
        for segment in route.path.split("/")[1:]:
            if segment.startswith("{"):
                if node.parameter is None:
                    node.parameter = (segment[1:-1], _Node())
                node = node.parameter[1]
            else:
                node = node.children.setdefault(segment, _Node())
        node.routes[route.method] = route

    def match(self, request: Request) -> Route:
        """The route for `request`, whose `params` are filled in.

        Works on the raw path, so that an escaped slash stays inside its name.

        Raises:
            RouteNotFound, MethodNotAllowed (with `allow`), MalformedRequest (a name that cannot be read).
        """
        scope = request.scope
        raw: bytes | None = scope.get("raw_path")
        path = raw.partition(b"?")[0].decode("latin-1") if raw else str(scope["path"])
        node = self._root
        for segment in path.split("/")[1:]:
            child = node.children.get(segment)
            if child is None:
                if node.parameter is None or not segment:
                    raise RouteNotFound(f"there is nothing at {_shown(path)}; see /openapi.json")
                name, child = node.parameter
                request.params[name] = _name(segment) if "%" in segment else _checked(segment)
            node = child
        method: str = scope["method"]
        route = node.routes.get("GET" if method == "HEAD" else method)
        if route is None:
            if not node.routes:
                raise RouteNotFound(f"there is nothing at {_shown(path)}; see /openapi.json")
            allow = ", ".join(sorted(node.routes))
            raise MethodNotAllowed(f"{method[:20]} is not possible here; allowed: {allow}", allow=allow)
        return route


def _name(segment: str) -> str:
    try:
        return _checked(unquote(segment, errors="strict"))
    except UnicodeDecodeError as bad:
        raise MalformedRequest("a name in the path is not valid UTF-8") from bad


def _checked(name: str) -> str:
    if len(name) > MAX_PATH_NAME or not name.isprintable():
        raise MalformedRequest(f"a name in the path has more than {MAX_PATH_NAME} or unprintable characters")
    return name


def _shown(path: str) -> str:
    return repr(path if len(path) <= 100 else path[:100] + "...")
