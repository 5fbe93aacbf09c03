"""What `benchmarks.peers` tells: a row for each system and cell, where a peer wins, and what a slow operation does to
others."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from benchmarks.common import percentile
from benchmarks.studies.peers.abilities import ABILITIES


class Cell(NamedTuple):
    workload: str
    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.workload}, " + (
            f"{self.concurrency} callers" if self.rate is None else f"{self.rate:g}/s"
        )


def row(cell: Cell, system: str, interface: str, taken: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "system": system,
        "interface": interface,
        "workload": cell.workload,
        "concurrency": cell.concurrency,
        "rate": cell.rate,
        "ops_per_s": None,
        "p50_ms": None,
        "p99_ms": None,
    }
    if "note" in taken[0]:
        return {**found, "note": taken[0]["note"]}
    errors = [one["error"] for one in taken if "error" in one]
    if errors:
        found["note"] = f"FAILED in {len(errors)} of {len(taken)} rounds: {errors[0]}"
    taken = [one for one in taken if "error" not in one]
    if not taken:
        return found
    rates = [one["done"] / one["seconds"] for one in taken]
    latencies = [latency for one in taken for latency in one["latencies_ms"]]
    found["ops_per_s"] = round(statistics.median(rates), 1)
    found["lowest_ops_per_s"], found["highest_ops_per_s"] = round(min(rates), 1), round(max(rates), 1)
    if latencies:
        found["p50_ms"] = round(percentile(latencies, 0.50), 2)
        found["p99_ms"] = round(percentile(latencies, 0.99), 2)
    found["operations"] = sum(one["done"] for one in taken)
    found["failed"] = sum(one["failed"] for one in taken)
    return found


def cannot(systems: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """What becomes of each system when a worker dies or another size is wanted: told, not timed, here."""
    empty = {"concurrency": None, "rate": None, "ops_per_s": None, "p50_ms": None, "p99_ms": None}
    return [
        {"system": name, "interface": interface, "workload": what, **empty, "note": ABILITIES[name][what]}
        for what in ("recovery", "resize")
        for name, interface in systems
    ]


def show(cells: list[Cell], rows: list[dict[str, Any]]) -> list[str]:
    """Print one table a cell; sentences about where a peer wins."""
    wins = []
    for cell in cells:
        here = [one for one in rows if (one["workload"], one["concurrency"], one["rate"]) == cell]
        print(f"\n  {cell}")
        for one in sorted(here, key=lambda one: -(one["ops_per_s"] or 0.0)):
            name = f"{one['system']} ({one['interface']})"
            if one["ops_per_s"] is None:
                print(f"    {name:28s} {one['note']}")
                continue
            failed = f", {one['failed']} failed" if one["failed"] else ""
            failed += f"; {one['note']}" if "note" in one else ""
            print(
                f"    {name:28s} {one['ops_per_s']:9,.1f}/s ({one['lowest_ops_per_s']:,.0f}-"
                f"{one['highest_ops_per_s']:,.0f})  p50 {one['p50_ms']} ms  p99 {one['p99_ms']} ms{failed}"
            )
        for interface in ("handle", "http"):
            wins += lost_to(cell, interface, here)
    print("\n  Where a peer wins:" if wins else "\n  No peer wins anywhere.")
    for sentence in wins:
        print(f"    {sentence}")
    return wins


def lost_to(cell: Cell, interface: str, here: list[dict[str, Any]]) -> list[str]:
    """In throughput of a closed loop, in p99 of an open one; against peers of the same kind of interface."""
    ours = [one for one in here if one["system"] == "dspool" and one["interface"] == interface]
    peers = [
        one
        for one in here
        if one["system"] != "dspool"
        and (one["interface"] == "http") == (interface == "http")
        and one["ops_per_s"] is not None
    ]
    if not ours or ours[0]["ops_per_s"] is None:
        return []
    mine = ours[0]
    if cell.rate is None:
        better = [one for one in peers if one["ops_per_s"] > mine["ops_per_s"]]
        what, unit = "ops_per_s", "/s"
    else:
        better = [one for one in peers if one["p99_ms"] and one["p99_ms"] < mine["p99_ms"]]
        what, unit = "p99_ms", " ms (p99)"
    return [
        f"{cell}, {interface}: {one['system']} {one[what]:,}{unit}, dspool {mine[what]:,}{unit}"
        for one in better
    ]


def fast_beside_slow(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How much longer the p99 of fast operations is when one in a hundred takes half a second, by system."""
    p99 = {(row["workload"], row["system"], row["interface"]): row["p99_ms"] for row in rows}
    return {
        f"{system} ({interface})": round(slow / p99["none_slow", system, interface], 2)
        for (workload, system, interface), slow in p99.items()
        if workload == "one_slow" and slow and p99.get(("none_slow", system, interface))
    }
