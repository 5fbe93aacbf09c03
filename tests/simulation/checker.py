"""Holds a history against the promises. Knows nothing of the engine but what docs/promises.md says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from tests.simulation import sessions
from tests.simulation.history import Call, History, Run

LATE_S = 1.0
"""How much later than its deadline an operation may end: timers of a process that is busy come late."""
CALM_S = 5.0
"""What a short operation takes at most when the faults are over, the wait behind a few others included."""
DECLARED = frozenset(
    {
        "ok",
        "left",
        "worker_lost",
        "deadline_exceeded",
        "invalid_request",
        "queue_full",
        "pool_paused",
        "program_error",
        "unknown_session",
        "unknown_program",
        "store_failed",
        "poison_request",
    }
)
TROUBLES = frozenset({"partition", "power off", "freeze", "slow network", "reset"})
"""What makes a worker that lives look dead."""
DOUBTS = TROUBLES - {"freeze"} | {"report_dead", "deploy", "rollback", "lost orders"}
"""What else may speak against a worker."""
REASON_S = 60.0
FREED_S = 2.0
TOLD_S = 5.0
"""Until a client hears that what it waits for is over."""
SHUNNED_S = 10.0
MOVED_S = 3.0
"""Until a session has moved whose worker is full."""
HEARD_S = 0.1
"""Until clients hear that a worker died: what they send it meanwhile counts as begun."""
PAUSE_S = 1.0
"""The longest before another try."""


def violations(
    history: History,
    *,
    slots: int,
    late_s: float = LATE_S,
    calm_s: float = CALM_S,
    declared: frozenset[str] = DECLARED,
) -> list[str]:
    """A sentence for each promise that the history breaks, and where; empty if it keeps them all.

    Args:
        late_s: how much later than its deadline an operation may end.
        calm_s: what an operation may take that nothing disturbs.
        declared: how operations may end.
    """
    return [
        f"{name}: {found}"
        for name, check in (
            ("ends exactly once", _ends(history)),
            ("nothing hangs", _hangs(history)),
            ("deadline", _deadlines(history, late_s)),
            ("declared errors", _errors(history, declared)),
            ("answers are one's own", _answers(history)),
            ("slots", _slots(history, slots)),
            ("runs", _attempts(history)),
            ("one operation of a session at a time", _overlaps(history)),
            ("a session's operations keep their order", _order(history)),
            ("lost for a reason", _losses(history)),
            ("a worker that leaves ends what it runs", _leaves(history)),
            ("who was given up changes nothing", sessions.changed_late(history)),
            ("only who missed all its checks is given up", _misses(history)),
            ("who was told to end gets no traffic", _shunned(history)),
            ("a full worker keeps no session", _moves(history)),
            ("nobody keeps a slot in vain", _vain(history)),
            ("an end is heard of soon", _heard(history)),
            ("one version, one code", _versions(history)),
            ("sessions are linearizable", sessions.unexplained(history)),
            ("whole again", _whole(history, calm_s)),
            ("true books", _books(history)),
            ("nothing is kept", iter(history.leftovers)),
            ("no defects", iter(history.errors)),
        )
        for found in check
    ]


def _ends(history: History) -> Iterator[str]:
    for call in history.calls.values():
        if call.ends > 1:
            yield f"{call.id} ended {call.ends} times"


def _hangs(history: History) -> Iterator[str]:
    dead = {fault["process"] for fault in history.faults if fault["kind"] == "kill"} | history.lost_clients
    for call in history.calls.values():
        if call.ended_at is None and call.client not in dead:
            yield f"{call.id} ({call.what}) never ended"


def _deadlines(history: History, tolerance_s: float) -> Iterator[str]:
    for call in history.calls.values():
        if call.ended_at is None:
            continue
        frozen_s = _still_s(history.frozen, call.client, call.sent_at, call.ended_at)
        late_s = call.ended_at - call.sent_at - call.timeout_s - frozen_s
        if late_s > tolerance_s:
            yield f"{call.id} ({call.what}) ended {late_s:.2f} s after its deadline: {call.outcome}"


def _still_s(pauses: list[tuple[str, float, float]], process: str, since: float, until: float) -> float:
    """For how long of that time the process stood still."""
    return sum(
        max(0.0, min(end, until) - max(begin, since)) for name, begin, end in pauses if name == process
    )


def _errors(history: History, declared: frozenset[str]) -> Iterator[str]:
    for call in history.calls.values():
        if call.outcome is not None and call.outcome not in declared:
            yield f"{call.id} ({call.what}) ended with {call.outcome}"


def _answers(history: History) -> Iterator[str]:
    for call in history.calls.values():
        if call.outcome == "ok" and call.what in ("execute", "stream", "session execute"):
            outputs = call.answer["outputs"]
            if outputs["call"] != call.id or outputs.get("session") != call.session:
                yield f"{call.id} got the answer of {outputs['call']}"


def _until(run: Run, history: History) -> float:
    if run.ended_at is not None:
        return run.ended_at
    return history.deaths.get(run.worker, float("inf"))


def _slots(history: History, slots: int) -> Iterator[str]:
    changes: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for run in history.runs:
        changes[run.worker] += [(run.began_at, 1), (_until(run, history), -1)]
    for worker, steps in changes.items():
        running = 0
        for at, step in sorted(steps):
            running += step
            if running > slots:
                yield f"{worker} ran {running} at {at:.3f}, with {slots} slots"
                break


def _attempts(history: History) -> Iterator[str]:
    counts: dict[str, int] = defaultdict(int)
    for run in history.runs:
        counts[run.call] += 1
    for name, count in counts.items():
        call = history.calls.get(name)
        if call is None or call.what == "set":
            continue  # a change that found its lease gone took no effect, and may run again
        most = call.attempts if call.idempotent and call.what != "stream" else 1
        if count > most:
            yield f"{name} ({call.what}) ran {count} times, of {most}"


def _overlaps(history: History) -> Iterator[str]:
    frozen = {name for name, _, _ in history.frozen}
    cut_off = any(fault["kind"] in ("partition", "power off") for fault in history.faults)
    by_session: dict[str, list[Run]] = defaultdict(list)
    for run in history.runs:
        if run.session is not None:
            by_session[run.session].append(run)
    for session, runs in by_session.items():
        runs.sort(key=lambda run: run.began_at)
        for one, other in pairwise(runs):
            if _until(one, history) <= other.began_at:
                continue
            # What a worker had begun that was declared dead may go on until it is killed.
            given_up = one.worker != other.worker and (
                one.worker in frozen or one.worker in history.deaths or cut_off
            )
            if not given_up:
                yield f"{session} ran {one.call} on {one.worker} and {other.call} on {other.worker} at once"


def _order(history: History) -> Iterator[str]:
    """What a client sent first begins first, unless it had ended before the other began."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in history.runs:
        runs[run.call].append(run)
    before: dict[tuple[str, str], Call] = {}
    for call in sorted(history.calls.values(), key=lambda call: call.sent_at):
        if call.session is None or call.id not in runs:
            continue
        earlier = before.get((call.client, call.session))
        before[call.client, call.session] = call
        if earlier is None:
            continue
        began_at = runs[call.id][0].began_at
        if runs[earlier.id][-1].began_at > began_at and (
            earlier.ended_at is None or earlier.ended_at > began_at
        ):
            yield f"{earlier.id} was sent before {call.id} and ran after it"


