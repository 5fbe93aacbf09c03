"""Commands that talk to a running service: over HTTP, or to its process by the pid in the run file."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import time
from typing import Any

import httpx

from dspool.cli.output import Output
from dspool.cli.run_file import Run, RunFile
from dspool.errors import PoolError, PoolNotReady, UnknownPool, from_wire

HTTP_TIMEOUT_S = 10.0


def status(run_file: RunFile) -> dict[str, Any]:
    """`running`, and if so where, the pool's `status` and its `metrics`.

    Each of the two is None while it cannot be had; `why` and `metrics_why` then say why.
    """
    run = run_file.read()
    if run is None or not run.alive():
        return {"running": False, "state_dir": str(run_file.state_dir), "stale": run is not None}
    facts: dict[str, Any] = {
        "running": True,
        "url": run.url,
        "pool": run.pool,
        "pid": run.pid,
        "ray_address": run.ray_address,
        "state_dir": str(run_file.state_dir),
        "status": None,
        "metrics": None,
    }
    try:
        facts["status"] = _get(run, f"/v1/pools/{run.pool}")
    except PoolError as failed:
        facts["why"] = failed.message
        return facts
    try:
        facts["metrics"] = _get(run, f"/v1/pools/{run.pool}/metrics")
    except PoolError as failed:
        facts["metrics_why"] = failed.message
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


def events(run_file: RunFile, since: int, limit: int, *, wait_s: float = 0.0) -> dict[str, Any]:
    """A page of events after `since` (0: the newest); waits up to `wait_s` for one.

    Raises:
        PoolNotReady: nothing runs, or it does not answer.
    """
    run = _running(run_file)
    query: dict[str, str | int] = {"since": since, "limit": limit, "timeout_s": str(wait_s)}
    page: dict[str, Any] = _get(run, f"/v1/pools/{run.pool}/events", query)
    return page


def sessions(run_file: RunFile, limit: int) -> dict[str, Any]:
    """At most `limit` sessions of the service's pool.

    Raises:
        PoolNotReady: nothing runs, or it does not answer.
    """
    run = _running(run_file)
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(found) < limit:
        query: dict[str, str | int] = {"limit": min(1000, limit - len(found))}
        if cursor is not None:
            query["cursor"] = cursor
        page = _get(run, f"/v1/pools/{run.pool}/sessions", query)
        found += page["sessions"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    return {"pool": run.pool, "sessions": found, "more": cursor is not None}


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


def down(run_file: RunFile, timeout_s: float) -> dict[str, Any]:
    """Stop the service: ask its process, wait, and insist after `timeout_s`. Nothing running is fine too."""
    run = run_file.read()
    if run is None:
        return {"stopped": False, "message": f"nothing to stop: no service runs from {run_file.state_dir}"}
    if not run.alive():
        from dspool.cli.serving import clear

        clear(run, Output(as_json=False))
        run_file.remove(run.pid)
        return {"stopped": False, "message": f"the service (pid {run.pid}) had ended; removed what it left"}
    # A second signal makes `up` end at once; the last resort is SIGKILL.
    for number, patience in ((signal.SIGTERM, timeout_s), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pid, number)
        if _gone(run, patience):
            break
    run_file.remove(run.pid)
    return {"stopped": True, "pid": run.pid, "message": f"stopped pool {run.pool} (pid {run.pid})"}


def _gone(run: Run, patience_s: float) -> bool:
    """Whether it ended within `patience_s`. One that its parent has not looked after yet has ended as well."""
    until = time.monotonic() + patience_s
    while run.alive():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _identity() -> dict[str, str]:
    token = os.environ.get("DSPOOL_TOKEN")
    return {"authorization": f"Bearer {token}"} if token else {}


def _trust(run: Run) -> ssl.SSLContext | bool:
    """For a service of this machine: its own certificate, whatever name stands in it."""
    if run.tls_cert is None:
        return True
    context = ssl.create_default_context(cafile=run.tls_cert)
    context.check_hostname = False
    return context


def _running(run_file: RunFile) -> Run:
    run = run_file.read()
    if run is None or not run.alive():
        raise PoolNotReady(f"no service runs from {run_file.state_dir}; start one with `dspool up`")
    return run


def _get(run: Run, path: str, query: dict[str, str | int] | None = None) -> Any:
    if not run.url:
        raise PoolNotReady(f"pool {run.pool} (pid {run.pid}) is still starting")
    try:
        # No proxy from the environment: this is our own machine.
        with httpx.Client(
            base_url=run.url, timeout=HTTP_TIMEOUT_S, trust_env=False, verify=_trust(run), headers=_identity()
        ) as http:
            answer = http.get(path, params=query)
    except httpx.HTTPError as failed:
        raise PoolNotReady(f"{run.url} does not answer ({type(failed).__name__})") from failed
    if answer.status_code == 200:
        return answer.json()
    try:
        problem = answer.json()
        raise from_wire({"code": problem["code"], "message": problem["detail"]})
    except (ValueError, KeyError):
        raise UnknownPool(f"{run.url}{path} answered {answer.status_code}: not a dspool service?") from None
