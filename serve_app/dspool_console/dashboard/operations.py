"""Operations that ended: searched as the pool keeps them, and each as its trace shows it."""

from __future__ import annotations

import time
from typing import Any, Final

from msgspec.structs import replace

from dspool.core.metrics.operation_records import OperationQuery
from dspool.core.metrics.tally import OUTCOMES
from dspool.errors import InvalidRequest, NotAllowed, UnknownName
from dspool.telemetry.operation_names import operation_page, query_of
from dspool.telemetry.trace_tree import find_trace
from dspool_console.dashboard.pages import live_update_of
from dspool_console.dashboard.service import ConsoleContext
from dspool_console.dashboard.traces import OperationList, Waterfall, is_of, listed, waterfall
from dspool_console.dashboard.view import Row
from dspool_serve.api.common import (
    MAX_PAGE,
    POOL,
    answer_packed,
    names_sessions,
    or_none,
    patiently,
    whole_number,
)
from dspool_serve.api.tables import LATEST_S, LONGEST_S, RANGE, RANGE_QUERY
from dspool_serve.costly import in_thread
from dspool_serve.http.requests import Request, number
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

_TEXTS: Final = (
    "id",
    "program",
    "outcome",
    "error",
    "session",
    "session_hash",
    "principal",
    "worker",
    "text",
    "cursor",
)
_DURATIONS: Final = ("at_least_s", "at_most_s")
FILTERS: Final = frozenset({*_TEXTS, *_DURATIONS, *RANGE, "version", "sort", "ascending", "limit"})


async def list_operations(context: ConsoleContext, request: Request) -> Response:
    """Without a query also the newest, the slowest and the failed ones that were traced."""
    asked = request.query(FILTERS)
    watch = context.watch(request)
    named = names_sessions(request)
    query = _query(request, asked, watch.pool.name, named=named)
    telemetry = watch.pool.config.telemetry

    async def traced() -> OperationList:
        if asked:
            return OperationList(telemetry.sampling > 0, telemetry.sampling, [], [], [])
        update = await live_update_of(watch)
        totals = {} if update is None else update.snapshot.counters.errors_by_code
        return listed(await watch.operations.look(), totals, telemetry.sampling)

    async def make() -> OperationList:
        answer = await traced()
        # What may go without a search is answered where nothing is kept, too.
        found = await (
            watch.pool.find_operations(query) if asked else or_none(watch.pool.find_operations(query))
        )
        if found is None:
            return answer
        page = operation_page(found, watch.pool.name, names=named, viewer=request.principal)
        answer.operations, answer.next_cursor = page.operations, page.next_cursor
        answer.kept, answer.oldest_at, answer.left_out = page.kept, page.oldest_at, page.left_out
        return answer

    async def once() -> OperationList:
        key = ("operations", query, bool(asked), named or request.principal)
        made: OperationList = await watch.answers.get(key, lambda: patiently(make()))
        return made

    # A search for what is rare looks at all that is kept.
    return answer_packed(
        request, await (context.service.costly.run(request.principal, once) if asked else once())
    )


def _query(request: Request, asked: dict[str, str], pool: str, *, named: bool) -> OperationQuery:
    """What is asked for, as far as the one who asks may know it."""
    filters: dict[str, Any] = {name: asked[name] for name in _TEXTS if asked.get(name)}
    by_hash = filters.pop("session_hash", None)
    for name in _DURATIONS:
        if name in asked:
            filters[name] = number(asked, name, 0.0, least=0.0, most=LATEST_S)
    if "version" in asked:
        filters["version"] = whole_number(asked, "version", 0, 2**31 - 1)
    if "range" in asked:
        filters["since"] = round(time.time()) - number(asked, "range", 1.0, least=1.0, most=LONGEST_S)
    for name, meaning in (("from", "since"), ("to", "until")):
        if name in asked:
            filters[meaning] = number(asked, name, 0.0, least=0.0, most=LATEST_S)
    filters["limit"] = whole_number(asked, "limit", 1, MAX_PAGE, 100)
    filters["sort"] = asked.get("sort", "time")
    if filters["sort"] not in ("time", "duration"):
        raise InvalidRequest("sort is time or duration", field="sort")
    filters["ascending"] = asked.get("ascending", "") in ("1", "true")
    if not named and filters.get("principal") not in (None, request.principal):
        raise NotAllowed("only admins search for operations of others", field="principal")
    if not named and "session" in filters:
        # Of one's own: whether another has a session of this name must not be found out by trying.
        filters["principal"] = request.principal or ""
    query = query_of(filters, pool)  # type: ignore[arg-type]
    if by_hash is not None:
        query = replace(query, session=by_hash)
    return query.checked()


async def get_operation(context: ConsoleContext, request: Request) -> Response:
    request.query(frozenset())
    watch = context.watch(request)
    id = request.params["operation"]
    state_dir = watch.pool.config.state_dir
    spans = await context.service.costly.run(
        request.principal, lambda: in_thread(lambda: find_trace(state_dir, id))
    )
    own = [span for span in spans if span.get("resource", {}).get("dspool.pool") in (None, watch.pool.name)]
    if not own:
        raise UnknownName(f"there is no trace of {id[:80]!r} in this pool")
    captured = watch.pool.config.telemetry.capture_content

    def shows(attributes: Row) -> bool:
        # Files may still have content from a time when it was captured.
        return captured and (names_sessions(request) or is_of(attributes, request.principal, watch.pool.name))

    return answer_packed(request, waterfall(own, shows=shows))


_ASKED: Final = ("invalid_request", "pool_not_ready")
_TEXT: Final = {"type": "string", "maxLength": 200}

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        POOL + "/operations",
        list_operations,
        "The operations that ended and that fit the query, newest first; without a query also the newest, the slowest "
        "and the failed of those that were traced",
        OperationList,
        problems=(*_ASKED, "not_allowed", "queue_full", "worker_lost"),
        query=(
            ("id", {**_TEXT, "description": "the whole of it"}),
            ("program", {**_TEXT, "description": "a pool program, or the command of what ran none"}),
            ("version", {"type": "integer", "minimum": 0}),
            ("outcome", {"type": "string", "enum": [*OUTCOMES, "failed"]}),
            (
                "error",
                {**_TEXT, "description": "an error's code, or the type of exception that a program raised"},
            ),
            ("session", {**_TEXT, "description": "its id; for callers who are not admins one of their own"}),
            ("session_hash", {**_TEXT, "description": "what stands for a session in logs and spans"}),
            ("principal", {**_TEXT, "description": "for callers who are not admins their own"}),
            ("worker", _TEXT),
            *RANGE_QUERY,
            ("at_least_s", {"type": "number", "minimum": 0}),
            ("at_most_s", {"type": "number", "minimum": 0}),
            ("text", {**_TEXT, "description": "a part of the operation's id"}),
            ("sort", {"type": "string", "enum": ["time", "duration"], "default": "time"}),
            ("ascending", {"type": "boolean", "default": False}),
            ("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100}),
            ("cursor", {"type": "string"}),
        ),
        role="reader",
    ),
    Route(
        "GET",
        POOL + "/operations/{operation}",
        get_operation,
        "The spans of one traced operation, by its id or its trace's; captured content for its principal and admins",
        Waterfall,
        problems=(*_ASKED, "unknown_name", "queue_full"),
        role="reader",
    ),
)

__all__ = ["ROUTES"]
