"""A report of some time as one HTML file that needs nothing else: charts drawn here, no script."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final, NamedTuple

from dspool.config import PoolConfig
from dspool.core.metrics.measures import Table
from dspool.messages import PoolStatus
from dspool.supervisor.sizing import DecisionRecord
from dspool.telemetry.event_log import LoggedEvent
from dspool.telemetry.event_text import sentence
from dspool_console.alerts.watch import AlertNow
from dspool_console.charts import Line, Unit, chart, shown
from dspool_console.dashboard.service import ConsoleContext, PoolWatch
from dspool_serve.api.common import POOL, or_none, patiently
from dspool_serve.api.events import markers
from dspool_serve.api.tables import RANGE, RANGE_QUERY, Range, range_of, rows_of
from dspool_serve.costly import in_thread
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

EVENTS: Final = 1000
DECISIONS: Final = 200
POINTS: Final = 400
"""Points a line is drawn with: more than a chart is wide, fewer than a day has."""
EVENTS_SHOWN: Final = 300
_UNITS: Final[dict[str, Unit]] = {
    "utilization": "%", "throughput": "/s", "latency": "s", "wait": "s", "errors": "", "error_rate": "share",
    "queue": "", "size": "", "tokens": "", "sessions": "", "health": "",
}  # fmt: skip
_TITLES: Final = {
    "utilization": "Utilization", "throughput": "Throughput (operations a second)", "latency": "Latency",
    "errors": "Errors, timeouts, refusals and retries",
    "error_rate": "Error rate", "queue": "Queue and running operations", "wait": "Wait for a slot",
    "size": "Workers", "tokens": "Tokens", "sessions": "Sessions", "health": "Health score",
}  # fmt: skip
_DRAWN: Final[dict[str, tuple[str, ...]]] = {
    "utilization": ("utilization",),
    "throughput": ("throughput",),
    "latency": ("p50_s", "p95_s", "p99_s", "mean_s"),
    "errors": ("errors", "timeouts", "rejected", "retries"),
    "queue": ("queue_depth", "running"),
    "wait": ("wait_mean_s", "wait_p95_s", "wait_p99_s"),
    "size": ("desired", "size", "active", "idle", "spare", "overflow"),
    "tokens": ("input_tokens", "output_tokens"),
    "sessions": ("sessions",),
    "health": ("health",),
    "error_rate": ("error_rate",),
}
"""Chart -> columns of history."""
_HIGHEST: Final = ("p99_s", "p95_s", "wait_p99_s", "wait_p95_s", "queue_depth")
"""Of these the highest of several points is kept, of others the mean: a peak must not be averaged away."""
_STYLE: Final = """
:root{color-scheme:light dark;--fg:#1f2937;--bg:#fff;--soft:#6b7280;--line:#9ca3af55}
@media(prefers-color-scheme:dark){:root{--fg:#e5e7eb;--bg:#111827;--soft:#9ca3af}}
body{margin:24px auto;max-width:1000px;padding:0 16px;font:14px/1.5 system-ui,sans-serif;color:var(--fg);
background:var(--bg)}
h1{font-size:22px;margin:0}h2{font-size:17px;margin:28px 0 8px}p{margin:4px 0}.soft{color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(400px,1fr));gap:12px}
.charts div{border:1px solid var(--line);border-radius:6px;padding:4px}
svg{width:100%;display:block}svg text{fill:currentColor;font-size:11px}svg .title{font-size:13px;font-weight:600}
svg .end{text-anchor:end}svg .middle{text-anchor:middle}svg .grid{stroke:var(--line)}
svg polyline{fill:none;stroke-width:1.5}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:3px 10px 3px 0;vertical-align:top;
border-bottom:1px solid var(--line)}td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.t{white-space:nowrap}
"""


async def get_report(context: ConsoleContext, request: Request) -> Response:
    interval = range_of(request.query(frozenset(RANGE)), 3600.0)
    watch = context.measured_watch(request)

    key = interval if interval.start is None else interval[1:]

    async def once() -> Response:
        return await watch.reports.get(key, lambda: _report(watch, interval))

    # Half a second of work for a day of charts, here and in the pool's metrics actor.
    return await context.service.costly.run(request.principal, once)


async def _report(watch: PoolWatch, interval: Range) -> Response:
    now = time.time()
    start = interval.start if interval.start is not None else now - interval.seconds
    end = min(now, interval.end) if interval.end is not None else now
    table, events, decisions, status = await asyncio.gather(
        patiently(watch.pool.table(interval.seconds)),
        patiently(watch.pool.events(0, EVENTS)),
        or_none(watch.pool.decisions(DECISIONS)),
        or_none(watch.pool.status()),
    )
    facts = ReportFacts(
        pool=watch.pool.name,
        start=start,
        end=end,
        made_at=now,
        table=table,
        events=[*events.events, *watch.alerts.changes],
        decisions=decisions or [],
        status=status,
        config=watch.pool.config,
        alerts=watch.alerts.alerts,
    )
    page = await in_thread(lambda: report(facts))
    pool = re.sub(r"[^A-Za-z0-9_.-]+", "-", watch.pool.name)[:80]
    name = f"dspool-{pool}-{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime(end))}.html"
    return Response(
        200,
        page.encode(),
        b"text/html; charset=utf-8",
        (
            (b"content-disposition", f'attachment; filename="{name}"'.encode()),
            # Should a browser show it all the same, it may run and fetch nothing.
            (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; sandbox"),
        ),
    )


class ReportFacts(NamedTuple):
    """All that a report is made from."""

    pool: str
    start: float
    end: float
    made_at: float
    table: Table
    events: Sequence[LoggedEvent]
    decisions: Sequence[DecisionRecord]
    """Newest first."""
    status: PoolStatus | None
    config: PoolConfig
    alerts: Sequence[AlertNow]


def report(facts: ReportFacts) -> str:
    name = escape(facts.pool)
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>dspool report: {name}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>Pool {name}</h1>",
        f'<p class="soft">{_when(facts.start)} to {_when(facts.end)} ({_long(facts.end - facts.start)}); '
        f"made {_when(facts.made_at)}. All times are UTC.</p>",
        _state(facts),
        "<h2>Summary</h2>",
        _summary(facts),
        "<h2>Charts</h2>",
        _charts(facts),
    ]
    parts += _section("Alerts at the time of the report", _alerts(facts.alerts))
    found = markers(facts.events, start=facts.start, end=facts.end)
    parts += _section(
        "Marked on the charts",
        _rows(("time", "what", ""), ((_when(mark.at), mark.kind, mark.label) for mark in found)),
    )
    decided = [one for one in facts.decisions if facts.start <= one.at <= facts.end]
    parts += _section(
        "Sizing",
        _rows(
            ("time", "size", "reason"),
            ((_when(one.at), f"{one.previous} -> {one.target}", _reason(one)) for one in decided),
        ),
    )
    within = [seen for seen in facts.events if facts.start <= seen.at <= facts.end]
    parts += _section(
        "Events" if len(within) <= EVENTS_SHOWN else f"The last {EVENTS_SHOWN} of {len(within)} events",
        _rows(
            ("time", "event", "source", "what"),
            (
                (_when(seen.at), seen.event, seen.source, sentence(seen))
                for seen in sorted(within, key=lambda seen: seen.at)[-EVENTS_SHOWN:]
            ),
        ),
    )
    return "".join([*parts, "</body></html>"])


def _state(facts: ReportFacts) -> str:
    status = facts.status
    if status is None:
        return "<p>The supervisor did not answer when this was made.</p>"
    why = f": {escape(status.reason)}" if status.reason else ""
    return (
        f"<p>When this was made the pool was <b>{status.state}</b>{why}, with {status.actual} of {status.desired} "
        f"workers and {_plural(status.spares, 'spare')}; allowed are {facts.config.min_pool_size} to "
        f"{facts.config.max_pool_size} workers of {facts.config.slots_per_worker} slots.</p>"
    )


def _summary(facts: ReportFacts) -> str:
    at, columns = rows_of(
        facts.table,
        ("operations", "errors", "timeouts", "rejected", "retries", "utilization", "throughput", "p99_s", "size",
         "input_tokens", "output_tokens", "cost_usd", "health"),
        start=facts.start,
        end=facts.end,
    )  # fmt: skip
    if not at:
        return "<p>Nothing was measured in this time.</p>"
    total = {name: sum(value or 0.0 for value in columns[name]) for name in columns}
    ended, failed = total["operations"], total["errors"] + total["timeouts"]
    known = [value for value in columns["p99_s"] if value is not None]
    rows = (
        ("operations that ended", f"{ended:,.0f}"),
        ("errors and timeouts", f"{failed:,.0f} ({failed / ended if ended else 0:.2%} of all that ended)"),
        ("refused", f"{total['rejected']:,.0f}"),
        ("retries", f"{total['retries']:,.0f}"),
        (
            "throughput",
            f"{_mean(columns['throughput']):,.1f}/s on average, {_most(columns['throughput']):,.1f}/s at most",
        ),
        (
            "utilization",
            f"{_mean(columns['utilization']):.1%} on average, {_most(columns['utilization']):.1%} at most",
        ),
        ("p99 latency", f"{shown(max(known), 's')} in the worst interval" if known else "nothing ran"),
        ("workers", f"{_mean(columns['size']):.3g} on average, {_most(columns['size']):.0f} at most"),
        ("tokens", f"{total['input_tokens']:,.0f} read, {total['output_tokens']:,.0f} written"),
        *([("cost", f"${total['cost_usd']:,.2f}")] if total["cost_usd"] else []),
        ("health", f"{min(value or 0.0 for value in columns['health']):.0f} of 100 at worst"),
    )
    return _rows((), rows)


def _charts(facts: ReportFacts) -> str:
    gap = 3 * facts.table.resolution_s
    drawn = []
    for title, names in _DRAWN.items():
        at, columns = rows_of(facts.table, names, start=facts.start, end=facts.end)
        lines = [Line(_label(name), _thinned(name, at, columns[name])) for name in names]
        step = (facts.end - facts.start) / POINTS
        svg = chart(
            _TITLES[title], _UNITS[title], lines, start=facts.start, end=facts.end, gap_s=max(gap, 3 * step)
        )
        drawn.append(f"<div>{svg}</div>")
    return f'<div class="charts">{"".join(drawn)}</div>'


def _thinned(name: str, at: Sequence[float], values: Sequence[float | None]) -> list[tuple[float, float]]:
    each = max(1, len(at) // POINTS)
    found = []
    for first in range(0, len(at), each):
        known = [value for value in values[first : first + each] if value is not None]
        if known:
            value = max(known) if name in _HIGHEST else sum(known) / len(known)
            found.append((at[min(first + each, len(at)) - 1], value))
    return found


def _alerts(alerts: Iterable[AlertNow]) -> str:
    told = [alert for alert in alerts if alert.state in ("pending", "firing")]
    return _rows(
        ("alert", "state", "since", ""),
        ((one.name, one.state, _when(one.since) if one.since else "", one.summary) for one in told),
    )


def _section(title: str, body: str) -> list[str]:
    return [f"<h2>{escape(title)}</h2>", body]


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    if not body:
        return '<p class="soft">None.</p>'
    top = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    return f"<table>{top}<tbody>{body}</tbody></table>"


def _reason(one: DecisionRecord) -> str:
    reason = f"dry run: {one.reason}" if one.source == "dry run" else one.reason
    return f"{reason} ({one.times} times)" if one.times > 1 else reason


def _long(seconds: float) -> str:
    """A stretch of time in the units that people say: `1 h`, `2 min 30 s`."""
    parts = []
    left = round(seconds)
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts) or "0 s"


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _label(name: str) -> str:
    return name.removesuffix("_s").replace("_", " ")


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def _most(values: Sequence[float | None]) -> float:
    return max((value for value in values if value is not None), default=0.0)


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        POOL + "/report",
        get_report,
        "A report of some time as one HTML file that opens offline",
        problems=("invalid_request", "not_allowed", "queue_full", "pool_not_ready", "worker_lost"),
        query=RANGE_QUERY,
        media="text/html",
        role="reader",
    ),
)

__all__ = ["ROUTES", "ReportFacts", "report"]
