"""Whether a new version of a pool program may go on from its canary worker to all: a pure comparison."""

from __future__ import annotations

import math
from typing import Final, Literal

from msgspec import Struct

from dspool.messages import VersionNumbers
from dspool.messages.versioned_pickle import Message

ROLLED_BACK: Final = "rolled_back"
"""The detail of an error that says: the pool went back to the version before by itself."""
MIN_OPERATIONS = 20
"""Operations of the new version before it may count as worse; fewer prove little."""
ENOUGH_OPERATIONS = 200
"""So many good ones are enough to go on before the time is over. Of a version that fails one time in ten, they show
about twenty failures; the first twenty operations would show none as often as one time in eight."""
MAX_ERROR_RATE_RISE = 0.05
"""Largest rise of the error rate that passes."""
SURE = 2.0
"""Standard errors by which the rates must differ to roll back before the time is over."""
MAX_LATENCY_RATIO = 1.5
MAX_LATENCY_RISE_S = 0.05
"""The mean run time may grow by this factor, or by this much, whichever is more."""


class Verdict(Message, Struct, frozen=True):
    decision: Literal["go", "wait", "back"]
    reason: str


def judge(old: VersionNumbers | None, new: VersionNumbers | None, *, time_over: bool) -> Verdict:
    """Compares the canary's version with the one that ran before.

    A clear difference after `MIN_OPERATIONS` goes back, `ENOUGH_OPERATIONS` without one go on; everything else waits
    until `time_over`, when the operations so far decide. Without any the new version goes on: it loaded.
    """
    after = new or VersionNumbers()
    before = old or VersionNumbers()
    worse = _worse(before, after)
    if time_over:
        if worse:
            return Verdict("back", worse)
        return Verdict("go", _rates(after) if after.operations else "no operation to compare; it loaded")
    if after.operations < MIN_OPERATIONS:
        # Half of `MIN_OPERATIONS`, and all failed: no more users need to see that.
        if after.operations >= MIN_OPERATIONS // 2 and after.errors == after.operations > before.errors:
            return Verdict("back", f"all of its first {after.operations} operations failed")
        return Verdict("wait", f"{after.operations} of {MIN_OPERATIONS} operations seen")
    if worse:
        sure = not _fails_more(before, after) or _standard_errors(before, after) >= SURE
        return Verdict("back" if sure else "wait", worse)
    if after.operations < ENOUGH_OPERATIONS:
        return Verdict("wait", f"{_rates(after)}; {after.operations} of {ENOUGH_OPERATIONS} operations seen")
    return Verdict("go", _rates(after))


def _worse(before: VersionNumbers, after: VersionNumbers) -> str:
    """How the new version is worse; empty if it is not."""
    if _fails_more(before, after):
        return f"error rate {after.error_rate:.1%}, before {before.error_rate:.1%}"
    allowed = max(before.run_s * MAX_LATENCY_RATIO, before.run_s + MAX_LATENCY_RISE_S)
    if before.operations and after.least_s > allowed:
        note = f" ({after.running} still running)" if after.least_s > after.run_s else ""
        return f"mean run time {after.least_s:.3f} s{note}, before {before.run_s:.3f} s"
    return ""


def _fails_more(before: VersionNumbers, after: VersionNumbers) -> bool:
    return after.error_rate > before.error_rate + MAX_ERROR_RATE_RISE


def _standard_errors(before: VersionNumbers, after: VersionNumbers) -> float:
    """How far the error rates lie apart, in standard errors of their difference."""
    if not before.operations:
        return math.inf
    both = (before.errors + after.errors) / (before.operations + after.operations)
    deviation = math.sqrt(both * (1 - both) * (1 / before.operations + 1 / after.operations))
    return (after.error_rate - before.error_rate) / deviation if deviation else math.inf


def _rates(after: VersionNumbers) -> str:
    return f"error rate {after.error_rate:.1%}, mean run time {after.run_s:.3f} s"
