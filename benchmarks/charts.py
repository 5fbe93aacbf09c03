"""Line charts as SVG text, drawn here so that a report needs nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 38, 44
_COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4b5563")
_DASHES = ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 3"')
"""For more lines than colours."""
_LEGEND_COLUMNS, _LEGEND_LINE = 3, 15

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str, x_label: str, y_label: str, series: Mapping[str, Points], *, log_x: bool = False
) -> str:
    """`series` by name; points without an order are drawn by x. With `log_x` all x are positive."""
    lines = {name: sorted(points) for name, points in series.items() if points}
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    if not xs:
        return ""
    high = _nice(max(*ys, 1e-9))
    low_x, high_x = min(xs), max(xs)

    def right(x: float) -> float:
        if high_x == low_x:
            return _LEFT
        share = math.log(x / low_x, high_x / low_x) if log_x else (x - low_x) / (high_x - low_x)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return HEIGHT - _BOTTOM - y / high * (HEIGHT - _TOP - _BOTTOM)

    # Below the drawing: beside the lines a legend lies on some of them.
    legend = -(-len(lines) // _LEGEND_COLUMNS) * _LEGEND_LINE if len(lines) > 1 else 0
    total = HEIGHT + legend + (4 if legend else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" role="img" width="{WIDTH}" '
        f'font-family="sans-serif" font-size="11"><title>{escape(title)}</title>',
        f'<rect width="{WIDTH}" height="{total}" fill="#fff"/>',
        _text(_LEFT, 14, title, size=13),
        _text(WIDTH / 2, HEIGHT - 4, x_label, anchor="middle"),
    ]
    for step in range(5):
        y = high * step / 4
        parts.append(f'<path d="M{_LEFT} {down(y):.1f}H{WIDTH - _RIGHT}" stroke="#e5e7eb"/>')
        parts.append(_text(_LEFT - 5, down(y) + 4, number(y), anchor="end"))
    places = _ticks(sorted(set(xs)))
    parts += [_text(right(x), HEIGHT - _BOTTOM + 15, number(x), anchor="middle") for x in places]
    parts.append(_text(_LEFT, _TOP - 7, y_label, fill="#6b7280"))
    for index, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(f"{right(x):.1f},{down(y):.1f}" for x, y in points)
        dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [
            f'<circle cx="{right(x):.1f}" cy="{down(y):.1f}" r="3" fill="{colour}"/>' for x, y in points
        ]
        if len(lines) > 1:
            left = 8 + index % _LEGEND_COLUMNS * (WIDTH - 8) / _LEGEND_COLUMNS
            at = HEIGHT + 8 + index // _LEGEND_COLUMNS * _LEGEND_LINE
            parts.append(f'<path d="M{left:.0f} {at - 4}h18" stroke="{colour}" stroke-width="2"{dash}/>')
            parts.append(_text(left + 23, at, name, fill=colour))
    return "".join([*parts, "</svg>"])


def curve_chart(curve: Mapping[str, Any]) -> str:
    """A curve as `benchmarks.scaling` prints it, beside its ideal."""
    points = curve["points"]
    series = {
        curve["y_label"]: [(point["x"], point["y"]) for point in points],
        "ideal": [(point["x"], point["ideal"]) for point in points if "ideal" in point],
    }
    return line_chart(curve["title"], curve["x_label"], curve["y_label"], series, log_x=True)


def number(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _nice(value: float) -> float:
    """The next round number."""
    unit = 10.0 ** math.floor(math.log10(value))
    return next(factor * unit for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if factor * unit >= value * 0.9999)


def _ticks(xs: list[float]) -> list[float]:
    """At most eight of them, first and last included."""
    if len(xs) <= 8:
        return xs
    return [xs[round(index * (len(xs) - 1) / 7)] for index in range(8)]


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#111827", size: int = 11
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{fill}" font-size="{size}">{escape(text)}</text>'