def _losses(history: History) -> Iterator[str]:
    """No worker is given up that is well, and one that leaves in order takes nothing along."""
    troubles, deaths = _troubles(history), _losing(history)
    for call in history.calls.values():
        if call.outcome != "worker_lost" or call.ended_at is None:
            continue
        since, until = call.sent_at - REASON_S, call.ended_at + REASON_S
        if any(since <= at <= until for at in troubles):
            continue
        if not any(since <= at <= until for at in deaths):
            yield f"{call.id} ({call.what}) ended with worker_lost, and no worker died or stood still"
        elif call.sent_at + call.timeout_s - call.ended_at <= PAUSE_S:
            continue  # no time is left for another try, and the pause before it
        elif call.idempotent and call.what in ("execute", "session execute"):
            died = sum(call.sent_at - 1.0 <= at <= call.ended_at + 1.0 for at in deaths)
            if died < call.attempts:
                yield f"{call.id} ({call.what}) was given up when {died} workers had died, of {call.attempts} tries"


def _leaves(history: History) -> Iterator[str]:
    """A worker is drained, unless it died: it is told to end when all that it runs has ended."""
    for run in history.runs:
        stopped_at, call = history.stopped.get(run.worker), history.calls.get(run.call)
        if stopped_at is None or call is None or not run.began_at < stopped_at <= _until(run, history):
            continue
        if call.ended_at is None or call.ended_at >= stopped_at:
            yield f"{call.id} ({call.what}) still ran on {run.worker} when that was told to end"


