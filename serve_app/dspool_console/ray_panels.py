"""Panels for the Metrics tab of Ray's dashboard, with no Grafana and no Prometheus installed.

Ray's dashboard asks `$RAY_GRAFANA_HOST/api/health` and `$RAY_PROMETHEUS_HOST/api/v1/query` whether these are there, and
shows `$RAY_GRAFANA_IFRAME_HOST/d/{uid}/...` in a frame. These routes answer in their place, below `/grafana`, with
the history of the pools' metrics actors. They serve Ray's dashboard alone, so the OpenAPI document leaves them out.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from html import escape
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from dspool.core.metrics.measures import HistoryView, Point
from dspool.errors import PoolError
from dspool_console.charts import Line, Unit, chart
from dspool_serve.context import Context
from dspool_serve.costly import in_thread
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route
from dspool_serve.ingress.ray_dashboard import PREFIX
from dspool_serve.pools import Pools

TIMEOUT_S: Final = 2.0
LONGEST_S: Final = 86_400.0
_SPAN = re.compile(r"now-(\d{1,6})([smhd])")
_LONGEST_QUERY: Final = 8_192
"""Bytes; the rest is not read."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Value = Callable[[Point], float]


class Panel(NamedTuple):
    title: str
    unit: Unit
    lines: tuple[tuple[str, Value], ...]


def _level(name: str) -> tuple[str, Value]:
    return name.replace("_", " ").removesuffix(" s"), lambda point: getattr(point, name)


def _rate(name: str) -> tuple[str, Value]:
    return name, lambda point: getattr(point, name) / point.duration_s if point.duration_s > 0 else 0.0


PANELS: Final = (
    Panel("Throughput", "/s", (_level("throughput"),)),
    Panel("Latency", "s", (_level("p50_s"), _level("p95_s"), _level("p99_s"))),
    Panel("Errors", "/s", (_rate("errors"), _rate("timeouts"), _rate("rejected"))),
    Panel("Workers", "", tuple(map(_level, ("active", "idle", "spare", "overflow", "desired")))),
    Panel("Utilization", "%", (_level("utilization"),)),
    Panel("Queue", "", (_level("queue_depth"), _level("running"))),
    Panel("Wait for a slot", "s", (_level("wait_mean_s"), _level("wait_p95_s"), _level("wait_p99_s"))),
    Panel("Health", "", (_level("health"),)),
    Panel("Sessions", "", (_level("sessions"),)),
)

_STYLE = """
body{margin:8px;font:13px system-ui,sans-serif;background:#fff;color:#1f2937}
body.dark{background:#111827;color:#e5e7eb}
h1{font-size:15px;margin:8px 4px}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(360px,1fr));gap:8px}
.panels div{border:1px solid #9ca3af55;border-radius:6px;padding:4px}
svg{width:100%;display:block}
svg text{fill:currentColor;font-size:11px}
svg .title{font-size:13px;font-weight:600}
svg .end{text-anchor:end} svg .middle{text-anchor:middle}
svg .grid{stroke:#9ca3af55}
svg polyline{fill:none;stroke-width:1.5}
"""


# --- what Ray asks ---


async def grafana_health(context: Context, request: Request) -> Response:
    return Response(200, b'{"database":"ok","version":"dspool"}')


async def prometheus_query(context: Context, request: Request) -> Response:
    """An empty answer to every query: Ray only looks whether it is a success."""
    return Response(200, b'{"status":"success","data":{"resultType":"vector","result":[]}}')


async def dashboard(context: Context, request: Request) -> Response:
    """All panels of all pools, whichever dashboard Ray asks for: the Metrics tab knows only its own."""
    return await _page(context, request, PANELS)


async def solo(context: Context, request: Request) -> Response:
    """One panel, as on Ray's Overview and Serve pages.

    Their numbers mean panels of Ray's own dashboards, which are not here: a number only picks one of ours.
    """
    number = _parameters(request).get("panelId", "")
    index = int(number) % len(PANELS) if number.isascii() and number.isdigit() and len(number) < 9 else 0
    return await _page(context, request, (PANELS[index],))


async def _page(context: Context, request: Request, panels: Iterable[Panel]) -> Response:
    return await context.service.costly.run(request.principal, lambda: _drawn(context, request, panels))


async def _drawn(context: Context, request: Request, panels: Iterable[Panel]) -> Response:
    parameters = _parameters(request)
    now = time.time()
    start = _start(parameters.get("from", ""), now)
    names = context.pools.names()
    views = await asyncio.gather(*(_history(context.pools, name, now - start) for name in names))
    body = await in_thread(
        lambda: "".join(
            _pool(name, view, panels, start, now) for name, view in zip(names, views, strict=True)
        )
    )
    theme = "dark" if parameters.get("theme") == "dark" else "light"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>dspool</title>'
        f'<meta http-equiv="refresh" content="{_refresh(parameters.get("refresh", ""))}">'
        f'<style>{_STYLE}</style></head><body class="{theme}">{body}</body></html>'
    )
    policy = b"default-src 'none'; style-src 'unsafe-inline'"
    return Response(200, page.encode(), b"text/html; charset=utf-8", ((b"content-security-policy", policy),))


async def _history(pools: Pools, name: str, duration_s: float) -> HistoryView | None:
    try:
        return await asyncio.wait_for(pools.get(name).metrics_history(duration_s), TIMEOUT_S)
    except (PoolError, TimeoutError):
        return None


def _pool(name: str, view: HistoryView | None, panels: Iterable[Panel], start: float, end: float) -> str:
    heading = f"<h1>dspool: {escape(name)}</h1>"
    if view is None:
        return f"{heading}<p>The metrics of this pool cannot be read now.</p>"
    charts = (
        chart(
            panel.title,
            panel.unit,
            [Line(label, [(p.at, value(p)) for p in view.points]) for label, value in panel.lines],
            start=start,
            end=end,
            gap_s=3 * view.resolution_s,
        )
        for panel in panels
    )
    return f'{heading}<div class="panels">{"".join(f"<div>{svg}</div>" for svg in charts)}</div>'


def _parameters(request: Request) -> dict[str, str]:
    """All of them: Ray sends many that mean nothing here."""
    query: bytes = request.scope.get("query_string", b"")
    return dict(parse_qsl(query[:_LONGEST_QUERY].decode("latin-1")))


def _start(text: str, now: float) -> float:
    """Seconds since the epoch from `now-5m` or milliseconds since the epoch; 15 minutes ago if it is neither."""
    if match := _SPAN.fullmatch(text):
        return now - min(LONGEST_S, max(10, int(match[1]) * _SECONDS[match[2]]))
    if text.isascii() and text.isdigit() and len(text) <= 15:
        return min(now - 10, max(now - LONGEST_S, int(text) / 1000))
    return now - 900


def _refresh(text: str) -> int:
    match = re.fullmatch(r"(\d{1,4})([sm])", text)
    return max(2, int(match[1]) * _SECONDS[match[2]]) if match else 10


PANEL_ROUTES: Final = (
    Route("GET", PREFIX + "/api/health", grafana_health, "Says that there are panels", role="reader"),
    Route(
        "GET", PREFIX + "/api/v1/query", prometheus_query, "Says the same in Prometheus' place", role="reader"
    ),
    *(
        Route("GET", f"{PREFIX}/{kind}/{{uid}}{rest}", handler, "Panels for Ray's dashboard", role="reader")
        for kind, handler in (("d", dashboard), ("d-solo", solo))
        for rest in ("", "/", "/{slug}")
    ),
)
