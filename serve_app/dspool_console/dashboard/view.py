"""The overview, made from what the pool says, and how it differs from the one before. Pure: no clock, no asking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from dspool.config import PoolConfig
from dspool.core.autoscale.inputs import SizingConfig
from dspool.core.metrics.diagnosis import Diagnosis, StandingAlert, diagnose
from dspool.core.metrics.health import ERROR_OBJECTIVE
from dspool.core.metrics.measures import LiveUpdate, MetricsSnapshot
from dspool.messages import COMMAND_NAMES, PoolStatus
from dspool_console.alerts.watch import AlertNow
from dspool_serve.api.tables import ONLY_WITH_OPERATIONS

Row = dict[str, Any]

NOW: Final = (
    "window_s", "utilization", "throughput", "mean_s", "p50_s", "p95_s", "p99_s", "error_rate", "queue_depth",
    "oldest_wait_s", "wait_mean_s", "wait_p95_s", "wait_p99_s", "running", "sessions", "size", "desired", "active",
    "idle", "starting", "spare", "overflow", "input_tokens", "output_tokens", "rejected", "timeouts", "retries",
    "clients",
)  # fmt: skip
BOUNDS: Final = (
    "min_size", "max_size", "max_overflow", "target_utilization", "max_wait_s", "grow_cooldown_s", "shrink_cooldown_s",
)  # fmt: skip
_DIGITS: Final = 6


def overview(
    look: LiveUpdate | None,
    status: PoolStatus | None,
    config: PoolConfig,
    alerts: Row,
    at: float,
    standing: Iterable[AlertNow] = (),
) -> Row:
    """All that the cards show. `look` is None while the metrics are away; `alerts` sums `standing` up."""
    snapshot = look.snapshot if look is not None else None
    status = status or (look.status if look is not None else None)
    found = diagnosis(snapshot, status, config, standing)
    return {
        "at": snapshot.at if snapshot is not None else at,
        "diagnosis": found,
        "pool": pool_row(status, config),
        "now": None if snapshot is None else now_row(snapshot),
        "health": None if snapshot is None else health_row(snapshot, found),
        "totals": None if snapshot is None else totals_row(snapshot),
        "programs": [] if snapshot is None else program_rows(snapshot, status),
        "errors": () if snapshot is None else snapshot.errors,
        "telemetry": None if snapshot is None else snapshot.telemetry,
        "alerts": alerts,
    }


def diagnosis(
    snapshot: MetricsSnapshot | None,
    status: PoolStatus | None,
    config: PoolConfig,
    standing: Iterable[AlertNow] = (),
) -> Diagnosis:
    """What is wrong, by all that is known: the one judgement that the page, its state and its alerts share."""
    alerts = [
        StandingAlert(one.name, one.state == "firing", one.severity, one.since, one.summary)
        for one in standing
        if one.state in ("pending", "firing") and one.silence is None
    ]
    return diagnose(status, snapshot, alerts)


def pool_row(status: PoolStatus | None, config: PoolConfig) -> Row:
    row: Row = {
        name: getattr(status, name, None)
        for name in ("state", "ready", "reason", "desired", "actual", "spares", "failures")
    }
    if status is None:
        row["reason"] = "the supervisor does not answer; traffic goes on"
    bounds = SizingConfig.of(config)
    return {
        "name": config.name,
        **row,
        "paused": None if status is None else status.state == "paused",
        **{name: getattr(bounds, name) for name in BOUNDS},
        "sizing_enabled": config.enable_optimizer,
        "slots_per_worker": config.slots_per_worker,
        "max_queue": config.max_queue,
        "metrics": config.enable_metrics,
        "error_objective": ERROR_OBJECTIVE,
    }


def now_row(snapshot: MetricsSnapshot) -> Row:
    row = {name: _short(getattr(snapshot, name)) for name in NOW}
    # Of operations that did not come nothing is known: no latency of 0, and no error rate of 0.
    return row | (dict.fromkeys(ONLY_WITH_OPERATIONS & row.keys()) if not snapshot.throughput else {})


def health_row(snapshot: MetricsSnapshot, found: Diagnosis) -> Row:
    health = snapshot.health
    parts = [
        {"name": part.name, "cost": round(part.cost, 2), "sentence": part.sentence} for part in health.parts
    ]
    score = health.score if found.score is None else found.score
    if (more := round(health.score - score, 2)) > 0:
        # What the last seconds do not show: alerts remember minutes, the supervisor knows its workers.
        parts.insert(0, {"name": "judged", "cost": more, "sentence": f"{found.sentence}."})
    return {"score": score, "state": found.state, "parts": parts}


def totals_row(snapshot: MetricsSnapshot) -> Row:
    counters = snapshot.counters
    return {
        "by_outcome": dict(counters.by_outcome),
        "errors_by_code": dict(counters.errors_by_code),
        "retries": counters.retries,
        "input_tokens": counters.input_tokens,
        "output_tokens": counters.output_tokens,
        "cost_usd": counters.cost_usd,
    }


def program_rows(snapshot: MetricsSnapshot, status: PoolStatus | None) -> list[Row]:
    versions = status.programs if status is not None else {}
    return [
        {
            "name": name,
            "kind": kind_of_row(name, versions),
            "version": versions.get(name),
            "throughput": _short(seen.recent.throughput),
            **{
                figure: _short(getattr(seen.recent, figure)) if seen.recent.operations else None
                for figure in ("p50_s", "p99_s", "error_rate")
            },
            "operations": sum(seen.counters.by_outcome.values()),
            "errors": seen.counters.by_outcome.get("error", 0) + seen.counters.by_outcome.get("timeout", 0),
        }
        for name, seen in snapshot.programs.items()
    ]


def kind_of_row(name: str, versions: Mapping[str, int]) -> str:
    """`program`: a pool program; `session`: a command of sessions, whose programs belong to users; `rest`."""
    if name in versions or name not in COMMAND_NAMES:
        return "rest" if name.startswith("(") else "program"
    return "session"


# --- what changed ---


def changed(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Row:
    """The fields of `after` that are other than before."""
    if before is None:
        return dict(after)
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def changed_rows(before: Mapping[str, Row], after: Iterable[Row], key: str) -> list[Row]:
    """The rows of `after` that are new or not as before."""
    return [row for row in after if before.get(row[key]) != row]


def _short(value: float) -> float:
    """Enough digits for eyes, few enough for the wire."""
    return round(value, _DIGITS) if isinstance(value, float) else value
