"""Every metric that dspool exports, once: name, kind, help, labels, and the source of its value.

Ray's metrics, `GET /metrics`, the Grafana dashboards and the alert rules all come from `METRICS`. Names follow
Prometheus: base units in the name, `_total` for counters. Labels are bounded: pool, program (at most 64), outcome,
error code (at most 41), model (at most 33), event, limit, a worker's ordinal (at most 257), never a session, request
or worker id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal, NamedTuple

from dspool.core.metrics.histogram import Histogram
from dspool.core.metrics.measures import SlotSnapshot
from dspool.core.metrics.tally import OUTCOMES
from dspool.errors import StoreFailed
from dspool.messages import PoolStatus
from dspool.telemetry.event_log import FORWARDED, LIMITS
from dspool.telemetry.snapshot import Snapshot

BOUNDARIES: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
"""Upper bounds (seconds) of the exported buckets."""
UNATTRIBUTED: Final = "(unattributed)"
"""Stands for the program of ended operations whose program is unknown: sums over programs stay exact."""
POOL_STATES: Final = ("starting", "ready", "degraded", "paused", "closed")


Value = float | Histogram
Sample = tuple[tuple[str, ...], Value]
"""Values of the labels other than `pool`, and the value."""
Read = Callable[[Snapshot], Iterable[Sample]]
Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    """Besides `pool`, which every metric has."""
    read: Read


# --- where values come from ---


def _value(value: Callable[[Snapshot], float]) -> Read:
    return lambda snapshot: [((), value(snapshot))]


def _level(name: str) -> Read:
    return lambda snapshot: [((), getattr(snapshot.metrics, name))]


def _limit(name: str) -> Read:
    return lambda snapshot: [((), getattr(snapshot.limits, name))]


def _loss(name: str) -> Read:
    return lambda snapshot: [((), getattr(snapshot.metrics.telemetry, name))]


def _status(value: Callable[[PoolStatus], float]) -> Read:
    """A value of the supervisor's report."""
    return lambda snapshot: [((), value(snapshot.status))] if snapshot.status is not None else []


def _states(snapshot: Snapshot) -> Iterable[Sample]:
    if snapshot.status is not None:
        for state in POOL_STATES:
            yield (state,), float(snapshot.status.state == state)


def _workers(snapshot: Snapshot) -> Iterable[Sample]:
    for state in ("active", "idle", "starting", "spare"):
        yield (state,), getattr(snapshot.metrics, state)


def _outcomes(snapshot: Snapshot) -> Iterable[Sample]:
    remainder = dict(snapshot.metrics.counters.by_outcome)
    for program, figures in snapshot.metrics.programs.items():
        for outcome in OUTCOMES:
            number = figures.counters.by_outcome[outcome]
            remainder[outcome] -= number
            yield (program, outcome), number
    for outcome in OUTCOMES:
        yield (UNATTRIBUTED, outcome), max(0, remainder[outcome])


def _program(name: str) -> Read:
    return lambda snapshot: [
        ((program,), getattr(figures.counters, name))
        for program, figures in snapshot.metrics.programs.items()
    ]


def _tokens(snapshot: Snapshot) -> Iterable[Sample]:
    for program, figures in snapshot.metrics.programs.items():
        yield (program, "input"), figures.counters.input_tokens
        yield (program, "output"), figures.counters.output_tokens
        yield (program, "cached_input"), figures.counters.cached_tokens
        yield (program, "reasoning"), figures.counters.reasoning_tokens


def _costs(snapshot: Snapshot) -> Iterable[Sample]:
    for program, figures in snapshot.metrics.programs.items():
        for model, cost in figures.counters.cost_usd_by_model.items():
            yield (program, model), cost


def _model_calls(*names: str) -> Read:
    return lambda snapshot: [
        ((name,) if len(names) > 1 else (), snapshot.metrics.model_calls.get(name, 0)) for name in names
    ]


def _codes(snapshot: Snapshot) -> Iterable[Sample]:
    # What an alert reads is there before the first one: Prometheus sees no increase in where a series begins.
    codes = {StoreFailed.code: 0, **snapshot.metrics.counters.errors_by_code}
    return [((code,), number) for code, number in codes.items()]


def _durations(index: int) -> Read:
    return lambda snapshot: [((program,), pair[index]) for program, pair in snapshot.histograms.items()]


