"""What `dspool status` and `dspool sessions` show of a running service."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dspool.cli.layout import many, table
from dspool.cli.run_file import RunFile
from dspool.cli.service import (
    as_json,
    nothing_runs,
    pool_of,
    running_pool,
    serving_version,
    standing_alerts,
)
from dspool.core.metrics.diagnosis import Fault, StandingAlert, diagnose
from dspool.core.wording import counted
from dspool.errors import PoolError, UnknownPool


def status(run_file: RunFile, pool: str | None = None) -> dict[str, Any]:
    """`running`, and if so where, the pool's `status` and its `metrics`, the `alerts` that fire or are about to, the
    `store` of its sessions, the `diagnosis` that follows, and `problems`: a sentence for each thing that is wrong.

    What cannot be had is None; `why`, `metrics_why`, `alerts_why` and `store_why` then say why.

    Raises:
        UnknownPool: the service has no such pool.
    """
    run = run_file.living()
    if run is None:
        stale = run_file.read() is not None
        return {
            "running": False,
            "state_dir": str(run_file.state_dir),
            "stale": stale,
            "why": nothing_runs(run_file),
        }
    facts: dict[str, Any] = {
        "running": True,
        "development": run.development,
        "looked_after": run.alive(),
        "url": run.url,
        "pool": pool or run.pool,
        "pid": run.pid,
        "ray_address": run.ray_address,
        "ray_token_path": run.ray_token_path,
        "state_dir": str(run_file.state_dir),
        "status": None,
        "metrics": None,
        "alerts": None,
        "diagnosis": None,
        "store": None,
        "http_version": None,
    }
    try:
        with pool_of(run, pool) as served:
            status, snapshot, alerts = served.status(), None, []
            facts["status"] = as_json(status)
            try:
                facts["metrics"] = as_json(snapshot := served.metrics_snapshot())
            except PoolError as failed:
                facts["metrics_why"] = failed.message
            try:
                facts["alerts"] = alerts = standing_alerts(served)
            except PoolError as failed:
                facts["alerts_why"] = failed.message
            try:
                facts["store"] = served.look("store")
            except PoolError as failed:
                facts["store_why"] = failed.message
    except UnknownPool:
        raise
    except PoolError as failed:
        return {
            **facts,
            "why": failed.message,
            "problems": [f"The service does not answer: {failed.message}"],
        }
    facts["http_version"] = serving_version(run)
    found = diagnose(status, snapshot, map(_standing, alerts))
    return {**facts, "diagnosis": as_json(found), "problems": [fault_text(fault) for fault in found.faults]}


def _standing(alert: dict[str, Any]) -> StandingAlert:
    firing = alert["state"] == "firing"
    return StandingAlert(alert["name"], firing, alert["severity"], alert["since"], alert["summary"])


def fault_text(fault: Fault) -> str:
    """What is wrong, since when, and for whom."""
    since = f", since {datetime.fromtimestamp(fault.since):%H:%M:%S}" if fault.since else ""
    whom = f" (for {fault.whom})" if fault.whom else ""
    return f"{fault.sentence}{since}{whom}"


def status_text(seen: dict[str, Any]) -> str:
    """Health and what is wrong first, then where it runs, then the workers."""
    if not seen["running"]:
        return str(seen["why"])
    status = seen["status"]
    lines = [headline(seen), *(f"  ! {problem}" for problem in seen["problems"])]
    where = seen["url"] or "starting"
    by = " of dspool dev" if seen["development"] else ""
    ray = f", Ray {seen['ray_address']}" if seen["ray_address"] else ""
    version = f", dspool {status['version']}" if status and status.get("version") else ""
    lines.append(f"at {where}{by} (pid {seen['pid']}{ray}{version})")
    if not seen["looked_after"]:
        lines.append("its `dspool up` has ended; it serves on, and `dspool up` takes it over")
    if status is None:
        return "\n".join(lines)
    if (gradual := status.get("gradual")) is not None:
        sides = f"new ones on {gradual['workers_new']}, those before on {gradual['workers_old']}"
        lines.append(
            f"a change of settings stands at {gradual['percent']} % ({sides}): `dspool apply` finishes it"
        )
    if seen["http_version"] and status["version"] and seen["http_version"] != status["version"]:
        lines.append(
            f"an upgrade is under way, or was cut off (HTTP is still dspool {seen['http_version']}): `dspool upgrade` "
            "of the new one finishes it"
        )
    if status["cannot_start"] and status["ready"]:
        lines.append(f"new workers cannot start: {status['cannot_start']}")
    if seen["metrics"] is None:
        lines.append(f"no figures: {seen['metrics_why']}")
    lines.append(f"sessions: {store_text(seen)}")
    programs = ", ".join(f"{name} v{number}" for name, number in status["programs"].items()) or "none"
    lines += [f"programs: {programs}", "", _workers(status["workers"])]
    return "\n".join(lines)


def store_text(seen: dict[str, Any]) -> str:
    """Where the sessions are, and what that means."""
    store = seen["store"]
    if store is None:
        return f"not known where ({seen.get('store_why')})"
    if not store["pinned"]:
        return f"PostgreSQL at {store['place']}, store epoch {store['epoch']}"
    node = f" on node {store['node'][:8]} only" if store["node"] else ""
    return f"SQLite file {store['place']}{node}, store epoch {store['epoch']}"


def headline(seen: dict[str, Any]) -> str:
    """The pool's state and its health, in one line."""
    status = seen["status"]
    if status is None:
        return f"pool {seen['pool']}: no answer"
    spares = f" and {counted(status['spares'], 'spare')}" if status["spares"] else ""
    size = f"{status['actual']} of {counted(status['desired'], 'worker')}{spares}"
    found = seen["diagnosis"]
    # Without figures nobody can say more than the pool's own state does.
    health = "" if found["score"] is None else f"{found['state']} ({found['score']:.0f} of 100), "
    return f"pool {seen['pool']}: {health}{status['state']}, {size}"


