"""An operation that runs is ended by an operator."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from dspool_serve.api.common import POOL, answer_json, patiently, pool_of
from dspool_serve.context import Context
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route


class CancelledOperation(Struct):
    operation: str
    worker: Annotated[str, Meta(description="where it ran; its slot is free when it has really stopped")]


async def cancel_operation(context: Context, request: Request) -> Response:
    id = request.params["operation"]
    return answer_json(CancelledOperation(id, await patiently(pool_of(context, request).cancel(id))))


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        POOL + "/operations/{operation}/cancel",
        cancel_operation,
        "End an operation that a worker runs; its caller gets `cancelled`",
        CancelledOperation,
        problems=("unknown_name", "pool_not_ready"),
    ),
)
