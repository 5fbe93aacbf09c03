"""What `dspool postflight` compares: the figures of a pool before and after a deployment. Pure."""

from __future__ import annotations

from typing import Any, Final

from dspool.cli.doctor.findings import Finding, fail, ok, warn
from dspool.core.metrics.health import ERROR_OBJECTIVE

CHECKS: Final = ("health", "latency", "errors", "cost", "memory", "alerts", "settings", "changes")
"""In the order in which they are made. The seed's "verify health checks" is `health`, "check error rates" `errors`,
"monitor key metrics" and "analyze performance data" are `latency`, `cost` and `memory`, "update alerts" is `alerts`,
"tune configuration" `settings`, "document changes" `changes`."""
WORSE: Final = 1.25
"""From this many times as much on a figure counts as worse: less is within what measuring again gives."""
_MEASURED: Final = ("p50_s", "p99_s", "wait_p95_s", "error_rate", "throughput", "utilization")


def figures(seen: dict[str, Any]) -> dict[str, Any] | None:
    """What is compared, of what `overview.status` gives; None: nothing runs, or it does not answer."""
    status, metrics = seen.get("status"), seen.get("metrics")
    if not status:
        return None
    workers = [one for one in status["workers"] if one["state"] == "ready"]
    found: dict[str, Any] = {
        "programs": status["programs"],
        "workers": len(workers),
        "desired": status["desired"],
        "memory_mb": round(sum(one["rss_mb"] for one in workers) / len(workers), 1) if workers else None,
    }
    if metrics:
        counters = metrics.get("counters") or {}
        outcomes = counters.get("by_outcome") or {}
        found |= {
            name: metrics[name]
            for name in ("p50_s", "p99_s", "wait_p95_s", "error_rate", "throughput", "utilization")
        }
        served = sum(outcomes.get(name, 0) for name in ("ok", "error", "timeout"))
        cost = counters.get("cost_usd")
        found["cost_usd_each"] = cost / served if cost and served else None
    return found


def examine(before: dict[str, Any] | None, now: dict[str, Any] | None, seen: dict[str, Any]) -> list[Finding]:
    """All checks. Without figures of before, those that compare say what there is now."""
    if now is None:
        return [
            fail("health", "the pool does not answer", "nobody is served", "`dspool logs`, `dspool doctor`")
        ]
    earlier = before or {}
    return [
        _health(now, seen),
        _compared("latency", "p99_s", earlier, now, "s", "callers wait longer"),
        _errors(now),
        _compared("cost", "cost_usd_each", earlier, now, "USD an operation", "each operation costs more"),
        _compared("memory", "memory_mb", earlier, now, "MB a worker", "fewer workers fit on a machine"),
        _alerts(seen),
        _settings(now),
        _changes(earlier, now),
    ]


def _health(now: dict[str, Any], seen: dict[str, Any]) -> Finding:
    problems = seen.get("problems") or []
    said = f"{now['workers']} of {now['desired']} workers take traffic"
    if now["workers"] < now["desired"]:
        return fail(
            "health", said, "; ".join(problems) or "workers are missing", "`dspool status`, `dspool logs`"
        )
    return warn("health", said, "; ".join(problems), "`dspool status`") if problems else ok("health", said)


def _compared(
    check: str, name: str, before: dict[str, Any], now: dict[str, Any], unit: str, meaning: str
) -> Finding:
    value, was = now.get(name), before.get(name)
    if not value:
        return ok(check, "nothing was measured")
    said = f"{value:.4g} {unit}"
    if not was:
        return ok(check, f"{said}; nothing to compare with (`dspool preflight` before a change keeps it)")
    said = f"{said}, before {was:.4g}"
    if value > was * WORSE:
        return warn(check, said, f"{value / was:.2f} times as much: {meaning}", "roll back, or find out why")
    return ok(check, said)


def _errors(now: dict[str, Any]) -> Finding:
    rate = now.get("error_rate")
    if rate is None:
        return ok("errors", "nothing was measured")
    said = f"{rate:.3%} of operations"
    if rate > ERROR_OBJECTIVE:
        return fail(
            "errors", said, f"more than the objective, {ERROR_OBJECTIVE:.2%}", "`dspool errors`; roll back"
        )
    return ok("errors", said)


def _alerts(seen: dict[str, Any]) -> Finding:
    alerts = seen.get("alerts")
    if alerts is None:
        why = str(seen.get("alerts_why", "they are not known"))
        return warn("alerts", why, "nobody is told when something goes wrong", "turn enable_metrics on")
    firing = [one["name"] for one in alerts if one["state"] == "firing"]
    if firing:
        return fail(
            "alerts", f"firing: {', '.join(firing)}", "something is wrong now", "see each in the runbook"
        )
    return ok("alerts", "none fires")


def _settings(now: dict[str, Any]) -> Finding:
    busy = now.get("utilization")
    if busy is None or not now.get("throughput"):
        return ok("settings", "no load to judge them by")
    said = f"{busy:.0%} of slot time in use"
    if busy > 0.85:
        return warn("settings", said, "little is left for a burst", "a larger pool_size, or enable_optimizer")
    return ok("settings", said)


def _changes(before: dict[str, Any], now: dict[str, Any]) -> Finding:
    was, programs = before.get("programs") or {}, now["programs"]
    changed = [
        f"{name} v{was.get(name, '-')} -> v{version}"
        for name, version in programs.items()
        if was.get(name) != version
    ]
    if not before:
        return ok(
            "changes", f"programs now: {', '.join(f'{name} v{number}' for name, number in programs.items())}"
        )
    return ok("changes", ", ".join(changed) or "no program has another version")


__all__ = ["CHECKS", "examine", "figures"]
