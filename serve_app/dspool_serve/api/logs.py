"""What the pool's processes logged."""

from __future__ import annotations

from typing import Any, Final

from dspool.errors import InvalidRequest
from dspool.telemetry.log_files import MAX_LINES, LogPage
from dspool_serve.api.common import POOL, answer_packed, patiently, pool_of, whole_number
from dspool_serve.context import Context
from dspool_serve.http.requests import Request, number
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

MAX_NAME: Final = 200
READ_S: Final = 20.0
_QUERY: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("operation", {"type": "string", "description": "only lines of this operation"}),
    ("worker", {"type": "string", "description": "only lines of this worker, which may be dead"}),
    ("after", {"type": "number", "minimum": 0, "description": "the `next` of the page before"}),
    ("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LINES, "default": 200}),
)


async def get_logs(context: Context, request: Request) -> Response:
    query = request.query(frozenset(name for name, _ in _QUERY))
    limit = whole_number(query, "limit", 1, MAX_LINES, 200) or 200
    after = number(query, "after", 0.0, least=0.0, most=2**53)
    operation, worker = query.get("operation") or None, query.get("worker") or None
    pool = pool_of(context, request)
    for name in (operation, worker):
        if name is not None and len(name) > MAX_NAME:
            raise InvalidRequest(f"operation and worker have at most {MAX_NAME} characters, got {len(name)}")

    async def read() -> LogPage:
        return await patiently(
            pool.logs(operation=operation, worker=worker, after=after, limit=limit), READ_S
        )

    # It reads many files.
    page = await context.service.costly.run(request.principal, read)
    return answer_packed(request, page)


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        POOL + "/logs",
        get_logs,
        "What the pool's processes logged, user code included, the oldest first; also those that died",
        LogPage,
        problems=("invalid_request", "pool_not_ready", "worker_lost", "rate_limited"),
        query=_QUERY,
    ),
)

__all__ = ["ROUTES"]
