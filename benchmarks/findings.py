"""The rows of `benchmarks.targets`: target, value, spread, whether it is met."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any


def within(value: float, lowest: float, highest: float) -> bool:
    """Whether a figure and its range are of one statistic: sums of floats may differ in their last digits."""
    slack = 1e-9 * max(1.0, abs(value))
    return lowest - slack <= value <= highest + slack


class Findings:
    def __init__(self) -> None:
        self.targets: list[dict[str, Any]] = []
        self.also: list[dict[str, Any]] = []
        self.ended: list[tuple[int, int]] = []
        """(failed, counted) operations of each part."""

    def target(
        self,
        name: str,
        target: str,
        values: list[float],
        unit: str,
        met: Callable[[float], bool],
        work: str,
        samples: int,
        *,
        value: float | None = None,
    ) -> None:
        """`values` are those of the repetitions; the value is their median unless another is given: that of all
        repetitions together, of the same statistic, so that it lies among theirs.

        Raises:
            ValueError: it does not.
        """
        self._add(self.targets, name, target, values, unit, met, work, samples, value)

    def beside(
        self,
        name: str,
        target: str | None,
        values: list[float],
        unit: str,
        met: Callable[[float], bool] | None,
        work: str,
        samples: int,
    ) -> None:
        self._add(self.also, name, target, values, unit, met, work, samples, None)

    def _add(
        self,
        rows: list[dict[str, Any]],
        name: str,
        target: str | None,
        values: list[float],
        unit: str,
        met: Callable[[float], bool] | None,
        work: str,
        samples: int,
        value: float | None,
    ) -> None:
        value = statistics.median(values) if value is None else value
        if not within(value, min(values), max(values)):
            raise ValueError(f"{name} is {value:g}, its repetitions {min(values):g} to {max(values):g}")
        rows.append(
            {
                "name": name,
                "target": target,
                "value": round(value, 3),
                "unit": unit,
                "met": None if met is None else met(value),
                "lowest": round(min(values), 3),
                "highest": round(max(values), 3),
                "repetitions": len(values),
                "samples": samples,
                "work": work,
            }
        )
        row = rows[-1]
        word = {True: "met", False: "MISSED", None: ""}[row["met"]]
        print(
            f"  {name:28s}{value:10.2f} {unit:6s} target {target or '-':9s} {word:7s}"
            f"({row['lowest']:g} to {row['highest']:g}, {len(values)} repetitions, {samples:,} samples)\n"
            f"      {work}",
            flush=True,
        )
