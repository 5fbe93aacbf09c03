"""A curve: what was measured at each size, what would be ideal, where it bends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import psutil

KEEPS = 0.8
"""A point keeps to its ideal when it reaches this share of it."""
BUSY = 90.0
"""Per cent of all processors from which on they are what bounds."""


@dataclass
class Curve:
    name: str
    title: str
    x_label: str
    y_label: str
    why: str = ""
    """What is known about the bend beyond what the processors say."""
    points: list[dict[str, float]] = field(default_factory=list)

    def add(self, x: float, y: float, ideal: float | None = None, **more: float) -> None:
        point = {"x": x, "y": round(y, 3)}
        if ideal is not None:
            point["ideal"] = round(ideal, 3)
        self.points.append(point | {key: round(value, 3) for key, value in more.items()})

    @property
    def has_ideal(self) -> bool:
        return any("ideal" in point for point in self.points)

    def bend(self) -> dict[str, float] | None:
        """The first point that does not keep to its ideal."""
        return next((one for one in self.points if "ideal" in one and one["y"] < KEEPS * one["ideal"]), None)

    def told(self) -> dict[str, Any]:
        bend = self.bend()
        return {
            "name": self.name,
            "title": self.title,
            "x_label": self.x_label,
            "y_label": self.y_label,
            "points": self.points,
            "bends_at": None if bend is None else bend["x"],
            "note": note(self),
        }


def note(curve: Curve) -> str:
    """Where it bends and on what, in a sentence."""
    known = f" {curve.why}" if curve.why else ""
    if not curve.has_ideal:
        return known.strip()
    bend = curve.bend()
    if bend is None:
        return f"Keeps to {KEEPS:.0%} of its ideal up to {curve.points[-1]['x']:g}.{known}"
    busy = bend.get("cpu_percent")
    if busy is None:
        said = ""
    elif busy >= BUSY:
        said = f": all processors are {busy:.0f} % busy, they are the bound"
    else:
        said = f", with the processors {busy:.0f} % busy: something waits"
    return f"Bends at {bend['x']:g}{said}.{known}"


class Busy:
    """How busy all processors of the machine were since the last look, in per cent."""

    def __init__(self) -> None:
        self._since = self._now()

    def _now(self) -> tuple[float, float]:
        times = psutil.cpu_times()
        return time.monotonic(), sum(times) - times.idle - getattr(times, "iowait", 0.0)

    def percent(self) -> float:
        now = self._now()
        (began, before), self._since = self._since, now
        return min(100.0, 100 * (now[1] - before) / max(1e-9, now[0] - began) / (psutil.cpu_count() or 1))