def _misses(history: History) -> Iterator[str]:
    """While nothing else speaks against it, a worker that stands still now and then is not given up."""
    doubts = [fault["at"] for fault in history.faults if fault["kind"] in DOUBTS]
    doubts += [fault["at"] for fault in history.faults if fault.get("process") == "supervisor"]
    doubts += [at for name, *both in history.frozen if name == "supervisor" for at in both]
    for worker, at in history.ordered.items():
        if worker in history.stopped or history.deaths.get(worker, at) < at:
            continue
        others = [
            history.ordered[other] for other in history.ordered.keys() - history.stopped if other != worker
        ]
        if any(at - REASON_S <= doubt <= at for doubt in doubts + others):
            continue
        if not any(run.worker == worker and run.began_at < at for run in history.runs):
            continue  # it never was warm
        pauses = [(begin, end) for name, begin, end in history.frozen + history.blocked if name == worker]
        checks = [at - before_s for before_s in history.health_s]
        answered = [
            check
            for check in checks
            if not any(begin <= check + HEARD_S and check + HEARD_S <= end for begin, end in pauses)
        ]
        if answered:
            yield f"{worker} was given up at {at:.2f}, and nothing kept it from answering at {answered[0]:.2f}"


def _shunned(history: History) -> Iterator[str]:
    """What is sent long after a worker was told to end runs elsewhere, however well that is by then."""
    cut_off = _troubles(history, frozenset({"partition", "power off"}))
    for run in history.runs:
        at, call = history.ordered.get(run.worker), history.calls.get(run.call)
        if at is None or call is None or call.sent_at <= at + SHUNNED_S:
            continue
        # Whoever stood still or was cut off has not heard of it.
        unheard = any(at - REASON_S <= trouble <= call.sent_at for trouble in cut_off)
        if not unheard and not _still_s(history.frozen, call.client, at, call.sent_at):
            late_s = call.sent_at - at
            yield f"{call.id} ({call.what}) was sent {late_s:.1f} s after {run.worker} was told to end, and ran there"


def _moves(history: History) -> Iterator[str]:
    """Where affinity is `prefer`, a session whose worker is full moves to one that is not."""
    for call in history.calls.values():
        if not call.moves or call.ended_at is None or call.ended_at - call.sent_at <= MOVED_S:
            continue
        # Who takes the place of a worker may not be there yet.
        if not any(call.sent_at - 1.0 <= at <= call.ended_at + MOVED_S for at in history.deaths.values()):
            took_s = call.ended_at - call.sent_at
            yield f"{call.id} ({call.what}) took {took_s:.1f} s: {call.session} stayed where no slot was free"


