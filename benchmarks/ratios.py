"""A ratio of two things that were measured in turn, with an interval, and what may be said of it.

What a machine does meanwhile strikes both of a pair, so pairs are compared, by the logarithm of their ratio, and not
the means of all: an interval of Student's t, which three pairs make wide and one pair makes endless.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

_T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)
"""Student's t for 95 % within, by degrees of freedom from 1."""
_T_975_LATER = ((20, 2.086), (30, 2.042), (60, 2.000), (math.inf, 1.980))
VERDICTS = ("ahead", "even", "behind")


class Ratio(NamedTuple):
    value: float
    low: float
    high: float
    """Between `low` and `high` with 95 % confidence."""
    pairs: int

    @property
    def verdict(self) -> str:
        """`ahead` when all of the interval is above 1, `behind` when it is below, `even` when 1 is in it."""
        return "ahead" if self.low > 1.0 else "behind" if self.high < 1.0 else "even"

    def __str__(self) -> str:
        if self.pairs < 2:
            return f"{self.value:.2f} (one pair: no interval)"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    def figures(self, *, less_is_better: bool = False) -> dict[str, float | int | str | None]:
        """For JSON, which has no infinity. Of times and sizes the smaller one is `ahead`."""
        known = self.pairs > 1
        verdict = self.verdict
        if less_is_better:
            verdict = {"ahead": "behind", "behind": "ahead"}.get(verdict, verdict)
        return {
            "ratio": round(self.value, 3),
            "low": round(self.low, 3) if known else None,
            "high": round(self.high, 3) if known else None,
            "pairs": self.pairs,
            "verdict": verdict,
        }


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Ratio | None:
    """`ours` over `theirs`, pair by pair; None without a pair in which both are more than nothing."""
    logs = [math.log(one / other) for one, other in zip(ours, theirs, strict=True) if one > 0 and other > 0]
    if not logs:
        return None
    mean = statistics.fmean(logs)
    if len(logs) == 1:
        return Ratio(math.exp(mean), 0.0, math.inf, 1)
    half = _t(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))


def _t(freedom: int) -> float:
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    # That of fewer degrees than there are: wider, never narrower.
    at = [value for degrees, value in ((15, 2.131), *_T_975_LATER) if degrees <= freedom]
    return at[-1]
