"""What `dspool status` and `dspool sessions` show of a running service."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dspool.cli.output import Output
from dspool.cli.run_file import RunFile
from dspool.cli.service import as_json, pool_of, running_pool
from dspool.errors import PoolError


def status(run_file: RunFile, pool: str | None = None) -> dict[str, Any]:
    """`running`, and if so where, the pool's `status` and its `metrics`.

    Each of the two is None while it cannot be had; `why` and `metrics_why` then say why.
    """
    run = run_file.read()
    if run is None or not run.alive():
        return {"running": False, "state_dir": str(run_file.state_dir), "stale": run is not None}
    facts: dict[str, Any] = {
        "running": True,
        "url": run.url,
        "pool": pool or run.pool,
        "pid": run.pid,
        "ray_address": run.ray_address,
        "ray_token_path": run.ray_token_path,
        "state_dir": str(run_file.state_dir),
        "status": None,
        "metrics": None,
    }
    try:
        with pool_of(run, pool) as served:
            facts["status"] = as_json(served.status())
            try:
                facts["metrics"] = as_json(served.metrics_snapshot())
            except PoolError as failed:
                facts["metrics_why"] = failed.message
    except PoolError as failed:
        facts["why"] = failed.message
    return facts


def status_text(seen: dict[str, Any]) -> str:
    if not seen["running"]:
        stale = "; the last one ended without cleaning up" if seen["stale"] else ""
        return f"no service runs from {seen['state_dir']}{stale} (start one with `dspool up`)"
    pool = seen["status"]
    where = f"at {seen['url']} " if seen["url"] else ""
    head = f"pool {seen['pool']} {where}(pid {seen['pid']}, Ray {seen['ray_address'] or 'starting'})"
    if pool is None:
        return f"{head}\nnot answering: {seen['why']}"
    programs = ", ".join(f"{name} v{number}" for name, number in pool["programs"].items()) or "none"
    why = f" ({pool['reason']})" if pool["reason"] else ""
    rows = [
        tuple(str(worker[key]) for key in ("id", "slot", "state", "pid", "node", "sessions", "running"))
        for worker in pool["workers"]
    ]
    table = Output().table(("worker", "slot", "state", "pid", "node", "sessions", "running"), rows)
    return f"{head}\n{pool['state']}{why}, {pool['actual']} of {pool['desired']} workers, programs: {programs}\n{table}"


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


def sessions(run_file: RunFile, limit: int) -> dict[str, Any]:
    """At most `limit` sessions of the service's pool.

    Raises:
        PoolNotReady: nothing runs.
        Unreachable: it does not answer.
    """
    found: list[Any] = []
    cursor: str | None = None
    with running_pool(run_file) as served:
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
    return Output().table(("session", "worker", "moves", "programs"), rows) + more