def _vain(history: History) -> Iterator[str]:
    """What nobody waits for any more is cancelled on its worker, or ends there at its deadline."""
    # Of all else the worker hears, or it stands still itself. What is stopped may stand between the two.
    troubles = _troubles(history, frozenset({"partition", "power off", "stop"}))
    killed = {fault["process"]: fault["at"] for fault in history.faults if fault["kind"] == "kill"}
    for run in history.runs:
        call = history.calls.get(run.call)
        if call is None or not call.heeds or call.outcome not in (None, "left", "deadline_exceeded"):
            continue
        gone_at = killed.get(call.client, float("inf")) if call.ended_at is None else call.ended_at
        gone_at = min(gone_at, call.sent_at + call.timeout_s)
        until = _until(run, history)
        # A program that blocks its worker keeps all that runs there from being cancelled.
        blocked_s = _still_s(history.blocked + history.frozen, run.worker, gone_at, until)
        if until <= gone_at + FREED_S + blocked_s:
            continue
        if not any(call.sent_at - REASON_S <= at <= gone_at + FREED_S for at in troubles):
            yield f"{call.id} ({call.what}) still ran on {run.worker} {FREED_S:g} s after it had ended"


def _heard(history: History) -> Iterator[str]:
    """Whoever waits for what runs once hears that it is over: from its worker, or by the death of that."""
    # Of a connection that was reset both ends hear at once.
    troubles = _troubles(history, TROUBLES - {"reset"})
    for run in history.runs:
        call = history.calls.get(run.call)
        if call is None or call.ended_at is None or call.session is not None:
            continue
        over_at = _until(run, history)
        late_s = call.ended_at - over_at - _still_s(history.frozen, call.client, over_at, call.ended_at)
        # A program that blocks its worker keeps what else has ended there from being told.
        late_s -= _still_s(history.blocked, run.worker, over_at, call.ended_at)
        if (call.idempotent and call.what != "stream") or late_s <= TOLD_S:
            continue
        if not any(call.sent_at - REASON_S <= at <= call.ended_at for at in troubles):
            yield f"{call.id} ({call.what}) ended with {call.outcome} {late_s:.1f} s after it was over on {run.worker}"


def _troubles(history: History, kinds: frozenset[str] = TROUBLES) -> list[float]:
    """When something made workers look dead that live."""
    frozen = [at for _, *both in history.frozen for at in both if "freeze" in kinds]
    return frozen + [fault["at"] for fault in history.faults if fault["kind"] in kinds]


def _versions(history: History) -> Iterator[str]:
    codes: dict[int, str] = {}
    for run in history.runs:
        if run.version and codes.setdefault(run.version, run.code) != run.code:
            yield f"version {run.version} was {codes[run.version]} and {run.code}"


def _whole(history: History, calm_s: float) -> Iterator[str]:
    if history.ready_again_at is None:
        yield f"the pool did not become whole after the faults: {history.last_status}"
    for call in history.calls.values():
        if (
            not call.calm
            or call.outcome == "left"
            or (call.outcome == "worker_lost" and _interrupted(call, history))
        ):
            continue
        if call.outcome not in ("ok", "unknown_session"):
            yield f"{call.id} ({call.what}) ended with {call.outcome} in peace"
        elif call.ended_at is not None and call.ended_at - call.sent_at > calm_s:
            yield f"{call.id} ({call.what}) took {call.ended_at - call.sent_at:.1f} s in peace"


def _interrupted(call: Call, history: History) -> bool:
    assert call.ended_at is not None
    resets = _troubles(history, frozenset({"reset"}))
    return any(call.sent_at - HEARD_S <= at <= call.ended_at for at in _losing(history) + resets)


def _losing(history: History) -> list[float]:
    """When workers died that had not been told to end in order."""
    stopped = history.stopped
    return [at for worker, at in history.deaths.items() if at < stopped.get(worker, float("inf"))]


def _books(history: History) -> Iterator[str]:
    """The metrics have each operation once: all of the clients that live, and at most all."""
    if history.counted is None:
        return
    dead = {fault["process"] for fault in history.faults if fault["kind"] == "kill"} | history.lost_clients
    living = sum(call.client not in dead for call in history.calls.values())
    if not living <= history.counted <= len(history.calls):
        yield f"{history.counted} operations are counted, of {living} of living clients, {len(history.calls)} in all"
