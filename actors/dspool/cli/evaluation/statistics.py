"""What scores say: a mean with its interval, and whether two versions differ on the same examples.

Intervals are percentile bootstraps (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). The
test of a difference flips the signs of the differences of pairs at random (Fisher's randomization test), with one
added to both counts, so that no p is 0 (Phipson and Smyth, 2010). Neither assumes a distribution.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

SAMPLES = 2000
CONFIDENCE = 0.95
_EXACT = 10
"""With so few differences every way to flip their signs is looked at."""


class MeanInterval(NamedTuple):
    low: float
    high: float


class Difference(NamedTuple):
    """Of the second to the first, over pairs."""

    mean: float
    interval: MeanInterval
    p: float
    """How likely a difference as large as this is if both were as good."""
    better: int
    worse: int
    equal: int

    @property
    def shown(self) -> bool:
        """Whether the pairs show one at all."""
        return self.p <= 1 - CONFIDENCE


def mean_interval(values: Sequence[float], seed: int = 1) -> MeanInterval:
    """Where the mean of `values` is with a confidence of 95 %; of one value, that value. Needs at least one."""
    chance = random.Random(seed)
    size = len(values)
    means = sorted(math.fsum(chance.choices(values, k=size)) / size for _ in range(SAMPLES))
    tail = round(SAMPLES * (1 - CONFIDENCE) / 2)
    return MeanInterval(means[tail], means[-1 - tail])


def difference(first: Sequence[float], second: Sequence[float], seed: int = 1) -> Difference:
    """How the second scores differ from the first, example by example. Needs at least one pair."""
    gains = [after - before for before, after in zip(first, second, strict=True)]
    better = sum(gain > 0 for gain in gains)
    worse = sum(gain < 0 for gain in gains)
    return Difference(
        math.fsum(gains) / len(gains),
        mean_interval(gains, seed),
        _sign_flips([gain for gain in gains if gain], seed),
        better,
        worse,
        len(gains) - better - worse,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value with at least `share` of all at or below it. Needs at least one."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(len(ordered) * share)) - 1]


def _sign_flips(gains: Sequence[float], seed: int) -> float:
    if not gains:
        return 1.0
    # Sums of the same values in another order differ in their last digits.
    seen = abs(math.fsum(gains)) - 1e-9 * math.fsum(map(abs, gains))
    if len(gains) <= _EXACT:
        flips = range(2 ** len(gains))
        return sum(_flipped(gains, flip) >= seen for flip in flips) / len(flips)
    chance = random.Random(seed)
    extreme = sum(_flipped(gains, chance.getrandbits(len(gains))) >= seen for _ in range(SAMPLES))
    return (extreme + 1) / (SAMPLES + 1)


def _flipped(gains: Sequence[float], flip: int) -> float:
    return abs(math.fsum(-gain if flip >> place & 1 else gain for place, gain in enumerate(gains)))
