"""The dashboard's actions: the handlers of the API behind the guard of the page. Admins only, and written down."""

from __future__ import annotations

from typing import Final

import msgspec

from dspool_console.dashboard.common import POOL, answer, watched
from dspool_console.dashboard.context import ConsoleContext
from dspool_console.dashboard.csrf import guarded
from dspool_serve.api.common import optional_body
from dspool_serve.api.pool import pause_pool, resize_pool, resume_pool
from dspool_serve.api.programs import roll_back_pool_program
from dspool_serve.api.schema import WarmRequest, WorkerGone
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Handler, Route

GONE_S: Final = 2.0
"""How long a page waits to hear that a worker is gone; it goes on in any case."""
_warm_body = msgspec.json.Decoder(WarmRequest)


async def warm(context: ConsoleContext, request: Request) -> Response:
    """Begins a warm-up; the live stream tells how it goes."""
    asked = await optional_body(context, request, _warm_body, WarmRequest())
    progress = watched(context, request).pool.stream_warm(asked.strategy)
    # Refused before its first step, or begun: then it goes on whoever looks.
    await anext(progress)
    await progress.aclose()
    return answer(request, {"started": True})


async def drain(context: ConsoleContext, request: Request) -> Response:
    worker = request.params["worker"]
    gone = await watched(context, request).pool.drain(worker, wait_s=GONE_S)
    return answer(request, WorkerGone(worker, gone))


async def restart(context: ConsoleContext, request: Request) -> Response:
    worker = request.params["worker"]
    gone = await watched(context, request).pool.restart(worker, wait_s=GONE_S)
    return answer(request, WorkerGone(worker, gone))


async def end_session(context: ConsoleContext, request: Request) -> Response:
    """Also another's: the id is the one that the list shows."""
    await watched(context, request).pool.end_session(request.params["session"])
    return Response(204, b"")


def _action(method: str, path: str, handler: Handler, summary: str) -> Route:
    return Route(method, f"{POOL}/{path}", guarded(handler), summary)


ACTING: Final = (
    _action("POST", "resize", resize_pool, "Set the desired size"),
    _action("POST", "pause", pause_pool, "Refuse new operations"),
    _action("POST", "resume", resume_pool, "Take operations again"),
    _action("POST", "warm", warm, "Run the warm-up steps again"),
    _action("POST", "workers/{worker}/drain", drain, "Take a worker out of traffic"),
    _action("POST", "workers/{worker}/restart", restart, "Replace a worker"),
    _action("POST", "programs/{program}/rollback", roll_back_pool_program, "Go back to an earlier version"),
    _action("DELETE", "sessions/{session}", end_session, "End a session"),
)

__all__ = ["ACTING"]
