"""What the page shows, made from what the pool says. Pure: no clock, no asking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from dspool.config import PoolConfig
from dspool.core.metrics.measures import LiveUpdate, MetricsSnapshot, SlotSnapshot
from dspool.messages import Deployment, PoolStatus, SessionInfo, VersionNumbers, WorkerStatus
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.telemetry.events import session_hash

Row = dict[str, Any]

NOW: Final = (
    "window_s", "utilization", "throughput", "mean_s", "p50_s", "p95_s", "p99_s", "error_rate", "queue_depth",
    "oldest_wait_s", "wait_mean_s", "wait_p95_s", "wait_p99_s", "running", "sessions", "size", "desired", "active",
    "idle", "starting", "spare", "overflow", "input_tokens", "output_tokens", "rejected", "timeouts", "retries",
    "clients",
)  # fmt: skip
_DIGITS: Final = 6


def overview(
    look: LiveUpdate | None, status: PoolStatus | None, config: PoolConfig, alerts: Row, at: float
) -> Row:
    """All that the cards show. `look` is None while the metrics are away."""
    snapshot = look.snapshot if look is not None else None
    status = status or (look.status if look is not None else None)
    return {
        "at": snapshot.at if snapshot is not None else at,
        "pool": pool_row(status, config),
        "now": None if snapshot is None else now_row(snapshot),
        "health": None if snapshot is None else health_row(snapshot),
        "totals": None if snapshot is None else totals_row(snapshot),
        "programs": [] if snapshot is None else program_rows(snapshot, status),
        "telemetry": None if snapshot is None else _plain(snapshot.telemetry),
        "alerts": alerts,
    }


def pool_row(status: PoolStatus | None, config: PoolConfig) -> Row:
    row: Row = {
        name: getattr(status, name, None)
        for name in ("state", "ready", "reason", "desired", "actual", "spares", "failures")
    }
    if status is None:
        row["reason"] = "the supervisor does not answer; traffic goes on"
    return {
        "name": config.name,
        **row,
        "paused": None if status is None else status.state == "paused",
        "min_size": config.min_pool_size,
        "max_size": config.max_pool_size,
        "max_overflow": config.max_overflow,
        "target_utilization": config.target_utilization,
        "sizing_enabled": config.enable_optimizer,
        "max_wait_s": config.max_wait_s,
        "slots_per_worker": config.slots_per_worker,
        "max_queue": config.max_queue,
        "metrics": config.enable_metrics,
    }


def now_row(snapshot: MetricsSnapshot) -> Row:
    return {name: _short(getattr(snapshot, name)) for name in NOW}


def health_row(snapshot: MetricsSnapshot) -> Row:
    health = snapshot.health
    parts = [
        {"name": part.name, "cost": round(part.cost, 2), "sentence": part.sentence} for part in health.parts
    ]
    return {"score": health.score, "state": health.state, "parts": parts}


def totals_row(snapshot: MetricsSnapshot) -> Row:
    counters = snapshot.counters
    return {
        "by_outcome": dict(counters.by_outcome),
        "errors_by_code": dict(counters.errors_by_code),
        "retries": counters.retries,
        "input_tokens": counters.input_tokens,
        "output_tokens": counters.output_tokens,
    }


def program_rows(snapshot: MetricsSnapshot, status: PoolStatus | None) -> list[Row]:
    versions = status.programs if status is not None else {}
    return [
        {
            "name": name,
            "version": versions.get(name),
            "throughput": _short(seen.recent.throughput),
            "p50_s": _short(seen.recent.p50_s),
            "p99_s": _short(seen.recent.p99_s),
            "error_rate": _short(seen.recent.error_rate),
            "operations": sum(seen.counters.by_outcome.values()),
            "errors": seen.counters.by_outcome.get("error", 0) + seen.counters.by_outcome.get("timeout", 0),
        }
        for name, seen in snapshot.programs.items()
    ]


# --- workers ---


def worker_rows(
    status: PoolStatus, workers: Mapping[int, SlotSnapshot], link: Mapping[str, str]
) -> list[Row]:
    """A row a worker. `link` has the pages of Ray's dashboard by worker id."""
    by_worker = {seen.worker: seen for seen in workers.values() if seen.worker is not None}
    return [worker_row(worker, by_worker.get(worker.id), link.get(worker.id)) for worker in status.workers]


