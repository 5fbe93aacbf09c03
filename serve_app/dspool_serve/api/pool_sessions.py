"""The sessions of all callers, for those who watch a pool; `sessions` has one's own."""

from __future__ import annotations

import contextlib
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from dspool.errors import InvalidRequest, UnknownWorker
from dspool.messages import SessionInfo, StoredUsage, StoreStatus, WorkerId
from dspool_serve.api.common import (
    LOOK,
    PAGE,
    POOL,
    answer_packed,
    cut,
    names_sessions,
    page_of,
    patiently,
    pool_of,
)
from dspool_serve.api.workers import shown_session
from dspool_serve.context import Context
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

LONGEST_SEARCH: Final = 200
"""Characters."""


class PoolSessionList(Struct):
    """Sessions of all callers. For callers who are not admins ids are hashes, and owners and programs are left out."""

    sessions: list[SessionInfo]
    next_cursor: Annotated[str | None, Meta(description="pass as `cursor` for the next page; for admins")]
    total: Annotated[int, Meta(description="all that the pool has")]


async def list_pool_sessions(context: Context, request: Request) -> Response:
    limit, cursor, query = page_of(request, "search")
    pool = pool_of(context, request)
    search = query.get("search", "")
    if len(search) > LONGEST_SEARCH:
        raise InvalidRequest(
            f"a search has at most {LONGEST_SEARCH} characters, got {len(search)}", field="search"
        )
    named = names_sessions(request)
    if not named:
        # What may not be seen must not be guessed by searching for it, or by asking from where it would be.
        search, cursor = (search if _is_worker(search, pool.name) else ""), None

    async def find() -> tuple[list[SessionInfo], str | None]:
        return await patiently(pool.sessions(limit=limit, after=cursor, containing=search))

    # The store looks at every session for a search, and at those of a page for a page.
    found, following = await (context.service.costly.run(request.principal, find) if search else find())
    total = await patiently(pool.count_sessions())
    rows = found if named else [without_names(info, pool.name) for info in found]
    # A cursor is the last id.
    return answer_packed(request, PoolSessionList(rows, following if named else None, total))


class StorageUsage(Struct):
    """What principals keep in the pool's store, as quotas count it."""

    total: Annotated[StoredUsage, Meta(description="all principals, and those who have none")]
    principals: list[StoredUsage]
    next_cursor: str | None = None


async def get_usage(context: Context, request: Request) -> Response:
    limit, cursor, _ = page_of(request)
    total, principals = await patiently(pool_of(context, request).storage_usage())
    found, following = cut(principals, lambda row: row.principal or "", limit, cursor)
    return answer_packed(request, StorageUsage(total, found, following))


async def get_store(context: Context, request: Request) -> Response:
    request.query(frozenset())
    return answer_packed(request, await patiently(pool_of(context, request).store_status()))


async def end_pool_session(context: Context, request: Request) -> Response:
    await pool_of(context, request).end_session(request.params["session"])
    return Response(204, b"")


def _is_worker(text: str, pool: str) -> bool:
    with contextlib.suppress(UnknownWorker):
        return WorkerId.parse(text).pool == pool
    return False


def without_names(info: SessionInfo, pool: str) -> SessionInfo:
    return msgspec.structs.replace(info, id=shown_session(info.id, pool, False), principal=None, programs=())


ROUTES: Final = (
    Route(
        "GET",
        POOL + "/pool_sessions",
        list_pool_sessions,
        "The sessions of all callers, a page at a time; found by a part of their id, worker or principal",
        PoolSessionList,
        problems=("invalid_request", "queue_full", "store_failed", "pool_not_ready"),
        query=(*PAGE, ("search", {"type": "string", "maxLength": LONGEST_SEARCH})),
        role="reader",
    ),
    Route(
        "GET",
        POOL + "/usage",
        get_usage,
        "How many sessions, and how many MB, each principal keeps; a page at a time",
        StorageUsage,
        problems=("invalid_request", "store_failed", "pool_not_ready"),
        query=PAGE,
    ),
    Route(
        "GET",
        POOL + "/store",
        get_store,
        "The database that keeps the sessions, and which process serves it",
        StoreStatus,
        problems=("invalid_request", "store_failed", "pool_not_ready"),
    ),
    Route(
        "DELETE",
        POOL + "/pool_sessions/{session}",
        end_pool_session,
        "End anybody's session, by the id that the list shows",
        status=204,
        problems=("unknown_session", *LOOK),
    ),
)
