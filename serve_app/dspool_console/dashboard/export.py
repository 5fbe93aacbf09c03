"""What can be taken away: any chart as JSON or CSV, and a report of any time range as one file."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import time
from collections.abc import Awaitable
from typing import Final, TypeVar

from dspool.errors import InvalidRequest, PoolError
from dspool_console.dashboard.chart_columns import CHARTS
from dspool_console.dashboard.common import (
    POOL,
    RANGE,
    Range,
    encode,
    ordinal_of,
    patiently,
    range_of,
    watched,
    with_metrics,
)
from dspool_console.dashboard.context import ConsoleContext
from dspool_console.dashboard.report import ReportFacts, report
from dspool_console.dashboard.tables import rows_of
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

T = TypeVar("T")

EVENTS: Final = 1000
DECISIONS: Final = 200
ALL: Final = tuple(dict.fromkeys(name for columns in CHARTS.values() for name in columns))


async def export(context: ConsoleContext, request: Request) -> Response:
    query = request.query(frozenset({*RANGE, "chart", "format", "program", "slot"}))
    one = with_metrics(watched(context, request))
    chart, form = query.get("chart", "all"), query.get("format", "json")
    if chart != "all" and chart not in CHARTS:
        raise InvalidRequest(f"chart is one of {', '.join(CHARTS)}, all", field="chart")
    if form not in ("json", "csv"):
        raise InvalidRequest("format is json or csv", field="format")
    asked = range_of(query, 3600.0)
    table = await patiently(
        one.pool.table(asked.seconds, program=query.get("program"), ordinal=ordinal_of(query))
    )
    at, columns = rows_of(table, ALL if chart == "all" else CHARTS[chart], start=asked.start, end=asked.end)
    name = f"dspool-{_file_name(one.pool.name)}-{chart}.{form}"
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["time_utc", "time_s", *columns])
        for row, when in enumerate(at):
            values = ("" if column[row] is None else f"{column[row]:.9g}" for column in columns.values())
            writer.writerow([_utc(when), f"{when:.3f}", *values])
        return _file(text.getvalue().encode(), b"text/csv; charset=utf-8", name)
    body = encode(
        {
            "pool": one.pool.name,
            "chart": chart,
            "resolution_s": table.resolution_s,
            "at": at,
            "columns": columns,
        }
    )
    return _file(body, b"application/json", name)


async def get_report(context: ConsoleContext, request: Request) -> Response:
    asked = range_of(request.query(frozenset(RANGE)), 3600.0)
    one = with_metrics(watched(context, request))
    now = time.time()
    start = asked.start if asked.start is not None else now - asked.seconds
    end = min(now, asked.end) if asked.end is not None else now
    table, events, decisions, status = await patiently(
        asyncio.gather(
            one.pool.table(Range(asked.seconds).seconds),
            one.pool.events(0, EVENTS),
            _or_nothing(one.pool.decisions(DECISIONS)),
            _or_nothing(one.pool.status()),
        )
    )
    facts = ReportFacts(
        pool=one.pool.name,
        start=start,
        end=end,
        made_at=now,
        table=table,
        events=[*events.events, *one.alerts.changes],
        decisions=decisions or [],
        status=status,
        config=one.pool.config,
        alerts=one.alerts.alerts,
    )
    # A day of charts is some tenths of a second of work.
    page = await asyncio.to_thread(report, facts)
    name = f"dspool-{_file_name(one.pool.name)}-{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime(end))}.html"
    return _file(page.encode(), b"text/html; charset=utf-8", name)


async def _or_nothing(asked: Awaitable[T]) -> T | None:
    try:
        return await asked
    except PoolError:
        return None


def _file(body: bytes, kind: bytes, name: str) -> Response:
    return Response(
        200,
        body,
        kind,
        (
            (b"content-disposition", f'attachment; filename="{name}"'.encode()),
            # Should a browser show it all the same, it may run and fetch nothing.
            (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; sandbox"),
        ),
    )


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:80]


def _utc(at: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at % 1 * 1000):03d}Z"


EXPORTING: Final = (
    Route("GET", f"{POOL}/export", export, "A chart as JSON or CSV", media="text/csv", role="reader"),
    Route(
        "GET", f"{POOL}/report", get_report, "A report that opens offline", media="text/html", role="reader"
    ),
)

__all__ = ["EXPORTING"]
