"""`serve-lean-request`: what a Serve replica does around each request that HAProxy sends it.

Serve 2.60 looks up the request's route, session and model in its headers, makes a context and a metadata object of
them, takes a slot that is always free, formats a log line that is not written, and notes the request in metrics of its
own. None of it is used here: the application behind it has its own routes, slots, logs and metrics. So the request goes
straight to the application. The replica still counts it as under way: it waits for those when it is to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from types import ModuleType
from typing import Any

from dspool.corrections import active

_SERVES_OWN = "/-/"

Send = Callable[[Any], Awaitable[None]]
Receive = Callable[[], Awaitable[Any]]


def install(replica: ModuleType) -> None:
    """Let the servers that replicas of this process start from now on take the short way.

    `replica` is the module `ray.serve._private.replica`.
    """
    if not active("serve-lean-request"):
        return
    serve_http = replica.start_asgi_http_server
    one_request = replica.RequestMetadata(
        request_id="",
        internal_request_id="",
        is_direct_ingress=True,
        _request_protocol=replica.RequestProtocol.HTTP,
    )

    async def start(app: Any, *options: Any, **more: Any) -> Any:
        return await serve_http(ShortWay(app, one_request), *options, **more)

    replica.start_asgi_http_server = start  # type: ignore[attr-defined]


class ShortWay:
    """Instead of `app`, a replica's bound method that serves a request as Serve does."""

    def __init__(self, app: Any, one_request: Any) -> None:
        self._serves_way = app
        self._replica = app.__self__
        self._one_request = one_request

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        replica = self._replica
        if scope["type"] != "http" or not self._is_ours(scope):
            await self._serves_way(scope, receive, send)
            return
        counts = replica._metrics_manager
        counts.inc_num_ongoing_requests(self._one_request)
        try:
            # When its connection ends. uvicorn would log it.
            with contextlib.suppress(asyncio.CancelledError):
                await replica._user_callable_asgi_app(scope, receive, send)
        finally:
            counts.dec_num_ongoing_requests(self._one_request)

    def _is_ours(self, scope: MutableMapping[str, Any]) -> bool:
        replica = self._replica
        return (
            replica._route_prefix == "/"
            and not scope["path"].startswith(_SERVES_OWN)
            and not replica._user_callable_wrapper._run_user_code_in_separate_thread
        )


__all__ = ["ShortWay", "install"]
