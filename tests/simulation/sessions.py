"""What sessions answered: held against some order of their operations, and against where they ran."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tests.simulation.history import Call, History, Run
from tests.simulation.linearizability import TooManyWays, linearizable

NEVER_SENT = frozenset({"queue_full", "pool_paused", "poison_request"})

State = tuple[bool, tuple[tuple[str, Any], ...]]
"""Whether the session exists, and its variables."""
UNREAD = "unread"
"""A value that nobody has read: one is like another."""


def unexplained(history: History) -> Iterator[str]:
    """Answers that no order of a session's operations explains."""
    by_session: dict[str, list[Call]] = defaultdict(list)
    for call in history.calls.values():
        if call.session is not None:
            by_session[call.session].append(call)
    for session, calls in by_session.items():
        read = {call.answer for call in calls if call.what == "get" and call.outcome == "ok"}
        # From then on nothing else than its change comes of a change that failed, and nobody has read that.
        exists_from = min(
            (call.ended_at or 0.0 for call in calls if call.outcome == "ok" and call.what != "end"),
            default=float("inf"),
        )
        if any(call.what == "end" for call in calls):
            exists_from = float("inf")
        asked = [
            (call, call.value in read)
            for call in calls
            if _matters(call) and (call.value in read or not exists_from <= call.sent_at or _certain(call))
        ]
        try:
            call = _first_unexplained(asked)
        except TooManyWays:
            yield f"{session}: cannot be told, its operations have too many orders"
            continue
        if call is not None:
            yield (
                f"{session}: no order of its operations explains "
                f"{call.id} ({call.what} {call.key}: {call.outcome} {call.answer})"
            )


def _certain(call: Call) -> bool:
    """Whether it took effect before it ended, for sure."""
    return call.outcome in ("ok", "unknown_session")


def _matters(call: Call) -> bool:
    if _certain(call):
        return True
    # What may have happened all the same; of a change that is refused, the beginning of its session.
    return call.outcome not in NEVER_SENT and call.what in ("set", "bad set", "end")


def _first_unexplained(asked: list[tuple[Call, bool]]) -> Call | None:
    """The call whose answer no order explains. `asked` are (call, whether somebody read its value)."""
    operations: list[tuple[float, float | None, Call | None]] = []
    for call, is_read in asked:
        ended_at = call.ended_at if _certain(call) else None
        if call.what in ("set", "bad set") and not is_read:
            operations.append(
                (call.sent_at, ended_at, replace(call, value=UNREAD) if _certain(call) else None)
            )
        else:
            operations.append((call.sent_at, ended_at, call))

    def kind(call: Call | None) -> Any:
        return (call.key, UNREAD) if call is not None and call.value is UNREAD else id(call)

    def may_wait(state: State, change: Call | None, pending: Sequence[Call | None]) -> bool:
        if change is None or change.what != "set" or not state[0]:
            return False
        # Nobody sees it before it is read.
        return not any(
            other is not None
            and other.what == "get"
            and (other.key, other.answer) == (change.key, change.value)
            for other in pending
        )

    return linearizable(operations, (False, ()), _apply, kind, may_wait)


def _apply(state: State, call: Call | None) -> State | None:
    """The state after the call, or None if it cannot have had its outcome in this state, or explains nothing there. No
    call is one that failed and of which nobody has read anything: its session may have come into being before."""
    exists, variables = state
    if call is None:
        return None if exists else (True, ())
    if call.what == "end" and not _certain(call) and not exists:
        return None
    if call.outcome == "unknown_session":
        return state if not exists else None
    if call.what == "set":
        return True, tuple(sorted({**dict(variables), call.key: call.value}.items()))
    if call.what == "end":
        if call.outcome == "ok" and bool(call.answer["ended"]) != exists:
            return None
        return False, ()
    if not exists:
        return None
    if call.what == "get" and dict(variables).get(call.key) != call.answer:
        return None
    return state


def changed_late(history: History) -> Iterator[str]:
    """What a worker has begun takes no effect any more once its session goes on elsewhere."""
    by_session: dict[str, list[Run]] = defaultdict(list)
    for run in history.runs:
        if run.session is not None:
            by_session[run.session].append(run)
    for call in history.calls.values():
        if call.what != "set" or call.value is None or _certain(call) or call.session is None:
            continue
        runs = by_session[call.session]
        own = [run for run in runs if run.call == call.id]
        moved_at = min((run.began_at for run in runs if own and _after(run, own)), default=float("inf"))
        reads = [
            read
            for read in history.calls.values()
            if read.what == "get"
            and read.outcome == "ok"
            and (read.session, read.key) == (call.session, call.key)
        ]
        others = [read.ended_at for read in reads if read.sent_at >= moved_at and read.answer != call.value]
        first = min((ended_at for ended_at in others if ended_at is not None), default=float("inf"))
        for read in reads:
            if read.answer == call.value and read.sent_at > first:
                yield f"{call.id} ended with {call.outcome}, and took effect when {call.session} had moved: {read.id}"
                break


def _after(run: Run, own: list[Run]) -> bool:
    return all(run.worker != one.worker and run.began_at > one.began_at for one in own)
