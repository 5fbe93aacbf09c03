"""Events as sentences: what `dspool events`, the dashboard and the report say of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from dspool.telemetry.event_log import LoggedEvent
from dspool.telemetry.events import EVENTS


def sentence(seen: LoggedEvent) -> str:
    """One sentence about the event. Names in it come from users and are text, whatever they hold."""
    about = _About(seen.measurements, seen.metadata)
    if (say := _SENTENCES.get(seen.event)) is not None:
        return say(about)
    if seen.event in ("alert.firing", "alert.resolved"):
        return about.name("summary") or about.name("alert", seen.event)
    row = EVENTS.get(seen.event)
    return _upper(row.meaning if row is not None else seen.event) + about.because()


def resize_text(measurements: Mapping[str, float], metadata: Mapping[str, Any]) -> str:
    """A new size in few words, as charts mark it."""
    about = _About(measurements, metadata)
    return f"{about.amount('from')} -> {about.amount('to')}{_overflow(about)}{about.because()}"


class _About(NamedTuple):
    """What is known of one event; any of it may be missing."""

    numbers: Mapping[str, float]
    facts: Mapping[str, Any]

    def name(self, key: str, otherwise: str = "") -> str:
        value = self.facts.get(key)
        return otherwise if value in (None, "") else str(value)

    def amount(self, key: str) -> str:
        return f"{self.numbers.get(key, 0):g}"

    def counted(self, key: str, one: str, many: str = "") -> str:
        """So many of them, in the right number."""
        return f"{self.amount(key)} {one if self.numbers.get(key, 0) == 1 else many or one + 's'}"

    def after(self, key: str = "duration_s", word: str = "after") -> str:
        return f" {word} {_time(self.numbers[key])}" if key in self.numbers else ""

    def because(self, key: str = "reason") -> str:
        reason = self.name(key)
        return f": {reason}" if reason else ""

    @property
    def worker(self) -> str:
        return f"Worker {self.name('worker')}" if self.name("worker") else "A worker"

    @property
    def session(self) -> str:
        return f"Session {self.name('session_hash')}" if self.name("session_hash") else "A session"

    @property
    def version(self) -> str:
        return f"{self.name('program', 'A program')} v{self.name('version', '?')}"


def _overflow(about: _About) -> str:
    return f" and {about.amount('overflow')} overflow" if about.numbers.get("overflow") else ""


def _decision(about: _About) -> str:
    size = about.counted("target", "worker") + _overflow(about)
    action = about.name("action")
    verb = "Kept" if action == "hold" else "Grew to" if action == "grow" else "Shrank to"
    return f"{verb} {size}{about.because()}"


def _pool_error(about: _About) -> str:
    reason = about.name("reason")
    # The pool says there which worker it was.
    return _upper(reason) if reason else f"The pool met an error{about.because('code')}"


def _recovery(about: _About) -> str:
    whole = f"The pool has all its workers again{about.after()}"
    cause = about.name("reason")
    return f"{whole} ({cause})" if cause else whole


def _warmup(about: _About) -> str:
    failed = f", {about.amount('failed')} failed" if about.numbers.get("failed") else ""
    return f"Warmed {about.counted('workers', 'worker')}{failed}{about.after(word='in')}"


def _blocked(about: _About) -> str:
    place = f"{about.name('file')}:{about.name('line', '?')}" if about.name("file") else ""
    where = f" at {place}" if place else ""
    held = about.after(word="for")
    return f"{about.name('program', 'A program')} held the event loop of {_lower(about.worker)}{held}{where}"


def _ended(about: _About) -> str:
    did = f", {about.counted('operations', 'operation')} done" if "operations" in about.numbers else ""
    return f"{about.worker} ended{about.after('age_s')}{did}{about.because()}"


def _canary(about: _About) -> str:
    seen = about.numbers
    tried = f"{about.version} was tried on {_lower(about.worker)}{about.after(word='for')}"
    if "operations" in seen:
        tried += f": {about.counted('operations', 'operation')}, {seen.get('error_rate', 0):.1%} failed"
    verdict = {"go": "; it goes on", "back": "; it goes back"}.get(about.name("action"), "")
    return tried + verdict + about.because()


def _moved(about: _About) -> str:
    before = f" from {about.name('from_worker')}" if about.name("from_worker") else ""
    return f"{about.session} moved{before} to {about.name('worker', 'a worker')}{about.after(word='in')}"


_SENTENCES: Final[dict[str, Callable[[_About], str]]] = {
    "pool.init": lambda a: (
        f"The pool began to serve{a.after()} with {a.counted('size', 'worker')}"
        if "size" in a.numbers
        else f"The pool began to serve{a.after()}"
    ),
    "pool.terminate": lambda a: f"The pool was shut down{a.after()}{a.because()}",
    "pool.warmup": _warmup,
    "pool.resize": lambda a: f"Size {resize_text(a.numbers, a.facts)}",
    "pool.decision": _decision,
    "pool.error": _pool_error,
    "pool.recovery": _recovery,
    "worker.init": lambda a: f"{a.worker} is warm{a.after()}",
    "worker.fallback": lambda a: f"{a.worker} was not forked{a.because()}",
    "worker.unshared": lambda a: f"{a.worker} loaded by itself what it was to share{a.because()}",
    "worker.loop_blocked": _blocked,
    "worker.terminate": _ended,
    "worker.health_check": lambda a: f"{a.worker} was asked for its health{a.because()}",
    "limit.refused": lambda a: f"{a.name('limit', 'A limit')} refused {a.counted('count', 'request')}",
    "session.created": lambda a: f"{a.session} began on {a.name('worker', 'a worker')}",
    "session.moved": _moved,
    "session.expired": lambda a: f"{a.session} expired{a.after('idle_s')} without use",
    "session.lost": lambda a: f"{a.session} could not be rebuilt{a.because('code')}",
    "store.serving": lambda a: f"The session store serves, at epoch {a.amount('epoch')}",
    "store.replaced": lambda a: f"A session store ended: another one serves the pool{a.because()}",
    "program.deployed": lambda a: (
        f"{a.version} is on all {a.counted('workers', 'worker')}{a.after()}"
        if a.numbers.get("workers", 0) > 1
        else f"{a.version} is on all workers{a.after()}"
    ),
    "program.canary": _canary,
    "program.saved_elsewhere": lambda a: f"{a.version} was saved with other software{a.because()}",
    "program.source_changed": lambda a: f"{a.worker} has other source than {a.version}{a.because()}",
    "telemetry.handler_failed": lambda a: (
        f"Handler {a.name('handler', '?')} of {a.name('event', 'events')} was detached{a.because('error')}"
    ),
}
"""What the table's meaning does not say well enough. Each takes whatever is missing."""


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


__all__ = ["resize_text", "sentence"]
