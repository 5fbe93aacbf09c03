"""What the dashboard's routes share: which pool, which range, which of it the asker may see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from dspool.core.admission.access import allowed
from dspool.errors import InvalidRequest, NotAllowed, PoolNotReady
from dspool_console.dashboard.context import ConsoleContext
from dspool_console.dashboard.files import packed_json
from dspool_console.dashboard.service import Watched
from dspool_serve.http import requests
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response

T = TypeVar("T")

ANSWER_S: Final = 5.0
LONGEST_S: Final = 86_400.0
FINE_S: Final = 3600.0
RANGE: Final = ("range", "from", "to")
POOL: Final = "/dashboard/api/pools/{pool}"

encode = msgspec.json.Encoder().encode


class Range(NamedTuple):
    """A stretch of history. `start` and `end` are wall-clock seconds; both None: the last `seconds`."""

    seconds: float
    start: float | None = None
    end: float | None = None


def watched(context: ConsoleContext, request: Request) -> Watched:
    """Raises: UnknownPool."""
    found: Watched = context.dashboard.of(request.params["pool"])
    return found


def names_sessions(request: Request) -> bool:
    """Whether the asker may see ids of sessions and who they belong to, which may name people."""
    return allowed(request.role, "admin")


def with_metrics(one: Watched) -> Watched:
    if not one.pool.config.enable_metrics:
        raise NotAllowed(
            f"pool {one.pool.name!r} keeps no metrics: enable_metrics is off", pool=one.pool.name
        )
    return one


async def patiently(asked: Awaitable[T], seconds: float = ANSWER_S) -> T:
    try:
        return await asyncio.wait_for(asked, seconds)
    except TimeoutError:
        raise PoolNotReady("the pool does not answer in time; try again", retry_after_s=1.0) from None


def answer(request: Request, value: Any) -> Response:
    return packed_json(request, value if isinstance(value, bytes) else encode(value))


def range_of(query: dict[str, str], default_s: float = 300.0) -> Range:
    """The asked range. Raises: InvalidRequest."""
    if "from" not in query and "to" not in query:
        return Range(number(query, "range", default_s, 1.0, LONGEST_S))
    now = time.time()
    end = number(query, "to", now, 0.0, 1e11)
    start = number(query, "from", end - default_s, 0.0, 1e11)
    if start >= end:
        raise InvalidRequest("from must be before to", field="from")
    return Range(min(LONGEST_S, max(1.0, now - start)), start, end)


def number(query: dict[str, str], name: str, default: float, least: float, most: float) -> float:
    """As `requests.number`; a field of a form that was left empty counts as not given."""
    return requests.number(query, name, default, least=least, most=most) if query.get(name) else default


def ordinal_of(query: dict[str, str]) -> int | None:
    return int(number(query, "slot", 0, 0, 1e6)) if "slot" in query else None


__all__ = [
    "POOL",
    "RANGE",
    "Range",
    "answer",
    "encode",
    "names_sessions",
    "number",
    "ordinal_of",
    "patiently",
    "range_of",
    "watched",
    "with_metrics",
]
