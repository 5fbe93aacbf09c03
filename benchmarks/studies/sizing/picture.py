"""One HTML file, nothing fetched: load, size and wait of every policy on every workload, drawn as SVG."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from dspool.core.autoscale.simulation import PoolModel, SimulatedRun

WIDTH, LOAD_HEIGHT, WAIT_HEIGHT, POINTS = 900, 110, 36, 600

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>dspool: pool sizing</title><style>
body{{font:14px system-ui,sans-serif;margin:2em;color:#222;max-width:960px}} h2{{margin:1.6em 0 .2em}}
.note{{color:#555}} .run{{margin:.8em 0}} .run b{{display:inline-block;min-width:8em}}
svg{{display:block;background:#fafafa}}
.key span{{display:inline-block;width:1em;height:.7em;margin:0 .3em 0 1em}}
</style></head><body><h1>Pool sizing: load, size and wait</h1>
<p class="note">{note}</p>
<p class="key"><span style="background:#9ecae1"></span>operations running and waiting
<span style="background:#d94801"></span>slots paid for
<span style="background:#756bb1"></span>longest wait in the second, beside the objective (grey line)</p>
{body}</body></html>
"""


def write_picture(
    path: Path,
    shown: Sequence[tuple[str, str, Sequence[tuple[SimulatedRun, float]]]],
    pool: PoolModel,
    note: str,
) -> None:
    """Write the page. `shown` holds (workload, its note, [(run, worker-seconds over the oracle's)])."""
    parts = []
    for workload, about, runs in shown:
        parts.append(f"<h2>{html.escape(workload)}</h2><p class='note'>{html.escape(about)}</p>")
        top = max((max(p[1], p[2] * pool.slots) for run, _ in runs for p in run.series), default=1.0)
        for run, ratio in runs:
            scores = (
                f"{run.over_pct:.2f} % waited too long, {ratio:.2f} times the oracle's worker-seconds, "
                f"{run.resizes} resizes"
            )
            drawing = _drawing(run, pool, top)
            parts.append(f"<div class='run'><b>{html.escape(run.policy)}</b> {scores}{drawing}</div>\n")
    path.write_text(_PAGE.format(note=html.escape(note), body="".join(parts)), encoding="utf-8")


def _drawing(run: SimulatedRun, pool: PoolModel, top: float) -> str:
    points = _thinned(run.series)
    if len(points) < 2:
        return "<p>too short to draw</p>"
    end = points[-1][0]

    def x(t: float) -> float:
        return round(t / end * WIDTH, 1)

    def y(slots: float) -> float:
        return round(LOAD_HEIGHT * (1 - min(slots, top) / top), 1)

    load = " ".join(f"{x(t)},{y(n)}" for t, n, _, _ in points)
    steps = "".join(f"H{x(t)}V{y(n * pool.slots)}" for t, _, n, _ in points)
    size = f"M0,{y(points[0][2] * pool.slots)}{steps}"
    # The wait strip ends at ten times the objective; the objective is its grey line.
    base, limit = LOAD_HEIGHT + WAIT_HEIGHT, 10 * pool.max_wait_s
    wait = " ".join(f"{x(t)},{round(base - min(w, limit) / limit * WAIT_HEIGHT, 1)}" for t, _, _, w in points)
    goal = base - WAIT_HEIGHT / 10
    box = f'viewBox="0 0 {WIDTH} {base}" width="{WIDTH}" height="{base}"'
    label = 'y="12" font-size="10" fill="#666"'
    return (
        f'<svg {box} role="img" aria-label="{html.escape(run.policy)}">'
        f'<polygon points="0,{LOAD_HEIGHT} {load} {WIDTH},{LOAD_HEIGHT}" fill="#9ecae1"/>'
        f'<path d="{size}" fill="none" stroke="#d94801" stroke-width="1.3"/>'
        f'<path d="M0,{goal}H{WIDTH}" stroke="#999" stroke-width="0.7"/>'
        f'<polyline points="{wait}" fill="none" stroke="#756bb1"/>'
        f'<text x="4" {label}>{top:.0f} slots</text>'
        f'<text x="{WIDTH - 4}" {label} text-anchor="end">{end:.0f} s</text></svg>'
    )


def _thinned(series: list[tuple[float, float, int, float]]) -> list[tuple[float, float, int, float]]:
    """At most POINTS points, each with the largest values of the seconds it stands for."""
    group = max(1, -(-len(series) // POINTS))
    chunks = [series[i : i + group] for i in range(0, len(series), group)]
    return [(c[-1][0], max(p[1] for p in c), max(p[2] for p in c), max(p[3] for p in c)) for c in chunks]
