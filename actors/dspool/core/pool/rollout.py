"""Whether a new version of a pool program may go on from its canary worker to all: a pure comparison."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

MIN_OPERATIONS = 20
"""Operations of the new version after which it is judged; fewer prove little."""
MAX_ERROR_RATE_RISE = 0.05
"""Largest rise of the error rate that passes."""
MAX_LATENCY_RATIO = 1.5
MAX_LATENCY_RISE_S = 0.05
"""The mean run time may grow by this factor, or by this much, whichever is more."""


class VersionNumbers(Struct, frozen=True):
    """What one version of a program (or one worker) did in some time."""

    operations: int = 0
    errors: int = 0
    """Outcomes "error" and "timeout"; what callers did wrong does not count."""
    run_s: float = 0.0
    """Mean run time."""

    @property
    def error_rate(self) -> float:
        return self.errors / self.operations if self.operations else 0.0


class Verdict(Struct, frozen=True):
    decision: Literal["go", "wait", "back"]
    reason: str


def judge(old: VersionNumbers | None, new: VersionNumbers | None, *, time_over: bool) -> Verdict:
    """Compares the canary's version with the one that ran before.

    Fewer than `MIN_OPERATIONS` operations wait for more, until `time_over`; then whatever there is decides. With
    no operation at all, that the version loaded is all that is known, and it goes on.
    """
    seen = new or VersionNumbers()
    before = old or VersionNumbers()
    if seen.operations < MIN_OPERATIONS and not time_over:
        # Half of what is needed, all failed: no more users need to see that.
        if seen.operations >= MIN_OPERATIONS // 2 and seen.errors == seen.operations > before.errors:
            return Verdict("back", f"all of its first {seen.operations} operations failed")
        return Verdict("wait", f"{seen.operations} of {MIN_OPERATIONS} operations seen")
    if not seen.operations:
        return Verdict("go", "no operation to compare; it loaded")
    if seen.error_rate > before.error_rate + MAX_ERROR_RATE_RISE:
        return Verdict("back", f"error rate {seen.error_rate:.1%}, before {before.error_rate:.1%}")
    allowed = max(before.run_s * MAX_LATENCY_RATIO, before.run_s + MAX_LATENCY_RISE_S)
    if before.operations and seen.run_s > allowed:
        return Verdict("back", f"mean run time {seen.run_s:.3f} s, before {before.run_s:.3f} s")
    return Verdict("go", f"error rate {seen.error_rate:.1%}, mean run time {seen.run_s:.3f} s")
