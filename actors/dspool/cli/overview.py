"""What `dspool status` and `dspool sessions` show of a running service."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dspool.cli.layout import many, table
from dspool.cli.run_file import RunFile
from dspool.cli.service import as_json, nothing_runs, pool_of, running_pool, standing_alerts
from dspool.errors import PoolError, UnknownPool


def status(run_file: RunFile, pool: str | None = None) -> dict[str, Any]:
    """`running`, and if so where, the pool's `status` and its `metrics`, the `alerts` that fire or are about to, and
    `problems`: a sentence for each thing that is wrong.

    What cannot be had is None; `why`, `metrics_why` and `alerts_why` then say why.

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
        "url": run.url,
        "pool": pool or run.pool,
        "pid": run.pid,
        "ray_address": run.ray_address,
        "ray_token_path": run.ray_token_path,
        "state_dir": str(run_file.state_dir),
        "status": None,
        "metrics": None,
        "alerts": None,
    }
    try:
        with pool_of(run, pool) as served:
            facts["status"] = as_json(served.status())
            for name, ask in (
                ("metrics", served.metrics_snapshot),
                ("alerts", lambda: standing_alerts(served)),
            ):
                try:
                    facts[name] = as_json(ask())
                except PoolError as failed:
                    facts[f"{name}_why"] = failed.message
    except UnknownPool:
        raise
    except PoolError as failed:
        facts["why"] = failed.message
    facts["problems"] = problems(facts)
    return facts


def problems(seen: dict[str, Any]) -> list[str]:
    """What is wrong, the worst first: a sentence each."""
    status, metrics = seen["status"], seen["metrics"]
    if status is None:
        return [f"The service does not answer: {seen['why']}"]
    found = [status["reason"]] if status["reason"] else []
    if metrics is not None:
        found += [part["sentence"] for part in metrics["health"]["parts"] if part["cost"] > 0]
    for alert in seen["alerts"] or ():
        since = f" since {datetime.fromtimestamp(alert['since']):%H:%M:%S}" if alert["since"] else ""
        verb = "fires" if alert["state"] == "firing" else "is about to fire"
        found.append(f"{alert['name']} {verb}{since}: {alert['summary']}")
    return found


def status_text(seen: dict[str, Any]) -> str:
    """Health and what is wrong first, then where it runs, then the workers."""
    if not seen["running"]:
        return str(seen["why"])
    status = seen["status"]
    lines = [headline(seen), *(f"  ! {problem}" for problem in seen["problems"])]
    where = seen["url"] or "starting"
    by = " of dspool dev" if seen["development"] else ""
    ray = f", Ray {seen['ray_address']}" if seen["ray_address"] else ""
    lines.append(f"at {where}{by} (pid {seen['pid']}{ray})")
    if status is None:
        return "\n".join(lines)
    if seen["metrics"] is None:
        lines.append(f"no figures: {seen['metrics_why']}")
    programs = ", ".join(f"{name} v{number}" for name, number in status["programs"].items()) or "none"
    lines += [f"programs: {programs}", "", _workers(status["workers"])]
    return "\n".join(lines)


def headline(seen: dict[str, Any]) -> str:
    """The pool's state and its health, in one line."""
    status, metrics = seen["status"], seen["metrics"]
    if status is None:
        return f"pool {seen['pool']}: no answer"
    spares = f" and {_count(status['spares'], 'spare')}" if status["spares"] else ""
    size = f"{status['actual']} of {_count(status['desired'], 'worker')}{spares}"
    health = metrics["health"] if metrics is not None else None
    score = "" if health is None else f"{health['state']} ({health['score']:.0f} of 100), "
    return f"pool {seen['pool']}: {score}{status['state']}, {size}"


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


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


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
