"""What the README says about speed, written from the report, so that it quotes nothing else.

    make bench && python -m benchmarks.quote

keeps those figures of `benchmarks/report.json` in `docs/figures.json`, which is in the repository, and writes the
README's section from them. A short run is refused, and so is a benchmark that failed. A test compares both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from benchmarks.findings import within

KEPT = ("throughput", "http", "recovery", "targets")
REPORT = ROOT / "benchmarks" / "report.json"
FIGURES = ROOT / "docs" / "figures.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- written by benchmarks/quote.py -->\n", "<!-- until here -->\n"
_FACTS = ("command", "commit", "machine", "python", "ray", "dspy", "date")

_TEXT = """`python -m benchmarks.throughput` on {machine}, 2 workers, 128 concurrent, the cheapest program on the offline engine, all in one run:

| | operations/s | |
| --- | --- | --- |
| dspool, by Python handle | {t[pool_ops_per_s]:,.0f} | p50 {t[p50_ms]:.0f} ms, p99 {t[p99_ms]:.0f} ms |
| bare DSPy in two processes, as it comes | {t[limit_ops_per_s]:,.0f} | dspool's workers write prompts faster, which pays for the queue and the network |
| bare DSPy with dspool's adapter | {t[limit_same_adapter_ops_per_s]:,.0f} | the limit of the machine: dspool reaches {t[vs_limit_same_adapter]:.2f} of it |
| Ray Serve handle | {t[serve_handle_ops_per_s]:,.0f} | |
| `ray.util.ActorPool` | {t[actor_pool_ops_per_s]:,.0f} | dspool: {t[vs_actor_pool]:.1f} times |

At concurrency 1 an operation takes {t[one_p50_ms]:.1f} ms, a bare Ray actor call to the same program {t[bare_actor_p50_ms]:.1f} ms. Over
{t[memory_operations]:,} operations the client grew by {client:.1f} MB, a worker by at most {worker:.1f} MB. ({versions}, commit {throughput},
medians of {t[rounds]} rounds.)

Over HTTP (`python -m benchmarks.http`, the load generator on the same machine, commit {http}):

| | requests/s, 32 connections | p50, p99 | 1 connection |
| --- | --- | --- | --- |
{rows}

After a SIGKILL of a worker under load the pool was whole again within {r[recovery_p99_ms]:.0f} ms (p99 of {r[kills]} kills, one spare,
`python -m benchmarks.recovery`, commit {recovery}); {r[sessions_lost]} sessions were lost, {r[answered_twice]} operations answered twice.

The eight targets (`python -m benchmarks.targets`, commit {targets}; `benchmarks/report.html` says on which work each was measured):

| metric | target | seen | lowest to highest, repetitions |
| --- | --- | --- | --- |
{metrics}
"""  # noqa: E501
_SYSTEMS = {
    "dspool": "dspool",
    "fastapi": "FastAPI, 2 uvicorn workers, `dspy.asyncify`",
    "serve_haproxy": "Ray Serve, HAProxy ingress",
    "serve_default": "Ray Serve, default ingress",
}


class NotQuotable(Exception):
    """The report is no ground for a statement; says which part of it and why."""


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """Of a report what the README's figures are from."""
    found = {}
    for name in KEPT:
        entry = report["benchmarks"].get(name)
        if entry is None:
            raise NotQuotable(f"{name} is not in the report")
        if entry["quick"] or not entry["ok"]:
            raise NotQuotable(f"{name} {'was a short run' if entry['quick'] else 'failed'}")
        found[name] = {fact: entry[fact] for fact in _FACTS} | {"figures": entry["figures"]}
    for row in found["targets"]["figures"].get("targets", ()):
        if not within(row["value"], row["lowest"], row["highest"]):
            raise NotQuotable(f"{row['name']} lies outside of its own range")
    return found


def section(figures: dict[str, Any]) -> str:
    """The README's text about `figures`."""
    throughput = figures["throughput"]
    grown = throughput["figures"]["memory_growth_mb"]
    rows = {(row["system"], row["connections"]): row for row in figures["http"]["figures"]["rows"]}
    ordered = sorted(_SYSTEMS, key=lambda system: -rows[system, 32]["rps"])
    return _TEXT.format(
        t=throughput["figures"],
        r=figures["recovery"]["figures"],
        client=grown["client"],
        worker=max(mb for name, mb in grown.items() if name != "client"),
        rows="\n".join(
            f"| {_SYSTEMS[system]} | {rows[system, 32]['rps']:,.0f} | {rows[system, 32]['p50_ms']:.0f}, "
            f"{rows[system, 32]['p99_ms']:.0f} ms | {rows[system, 1]['rps']:,.0f} |"
            for system in ordered
        ),
        metrics="\n".join(map(_metric, figures["targets"]["figures"]["targets"])),
        machine=throughput["machine"].split(",")[0],
        versions=f"Ray {throughput['ray']}, DSPy {throughput['dspy']}",
        **{name: figures[name]["commit"] for name in KEPT},
    )


def _metric(row: dict[str, Any]) -> str:
    missed = "" if row["met"] else ", **missed**"
    # Figures of before that was held have one range of another statistic; it would contradict what stands beside it.
    has_range = within(row["value"], row["lowest"], row["highest"])
    seen = f"{_short(row['lowest'])} to {_short(row['highest'])}" if has_range else "not kept"
    spread = f"{seen}, {row['repetitions']}"
    return f"| `{row['name']}` | {row['target']} {row['unit']} | {_short(row['value'])}{missed} | {spread} |"


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def with_section(readme: str, text: str) -> str:
    before, rest = readme.split(BEGIN)
    return before + BEGIN + text + END + rest.split(END)[1]


def main(report: Path = REPORT) -> int:
    try:
        figures = kept(json.loads(report.read_text()))
    except (OSError, NotQuotable) as refused:
        print(f"nothing written: {refused}", file=sys.stderr)
        return 1
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    README.write_text(with_section(README.read_text(), section(figures)))
    print(f"written: {FIGURES}, {README}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
