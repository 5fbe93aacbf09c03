"""Writes the tables of metrics and alerts into `docs/observability.md`, from the tables in the code."""

from __future__ import annotations

from pathlib import Path

from dspool.telemetry.metric_table import METRICS
from dspool_console.alerts import ALERTS

GUIDE = Path(__file__).with_name("observability.md")


def metrics_table() -> str:
    lines = ["| metric | kind | labels besides `pool` | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels)} | {metric.help} |"
        for metric in METRICS
    ]
    return "\n".join(lines) + "\n"


def alerts_table() -> str:
    lines = ["| alert | severity | after | what to know |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {alert.name} | {alert.severity} | {alert.lasting} | {alert.description} |" for alert in ALERTS
    ]
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """`text` with its generated parts made anew."""
    for name, table in (("metrics", metrics_table()), ("alerts", alerts_table())):
        begin, end = f"<!-- begin: generated {name} -->\n", f"<!-- end: generated {name} -->\n"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}{table}{end}{after}"
    return text


if __name__ == "__main__":
    GUIDE.write_text(filled(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
