"""What `benchmarks.peers` tells: a row for each system and cell, how dspool stands to each peer, and what a slow
operation does to others."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from benchmarks.common import percentile
from benchmarks.ratios import VERDICTS, Ratio, paired
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
    found["load_us"] = round(
        1e6 * sum(one.get("load_cpu_s", 0.0) for one in taken) / max(1, found["operations"])
    )
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


class Comparison(NamedTuple):
    """How dspool stands to one peer on one load."""

    cell: Cell
    interface: str
    peer: str
    ratio: Ratio
    """Above 1: dspool is better. Of operations a second in a closed loop; in an open one the peer's p99 over ours."""

    def __str__(self) -> str:
        return f"{self.cell}, {self.interface}: {self.ratio} of {self.peer}"

    def figures(self) -> dict[str, Any]:
        cell = self.cell._asdict()
        return {**cell, "interface": self.interface, "peer": self.peer, **self.ratio.figures()}


def standings(cell: Cell, seen: dict[tuple[str, str], list[dict[str, Any]]]) -> list[Comparison]:
    """dspool beside each peer of the same kind of interface, paired by rounds. `seen` has what each round took."""
    found = []
    for (system, interface), theirs in seen.items():
        kind = "http" if interface == "http" else "handle"
        ours = seen.get(("dspool", kind))
        if system == "dspool" or ours is None:
            continue
        pairs = [(_score(cell, one), _score(cell, other)) for one, other in zip(ours, theirs, strict=True)]
        pairs = [pair for pair in pairs if all(pair)]
        if ratio := paired([one for one, _ in pairs], [other for _, other in pairs]):
            found.append(Comparison(cell, kind, system, ratio))
    return found


def _score(cell: Cell, taken: dict[str, Any]) -> float:
    """More is better; 0 where there is none."""
    if "error" in taken or "note" in taken or not taken["done"]:
        return 0.0
    if cell.rate is None:
        return float(taken["done"] / taken["seconds"])
    return 1e3 / percentile(taken["latencies_ms"], 0.99) if taken["latencies_ms"] else 0.0


def verdicts(stand: list[Comparison]) -> dict[str, int]:
    """How many loads dspool is ahead on, of all peers; even on, of the best; behind on, of any. By interface."""
    loads: dict[tuple[Cell, str], set[str]] = {}
    for one in stand:
        loads.setdefault((one.cell, one.interface), set()).add(one.ratio.verdict)
    worst = ["behind" if "behind" in of else "even" if "even" in of else "ahead" for of in loads.values()]
    return {verdict: worst.count(verdict) for verdict in VERDICTS}


def show(cells: list[Cell], rows: list[dict[str, Any]], stand: list[Comparison]) -> list[str]:
    """Print one table a cell; where dspool is behind, in sentences."""
    by_peer = {(one.cell, one.interface, one.peer): one.ratio for one in stand}
    for cell in cells:
        here = [one for one in rows if (one["workload"], one["concurrency"], one["rate"]) == cell]
        print(f"\n  {cell}")
        for one in sorted(here, key=lambda one: -(one["ops_per_s"] or 0.0)):
            name = f"{one['system']} ({one['interface']})"
            if one["ops_per_s"] is None:
                print(f"    {name:28s} {one['note']}")
                continue
            more = f", {one['failed']} failed" if one["failed"] else ""
            more += f"; {one['note']}" if "note" in one else ""
            kind = "http" if one["interface"] == "http" else "handle"
            if ratio := by_peer.get((cell, kind, one["system"])):
                more += f"; dspool {ratio.verdict}: {ratio}"
            print(
                f"    {name:28s} {one['ops_per_s']:9,.1f}/s ({one['lowest_ops_per_s']:,.0f}-"
                f"{one['highest_ops_per_s']:,.0f})  p50 {one['p50_ms']} ms  p99 {one['p99_ms']} ms  "
                f"load {one['load_us']} us{more}"
            )
    behind = [str(one) for one in stand if one.ratio.verdict == "behind"]
    print("\n  Behind:" if behind else "\n  Behind nowhere." if stand else "\n  Nothing was compared.")
    for sentence in behind:
        print(f"    {sentence}")
    return behind


def fast_beside_slow(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How much longer the p99 of fast operations is when one in a hundred takes half a second, by system."""
    p99 = {(row["workload"], row["system"], row["interface"]): row["p99_ms"] for row in rows}
    return {
        f"{system} ({interface})": round(slow / p99["none_slow", system, interface], 2)
        for (workload, system, interface), slow in p99.items()
        if workload == "one_slow" and slow and p99.get(("none_slow", system, interface))
    }
