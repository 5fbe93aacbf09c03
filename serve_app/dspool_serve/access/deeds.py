"""A handler whose requests are in the audit log, each once, with how it really ended."""

from __future__ import annotations

import asyncio

from dspool.errors import Cancelled, InternalError, PoolError
from dspool_serve.access.audit import Audit
from dspool_serve.context import Context
from dspool_serve.http.event_stream import EventStream, go_on
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Handler, Route

REPLAYED = (b"idempotency-replayed", b"true")
"""On an answer that was kept: what it tells of was done, and recorded, with the first request."""


def recorded(audit: Audit, route: Route, handler: Handler) -> Handler:
    """`handler`, with what it did written down before the answer goes out.

    What it began goes on when its client goes away, as a deployment does in the pool: so the record says how it ended,
    and not that nobody waited for it.
    """

    async def deed(context: Context, request: Request) -> Response | EventStream:
        try:
            answer = await handler(context, request)
        except PoolError as failed:
            await audit.failed(request, route, failed)
            raise
        except asyncio.CancelledError:
            await audit.failed(request, route, Cancelled("the operation was cancelled"))
            raise
        except BaseException as unexpected:
            await audit.failed(request, route, InternalError(type(unexpected).__name__))
            raise
        if isinstance(answer, EventStream):
            answer.on_end.append(lambda: audit.ended(request, route, answer))
        elif REPLAYED not in answer.headers:
            await audit.done(request, route, answer.status)
        return answer

    async def audited(context: Context, request: Request) -> Response | EventStream:
        work = go_on(deed(context, request))
        try:
            answer: Response | EventStream = await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_abandon)
            raise
        return answer

    return audited


def _abandon(work: asyncio.Task[Response | EventStream]) -> None:
    """Its client has gone: a stream that nobody will send ends here."""
    if work.cancelled() or work.exception() is not None:
        return
    answer = work.result()
    if isinstance(answer, EventStream):
        answer.abandon()


__all__ = ["REPLAYED", "recorded"]
