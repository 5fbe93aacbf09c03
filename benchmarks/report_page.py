"""The report as one HTML page: the machine, a table for whatever is a list of like things, charts where there are
curves."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from benchmarks import goals
from benchmarks.charts import curve_chart, line_chart

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#111827;background:#fff}
table{border-collapse:collapse;margin:.5rem 0;font-size:13px}td,th{border:1px solid #d1d5db;padding:.2rem .5rem}
td{white-space:nowrap}th{white-space:nowrap}td.w{white-space:normal;min-width:16rem}.t{overflow-x:auto}tr.us{background:#eff6ff;font-weight:600}
.cells{display:grid;grid-template-columns:repeat(auto-fill,minmax(33rem,1fr));gap:0 1rem}h4{margin:.8rem 0 0}
th{background:#f3f4f6;text-align:left}td.n{text-align:right;font-variant-numeric:tabular-nums}
figure{display:inline-block;vertical-align:top;margin:.5rem;max-width:33rem}figcaption,small{color:#4b5563;font-size:13px}
.yes{color:#047857}.no{color:#b91c1c;font-weight:600}pre{overflow:auto;background:#f9fafb;padding:.5rem;font-size:12px}
h2{border-top:2px solid #e5e7eb;padding-top:1rem}
"""
_FACTS = ("commit", "machine", "python", "ray", "dspy", "date")


def page(report: dict[str, Any]) -> str:
    entries = report["benchmarks"].values()
    facts = ", ".join(f"{name} {report[name]}" for name in _FACTS)
    links = " · ".join(f'<a href="#{entry["name"]}">{entry["name"]}</a>' for entry in entries)
    body = "".join(_section(entry) for entry in entries)
    reached = goals.rows(report["benchmarks"])
    summary = f"<h2>Figures to reach</h2>{_table(reached)}" if reached else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>dspool: benchmarks</title><style>{_STYLE}</style><h1>dspool: benchmarks</h1>"
        f"<p>{escape(facts)}</p><p>{links}</p>{summary}{body}</html>\n"
    )


def _section(entry: dict[str, Any]) -> str:
    figures = entry["figures"]
    state = "" if entry["ok"] else ' <span class="no">failed</span>'
    kind = " (a short run that shows that it works: figures are rough)" if entry["quick"] else ""
    head = (
        f'<h2 id="{entry["name"]}">{entry["name"]}{state}</h2><small><code>{escape(entry["command"])}</code>{kind}, '
        f"{entry['seconds']:g} s, commit {escape(entry['commit'])}, {entry['date']}, load of the last quarter hour "
        f"{entry['cpu_load']:.1f}</small>"
    )
    printed = escape("\n".join(entry["printed"]))
    said = f"<details><summary>printed</summary><pre>{printed}</pre></details>"
    return f"{head}{_charts(figures)}{_tables(figures)}{said}"


def _charts(figures: dict[str, Any]) -> str:
    drawn = [(curve_chart(curve), curve["note"]) for curve in figures.get("curves", ())]
    drawn += [(chart, "") for chart in _peers(figures.get("rows", ()))]
    if series := figures.get("memory_series"):
        drawn.append((line_chart("Memory over the run", "seconds", "MB USS", series), ""))
    return "".join(
        f"<figure>{chart}<figcaption>{escape(note)}</figcaption></figure>" for chart, note in drawn if chart
    )


def _peers(rows: Any) -> list[str]:
    """Throughput over concurrency by system, for each workload that was run at several."""
    by: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        if row.get("concurrency") and row.get("ops_per_s") is not None and "interface" in row:
            name = f"{row['system']} ({row['interface']})"
            by.setdefault(row["workload"], {}).setdefault(name, []).append(
                (row["concurrency"], row["ops_per_s"])
            )
    return [
        line_chart(f"{workload}: operations/s", "callers", "operations/s", systems, log_x=True)
        for workload, systems in by.items()
        if any(len(points) > 1 for points in systems.values())
    ]


def _tables(figures: dict[str, Any]) -> str:
    single = {name: value for name, value in figures.items() if not isinstance(value, list | dict)}
    parts = [_table([{"figure": name, "value": value} for name, value in single.items()])] if single else []
    for name, value in figures.items():
        if name in ("curves", "memory_series"):
            continue
        if name == "rows" and value and "workload" in value[0]:
            parts.append(_cells(value))
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            parts.append(f"<h3>{escape(name)}</h3>{_table(value)}")
        elif isinstance(value, list) and value:
            parts.append(
                f"<h3>{escape(name)}</h3><ul>{''.join(f'<li>{_cell(one)}</li>' for one in value)}</ul>"
            )
        elif isinstance(value, dict) and value:
            rows = [{"figure": key, "value": one} for key, one in value.items()]
            parts.append(f"<h3>{escape(name)}</h3>{_table(rows)}")
    return "".join(parts)


def _cells(rows: list[dict[str, Any]]) -> str:
    """The rows of `benchmarks.peers`: a table for each workload and load, and one of what was told and not timed."""
    by: dict[tuple[str, Any, Any], list[dict[str, Any]]] = {}
    for row in rows:
        by.setdefault((row["workload"], row["concurrency"], row.get("rate")), []).append(row)
    tables, told = [], []
    for (workload, concurrency, rate), here in by.items():
        if concurrency is None and rate is None:
            told.append(f"<h4>{escape(workload)}</h4>{_table([_peer(row) for row in here])}")
            continue
        load = f"{concurrency} callers" if rate is None else f"open loop, {rate:g}/s"
        timed = [row for row in here if row["ops_per_s"] is not None]
        ordered = [_peer(row) for row in sorted(timed, key=lambda row: -row["ops_per_s"])]
        table = _table(ordered, ours=lambda row: row["system"].startswith("dspool ")) if ordered else ""
        tables.append(f"<div><h4>{escape(workload)}, {load}</h4>{table}{_notes(here)}</div>")
    return f'<div class="cells">{"".join(tables)}</div>{"".join(told)}'


def _peer(row: dict[str, Any]) -> dict[str, Any]:
    system = {"system": f"{row['system']} ({row['interface']})"}
    if row["ops_per_s"] is None:
        return system | {"note": row["note"]}
    spread = (
        f"{row['lowest_ops_per_s']:,.0f}-{row['highest_ops_per_s']:,.0f}" if "lowest_ops_per_s" in row else ""
    )
    return system | {
        "ops/s": row["ops_per_s"],
        "spread": spread,
        "p50 ms": row.get("p50_ms"),
        "p99 ms": row.get("p99_ms"),
        "failed": row.get("failed"),
    }


def _notes(rows: list[dict[str, Any]]) -> str:
    """Each note once, with the systems that it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if "note" in row:
            about.setdefault(row["note"], []).append(f"{row['system']} ({row['interface']})")
    return "".join(
        f"<p><small>{escape(', '.join(systems))}: {escape(note)}</small></p>"
        for note, systems in about.items()
    )


def _table(rows: list[dict[str, Any]], ours: Callable[[dict[str, Any]], bool] = lambda _: False) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            kind = " class=n" if number else " class=w" if isinstance(value, str) and len(value) > 60 else ""
            cells.append(f"<td{kind}>{_cell(value)}</td>")
        lines.append(f"<tr{' class=us' if ours(row) else ''}>{''.join(cells)}</tr>")
    return f'<div class="t"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _cell(value: Any) -> str:
    if value is True:
        return '<span class="yes">yes</span>'
    if value is False:
        return '<span class="no">no</span>'
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
    return escape(str(value))
