"""Line charts as SVG, drawn on the server: a page with charts needs no script. For Ray's dashboard and reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from typing import Final, Literal, NamedTuple

Unit = Literal["s", "%", "share", "/s", ""]
"""`%` is of a whole, drawn from 0 to 100; `share` is in percent too, but its axis ends where the values do."""

WIDTH, HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 10, 30, 50
_COLORS: Final = ("#3b82f6", "#f59e0b", "#ef4444", "#10b981", "#8b5cf6", "#6b7280")


class Line(NamedTuple):
    label: str
    points: Sequence[tuple[float, float]]
    """(wall-clock seconds, value), in order of time."""


def chart(
    title: str, unit: Unit, lines: Sequence[Line], *, start: float, end: float, gap_s: float = 3.0
) -> str:
    """The SVG from `start` to `end`, in wall-clock seconds. Values are at least 0; the line breaks where two points
    are more than `gap_s` apart, because nothing was measured there."""
    highest = max((value for line in lines for _, value in line.points), default=0.0)
    top = 1.0 if unit == "%" else _ceiling(highest)
    plot_w, plot_h = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    across = plot_w / max(end - start, 1e-9)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text x="{_LEFT}" y="18" class="title">{escape(title)}</text>',
    ]
    for share in (0.0, 0.5, 1.0):
        y = _TOP + plot_h * (1 - share)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}" class="grid"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="tick end">{shown(top * share, unit)}</text>'
        )
    for at, css in ((start, "tick"), (end, "tick end")):
        x = _LEFT if at == start else WIDTH - _RIGHT
        parts.append(f'<text x="{x}" y="{_TOP + plot_h + 14}" class="{css}">{_clock(at)}</text>')
    legend_x = float(_LEFT)
    for number, line in enumerate(lines):
        color = _COLORS[number % len(_COLORS)]
        for interval in _intervals(line.points, start, end, gap_s):
            path = " ".join(
                f"{_LEFT + (at - start) * across:.1f},{_TOP + plot_h * (1 - min(value, top) / top):.1f}"
                for at, value in interval
            )
            parts.append(f'<polyline points="{path}" stroke="{color}"/>')
        last = f" {shown(line.points[-1][1], unit)}" if line.points else ""
        text = escape(line.label + last)
        parts.append(f'<rect x="{legend_x:.0f}" y="{HEIGHT - 20}" width="9" height="9" fill="{color}"/>')
        parts.append(f'<text x="{legend_x + 13:.0f}" y="{HEIGHT - 12}" class="tick">{text}</text>')
        legend_x += 24 + 6.2 * len(line.label + last)
    if not any(line.points for line in lines):
        parts.append(
            f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" class="tick middle">nothing measured yet</text>'
        )
    return "".join([*parts, "</svg>"])


def shown(value: float, unit: Unit) -> str:
    """A value for people: `12 ms`, `85 %`, `1.2k/s`."""
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit in ("%", "share"):
        return f"{value * 100:.3g} %"
    short = f"{value / 1000:.3g}k" if value >= 10_000 else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    return short + unit


def _ceiling(value: float) -> float:
    """The next round number: 1, 2 or 5 times a power of ten."""
    step = 1e-6
    while True:
        for factor in (1, 2, 5):
            if value <= step * factor:
                return step * factor if value > 0 else 1.0
        step *= 10


def _intervals(
    points: Sequence[tuple[float, float]], start: float, end: float, gap_s: float
) -> list[list[tuple[float, float]]]:
    intervals: list[list[tuple[float, float]]] = []
    for point in points:
        if not start <= point[0] <= end:
            continue
        if not intervals or point[0] - intervals[-1][-1][0] > gap_s:
            intervals.append([])
        intervals[-1].append(point)
    return intervals


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S UTC", time.gmtime(at))