def worker_row(worker: WorkerStatus, seen: SlotSnapshot | None, link: str | None) -> Row:
    # Its own reports come every second, the supervisor's look at it only with each health check.
    recent = seen.recent if seen is not None else None
    return {
        "id": worker.id,
        "slot": worker.ordinal,
        "state": worker.state,
        "overflow": worker.overflow,
        "pid": worker.pid,
        "node": worker.node,
        "running": seen.running if seen is not None else worker.running,
        "slots": worker.slots or (seen.slots if seen is not None else 0),
        "sessions": seen.sessions if seen is not None else worker.sessions,
        "operations": worker.operations,
        "errors": worker.errors,
        "utilization": None if recent is None else _short(recent.utilization),
        "throughput": None if recent is None else _short(recent.throughput),
        "p99_s": None if recent is None or not recent.operations else _short(recent.p99_s),
        "rss_mb": (seen.rss_mb if seen is not None else 0.0) or worker.rss_mb or None,
        "started_at": round(worker.started_at, 1),
        "checked_at": None if worker.checked_at is None else round(worker.checked_at, 1),
        "reason": worker.reason,
        "start": worker.start,
        "ray_url": link,
    }


def cells(running: Iterable[Row], *, names_sessions: bool) -> list[Row]:
    """What runs in a worker's slots, the longest first."""
    rows = [
        {
            "operation": row["operation_id"],
            "command": row["command"],
            # A session's programs are named by users.
            "program": row["program"] if names_sessions or row["session"] is None else None,
            "session": shown_session(row["session"], names_sessions),
            "held_s": round(row["held_s"], 3),
        }
        for row in running
    ]
    return sorted(rows, key=lambda row: -row["held_s"])


# --- sessions ---


def session_row(info: SessionInfo, *, names_sessions: bool) -> Row:
    """Ids and owners may name people: who is no admin sees the hash that logs and spans have."""
    return {
        "id": shown_session(info.id, names_sessions),
        "owner": info.owner,
        "principal": info.principal if names_sessions else None,
        "programs": list(info.programs) if names_sessions else [],
        "created_at": info.created_at,
        "last_used_at": info.last_used_at,
        "moves": info.moves,
        "epoch": info.epoch,
    }


def shown_session(id: str | None, names_sessions: bool) -> str | None:
    return id if id is None or names_sessions else session_hash(id)


# --- sizing, deployments ---


def decision_row(record: DecisionRecord) -> Row:
    since = record.since or record.at
    return {
        "n": round(since * 1000),
        "at": record.at,
        "since": since,
        "action": record.action,
        "previous": record.previous,
        "target": record.target,
        "overflow": record.overflow,
        "reason": record.reason,
        "numbers": record.numbers,
        "source": record.source,
        "times": record.times,
    }


def rollout_row(rollout: Rollout | None) -> Row | None:
    if rollout is None:
        return None
    row: Row = _plain(rollout)
    row["old"], row["new"] = _numbers(rollout.old), _numbers(rollout.new)
    return row


def program_versions(deployments: Sequence[Deployment], current: Mapping[str, int]) -> list[Row]:
    """Programs with their versions, newest first."""
    by_program: dict[str, list[Row]] = {}
    for one in sorted(deployments, key=lambda one: -one.version):
        row = {"version": one.version, "kind": _kind(one), "summary": _summary(one)}
        by_program.setdefault(one.program, []).append(row)
    return [
        {"program": name, "current": current.get(name), "versions": versions}
        for name, versions in sorted(by_program.items())
    ]


def _kind(deployment: Deployment) -> str:
    if deployment.import_path is not None:
        return "import_path"
    return "state" if deployment.state is not None else "spec"


def _summary(deployment: Deployment) -> str:
    if deployment.import_path is not None:
        return deployment.import_path[:200]
    signature = (deployment.spec or {}).get("signature")
    if isinstance(signature, str):
        return signature[:200]
    # The long form: only the fields' names, for their descriptions may be long.
    if isinstance(signature, dict):
        sides = (signature.get("inputs"), signature.get("outputs"))
        return " -> ".join(", ".join(map(str, side or ())) for side in sides)[:200]
    return ""


def _numbers(numbers: VersionNumbers | None) -> Row | None:
    if numbers is None:
        return None
    return {"operations": numbers.operations, "errors": numbers.errors, "run_s": _short(numbers.run_s)}


# --- what changed ---


def changed(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Row:
    """The fields of `after` that are other than before."""
    if before is None:
        return dict(after)
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def changed_rows(before: Mapping[str, Row], after: Iterable[Row], key: str) -> list[Row]:
    """The rows of `after` that are new or not as before."""
    return [row for row in after if before.get(row[key]) != row]


def _plain(struct: Any) -> Row:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _short(value: float) -> float:
    """Enough digits for eyes, few enough for the wire."""
    return round(value, _DIGITS) if isinstance(value, float) else value