def _worker(value: Callable[[SlotSnapshot], float]) -> Read:
    return lambda snapshot: [
        ((str(ordinal),), value(figures)) for ordinal, figures in snapshot.metrics.workers.items()
    ]


def _worker_outcomes(snapshot: Snapshot) -> Iterable[Sample]:
    for ordinal, figures in snapshot.metrics.workers.items():
        for outcome, number in figures.counters.by_outcome.items():
            yield (str(ordinal), outcome), number


def _refusals(snapshot: Snapshot) -> Iterable[Sample]:
    return [((limit,), snapshot.refusals.get(limit, 0)) for limit in LIMITS]


def _events(snapshot: Snapshot) -> Iterable[Sample]:
    # Also those that never happened: Prometheus sees no increase in the first value of a series.
    return [((name,), snapshot.events.get(name, 0)) for name in FORWARDED]


def _blocked(snapshot: Snapshot) -> Iterable[Sample]:
    return [((program or UNATTRIBUTED,), seconds) for program, seconds in snapshot.blocked_s.items()]


# --- the table ---


_PROGRAM, _WORKER = ("program",), ("slot",)

METRICS: Final = (
    # the pool
    Metric(
        "dspool_pool_health_score",
        "gauge",
        "How well the pool does, 0 to 100.",
        (),
        _value(lambda snapshot: snapshot.metrics.health.score),
    ),
    Metric(
        "dspool_pool_ready",
        "gauge",
        "1 if at least min_ready workers are warm.",
        (),
        _status(lambda status: status.ready),
    ),
    Metric("dspool_pool_state", "gauge", "1 for the state that the pool is in.", ("state",), _states),
    Metric(
        "dspool_pool_workers",
        "gauge",
        "Workers: running operations, idle, starting, or spare.",
        ("state",),
        _workers,
    ),
    Metric("dspool_pool_overflow_workers", "gauge", "Workers beyond the base size.", (), _level("overflow")),
    Metric(
        "dspool_pool_desired_workers", "gauge", "Workers that should take traffic.", (), _level("desired")
    ),
    Metric("dspool_pool_min_workers", "gauge", "Configured min_pool_size.", (), _limit("min_pool_size")),
    Metric("dspool_pool_max_workers", "gauge", "Configured max_pool_size.", (), _limit("max_pool_size")),
    Metric("dspool_pool_desired_spares", "gauge", "Configured spares.", (), _limit("spares")),
    Metric("dspool_pool_sizing_enabled", "gauge", "1 if the optimizer sizes the pool.", (), _limit("sizing")),
    Metric(
        "dspool_pool_utilization_ratio",
        "gauge",
        "Slot-seconds used / slot-seconds available in the last seconds.",
        (),
        _level("utilization"),
    ),
    Metric("dspool_pool_sessions", "gauge", "Sessions that workers hold.", (), _level("sessions")),
    Metric("dspool_pool_clients", "gauge", "Clients heard of lately.", (), _level("clients")),
    Metric(
        "dspool_worker_failures_total",
        "counter",
        "Workers that died, were given up or could not be started.",
        (),
        _status(lambda status: status.failures),
    ),
    Metric(
        "dspool_pool_fallback_workers",
        "gauge",
        "Workers that were to be forked and had to be started by exec.",
        (),
        _status(lambda status: sum(worker.start.startswith("exec:") for worker in status.workers)),
    ),
    # the queue
    Metric("dspool_queue_operations", "gauge", "Operations that wait for a slot.", (), _level("queue_depth")),
    Metric(
        "dspool_queue_limit_operations",
        "gauge",
        "Configured max_queue, of each client.",
        (),
        _limit("max_queue"),
    ),
    Metric(
        "dspool_queue_oldest_wait_seconds",
        "gauge",
        "How long the first in the queue has waited.",
        (),
        _level("oldest_wait_s"),
    ),
    Metric("dspool_queue_max_wait_seconds", "gauge", "Configured max_wait_s.", (), _limit("max_wait_s")),
    # operations
    Metric("dspool_running_operations", "gauge", "Operations on workers.", (), _level("running")),
    Metric(
        "dspool_operation_timeout_seconds",
        "gauge",
        "Configured operation_timeout_s.",
        (),
        _limit("operation_timeout_s"),
    ),
    Metric(
        "dspool_operations_submitted_total",
        "counter",
        "Operations that came in.",
        _PROGRAM,
        _program("arrivals"),
    ),
    Metric(
        "dspool_operations_total",
        "counter",
        "Ended operations; each counts once.",
        ("program", "outcome"),
        _outcomes,
    ),
    Metric(
        "dspool_operation_errors_total",
        "counter",
        "Operations that did not end ok, by error code.",
        ("code",),
        _codes,
    ),
    Metric(
        "dspool_operation_retries_total",
        "counter",
        "Tries beyond the first.",
        _PROGRAM,
        _program("retries"),
    ),
    Metric(
        "dspool_operation_duration_seconds",
        "histogram",
        "Submit to end of served operations (ok, error, timeout).",
        _PROGRAM,
        _durations(0),
    ),
    Metric(
        "dspool_operation_wait_seconds",
        "histogram",
        "Submit to start of served operations.",
        _PROGRAM,
        _durations(1),
    ),
    Metric(
        "dspool_lm_tokens_total",
        "counter",
        "Tokens that language models reported; cached_input is part of input, reasoning of output.",
        ("program", "direction"),
        _tokens,
    ),
    Metric(
        "dspool_lm_cost_usd_total",
        "counter",
        "US dollars for the tokens, by the configured prices.",
        ("program", "model"),
        _costs,
    ),
    Metric(
        "dspool_lm_retries_total",
        "counter",
        "Calls of models that were tried again.",
        (),
        _model_calls("retries"),
    ),
    Metric(
        "dspool_lm_cache_lookups_total",
        "counter",
        "Questions to the answer cache: found, not found, waited for the same question, or it did not answer.",
        ("outcome",),
        _model_calls("hits", "misses", "waits", "failures"),
    ),
    # workers, by ordinal: a dead worker's replacement takes its ordinal
    Metric(
        "dspool_worker_operations_total",
        "counter",
        "Operations that ended on the worker.",
        ("slot", "outcome"),
        _worker_outcomes,
    ),
    Metric(
        "dspool_worker_busy_seconds_total",
        "counter",
        "Slot-seconds spent running operations.",
        _WORKER,
        _worker(lambda worker: worker.busy_s),
    ),
    Metric(
        "dspool_worker_running_operations",
        "gauge",
        "Operations on the worker.",
        _WORKER,
        _worker(lambda worker: worker.running),
    ),
    Metric(
        "dspool_worker_operation_slots",
        "gauge",
        "Operations that the worker can run at once; 0: no worker reports.",
        _WORKER,
        _worker(lambda worker: worker.slots),
    ),
    Metric(
        "dspool_worker_sessions",
        "gauge",
        "Sessions that the worker holds.",
        _WORKER,
        _worker(lambda worker: worker.sessions),
    ),
    Metric(
        "dspool_worker_resident_memory_bytes",
        "gauge",
        "Resident memory of the worker.",
        _WORKER,
        _worker(lambda worker: worker.rss_mb * 2**20),
    ),
    Metric("dspool_loop_blocked_seconds_total", "counter", "Time that code held loops.", _PROGRAM, _blocked),
    Metric(
        "dspool_events_total",
        "counter",
        "Events that reached the metrics actor; what happens once an operation is not among them.",
        ("event",),
        _events,
    ),
    Metric(
        "dspool_limit_refusals_total",
        "counter",
        "Requests that a limit on what somebody may keep or ask for refused.",
        ("limit",),
        _refusals,
    ),
    # what the figures do not show
    Metric(
        "dspool_telemetry_dropped_samples_total",
        "counter",
        "Spans and events that clients could not keep.",
        (),
        _loss("dropped"),
    ),
    Metric(
        "dspool_telemetry_unattributed_operations_total",
        "counter",
        "Ended operations whose program and times never arrived.",
        (),
        _loss("unattributed"),
    ),
    Metric(
        "dspool_telemetry_duplicate_reports_total",
        "counter",
        "Reports that came twice and counted once.",
        (),
        _loss("duplicates"),
    ),
    Metric(
        "dspool_telemetry_foreign_reports_total",
        "counter",
        "Reports for another pool or in another format, ignored.",
        (),
        _loss("foreign"),
    ),
)

BY_NAME: Final = {metric.name: metric for metric in METRICS}
