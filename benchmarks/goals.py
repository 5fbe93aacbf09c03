"""The figures that were to be reached, and where in a report each of them is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Find = Callable[[dict[str, Any]], float]


class Goal(NamedTuple):
    what: str
    benchmark: str
    key: str
    find: Find
    """The value in the figures of that benchmark."""
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}{self.unit}"
        return "stated" if self.at_most is None else f"<= {self.at_most:g}{self.unit}"

    def met(self, value: float) -> bool | None:
        if self.at_least is not None:
            return value >= self.at_least
        return None if self.at_most is None else value <= self.at_most


def _goal(what: str, benchmark: str, *path: str, **bounds: Any) -> Goal:
    def find(figures: dict[str, Any]) -> float:
        value: Any = figures
        for part in path:
            value = value[part]
        return float(value)

    return Goal(what, benchmark, ".".join(path), find, **bounds)


def _target(what: str, name: str, **bounds: Any) -> Goal:
    def find(figures: dict[str, Any]) -> float:
        rows = {row["name"]: row["value"] for row in (*figures["targets"], *figures["also"])}
        return float(rows[name])

    return Goal(what, "targets", name, find, **bounds)


def _most(what: str, curve: str, **bounds: Any) -> Goal:
    def find(figures: dict[str, Any]) -> float:
        [found] = [one for one in figures["curves"] if one["name"] == curve]
        return float(max(point["y"] for point in found["points"]))

    return Goal(what, "scaling", curve, find, **bounds)


GOALS = (
    _goal("128 concurrent by handle, over ray.util.ActorPool", "throughput", "vs_actor_pool", at_least=5.0),
    _goal("... over bare DSPy processes as they come", "throughput", "vs_limit", at_least=0.75),
    _goal(
        "... over bare DSPy processes with dspool's adapter",
        "throughput",
        "vs_limit_same_adapter",
        at_least=0.75,
    ),
    _goal("one at a time, over a bare Ray actor call", "throughput", "vs_bare_actor", at_most=1.2),
    _target("p99 of fast ones beside one slow in a hundred", "fast_p99_beside_slow", at_most=1.2),
    _target("... with callers that ask again at once", "fast_p99_beside_slow_closed", at_most=1.2),
    _target("model of 200 ms, 64 slots, of the ideal", "model_200ms_64_slots", at_least=95.0, unit=" %"),
    _most("... operations/s with as many slots as the processors bear", "slots_model_200ms", unit="/s"),
    _goal("start of 8 warm workers", "startup", "fork", "start_eight_s", unit=" s"),
    _target("time within 60-80 %, a real pool, steady", "time_within_60_80_real", at_least=90.0, unit=" %"),
    _target("... simulated, steady", "time_within_60_80_steady_x4", at_least=90.0, unit=" %"),
    _target("... simulated, diurnal", "time_within_60_80_diurnal_x8", at_least=90.0, unit=" %"),
    _goal("HTTP, 32 connections, over Serve's default ingress", "http", "vs_serve_default", at_least=5.0),
    _goal("... over Serve's HAProxy ingress", "http", "vs_serve_haproxy", at_least=1.2),
    _goal("... over FastAPI and uvicorn", "http", "vs_fastapi", at_least=1.0),
    _goal("HTTP, 200 slots, model of 1 s, of the possible", "http", "slots_200", "of_possible", at_least=0.9),
    _goal("own module, over the same spec", "programs", "own_vs_spec", at_least=0.95),
    _goal("nested pydantic input, over the same untyped", "programs", "typed_vs_plain", at_least=0.9),
    _goal(
        "memory of a worker with a preloaded 200 MB index",
        "programs",
        "shared_uss_mb",
        at_most=40.0,
        unit=" MB",
    ),
    _goal(
        "others' p99 while a program blocks its loop",
        "programs",
        "blocked_neighbour_p99_ms",
        at_most=200.0,
        unit=" ms",
    ),
    _goal("save to served, `dspool dev`", "programs", "reload_s", at_most=2.0, unit=" s"),
    _goal("start of a pool in the process", "programs", "inprocess_start_s", at_most=0.2, unit=" s"),
    _goal("whole again after SIGKILL, p99", "recovery", "recovery_p99_ms", at_most=500.0, unit=" ms"),
    _goal("error budget of a soak that was used", "soak", "error_budget_used", at_most=1.0),
)


def rows(benchmarks: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each goal whose benchmark is among these entries of a report; what it does not hold has no value."""
    found = []
    for goal in GOALS:
        if goal.benchmark not in benchmarks:
            continue
        try:
            value = goal.find(benchmarks[goal.benchmark]["figures"])
        except (KeyError, TypeError, ValueError):
            value = None
        found.append(
            {
                "figure": goal.what,
                "target": goal.target,
                "value": value,
                "met": None if value is None else goal.met(value),
                "where": f"{goal.benchmark}: {goal.key}",
            }
        )
    return found
