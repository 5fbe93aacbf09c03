"""A service below a path of another server: `service.root_path`.

A proxy in front takes the prefix off, or leaves it on; both arrive at the same routes. What leaves, such as a cookie's
path, has the prefix on.
"""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class UnderRoot:
    """Takes the prefix off paths that still have it. The prefix alone, without a slash, leads to the first page."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root = root_path.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raw: bytes = scope.get("raw_path") or scope["path"].encode()
            if raw == self._root:
                # Relative links of the pages need the slash.
                return await RedirectResponse(f"{self._root.decode()}/")(scope, receive, send)
            if raw.startswith(self._root + b"/"):
                path = scope["path"].removeprefix(self._root.decode())
                scope = {**scope, "raw_path": raw.removeprefix(self._root), "path": path}
        return await self._app(scope, receive, send)


__all__ = ["UnderRoot"]