def _workers(workers: list[dict[str, Any]]) -> str:
    nodes = {worker["node"] for worker in workers}
    titles = ["worker", "state", "run", "sess", "done", "memory", "pid"]
    rows = [
        [
            worker["id"],
            worker["state"],
            f"{worker['running']}/{worker['slots']}",
            str(worker["sessions"]),
            many(worker["operations"]),
            f"{worker['rss_mb']:.0f}M",
            str(worker["pid"]),
        ]
        for worker in workers
    ]
    if len(nodes) > 1:
        titles.append("node")
        for row, worker in zip(rows, workers, strict=True):
            row.append(worker["node"][:8])
    return table(titles, rows)


def decisions(run_file: RunFile, pool: str | None, limit: int) -> list[dict[str, Any]]:
    """The last decisions about the size, newest first.

    Raises:
        PoolNotReady: nothing runs.
        Unreachable: it does not answer.
    """
    with running_pool(run_file, pool) as served:
        return [as_json(decision) for decision in served.decisions(limit)]


def decisions_text(decisions: list[dict[str, Any]]) -> str:
    """One line for each, oldest first, with the numbers that led to it below."""
    if not decisions:
        return (
            "no decision about the size yet (enable_optimizer lets the pool choose; `dspool scale` is yours)"
        )
    lines = []
    for one in reversed(decisions):
        when = datetime.fromtimestamp(one["at"]).strftime("%H:%M:%S")
        overflow = f" + {one['overflow']} overflow" if one["overflow"] else ""
        often = f" (x{one['times']})" if one["times"] > 1 else ""
        lines.append(
            f"{when}  {one['action']:6}  {one['previous']} -> {one['target']}{overflow}  {one['source']}: "
            f"{one['reason']}{often}"
        )
        if one["numbers"]:
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in one["numbers"].items())
            lines.append(f"          {numbers}")
    return "\n".join(lines)


def sessions(run_file: RunFile, pool: str | None, limit: int) -> dict[str, Any]:
    """At most `limit` sessions of the pool.

    Raises:
        PoolNotReady: nothing runs.
        Unreachable: it does not answer.
    """
    found: list[Any] = []
    cursor: str | None = None
    with running_pool(run_file, pool) as served:
        while len(found) < limit:
            page, cursor = served.sessions(limit=min(1000, limit - len(found)), after=cursor)
            found += map(as_json, page)
            if cursor is None:
                break
        return {"pool": served.name, "sessions": found, "more": cursor is not None}


def sessions_text(found: dict[str, Any]) -> str:
    if not found["sessions"]:
        return f"pool {found['pool']} has no sessions"
    rows = [
        (
            repr(one["id"])[1:-1],
            str(one["owner"] or "-"),
            str(one["moves"]),
            ", ".join(one["programs"]) or "-",
        )
        for one in found["sessions"]
    ]
    more = "\n... and more (--limit)" if found["more"] else ""
    return table(("session", "worker", "moves", "programs"), rows) + more
