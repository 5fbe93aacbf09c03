"""Commands that look: `dspool top`, `dspool events`, `dspool trace`."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dspool.cli import overview
from dspool.cli.layout import many
from dspool.cli.options import ConfigFile, Debug, Json, PoolName, StateDir
from dspool.cli.output import Output, guarded
from dspool.cli.run_file import RunFile
from dspool.cli.service import as_json, run_file, running_pool, serving
from dspool.errors import UnknownName
from dspool.telemetry.event_log import LoggedEvent
from dspool.telemetry.event_text import sentence

POLL_S = 5.0
"""How long one question for events waits at the service."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(top)
    app.command()(events)
    app.command()(trace)


def top(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Watch the pool, its workers and its programs, until Ctrl-C."""
    out = Output(json, debug)
    with guarded(out):
        file = run_file(config, state_dir)
        if json or once:
            seen = look(file, pool)
            if json:
                out.result(seen, "")
            else:
                Console(highlight=False).print(picture(seen))
            return
        try:
            with Live(picture(look(file, pool)), auto_refresh=False, screen=True) as live:
                while True:
                    time.sleep(interval)
                    live.update(picture(look(file, pool)), refresh=True)
        except KeyboardInterrupt:
            return


def events(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most this many, the newest.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens next.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what happened in the pool: sizes, deaths, deployments, moved sessions, but not each operation."""
    out = Output(json, debug)
    with serving(out, config, state_dir, pool) as served:
        page = served.events(0, limit)
        try:
            while True:
                if page.missed:
                    out.progress("warning", "events were missed: the pool keeps a limited number")
                for event in page.events:
                    out.result(as_json(event), event_text(event))
                if not follow:
                    return
                page = served.events(page.next, 1000, timeout_s=POLL_S)
        except KeyboardInterrupt:
            return


def trace(
    id: Annotated[str, typer.Argument(metavar="ID", help="An operation's id, or a trace's.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the spans of one operation, from the files of this machine."""
    from dspool.telemetry.trace_tree import find_trace, render

    out = Output(json, debug)
    with guarded(out):
        found = find_trace(run_file(config, state_dir).state_dir, id)
        spans = [span for span in found if pool in (None, span.get("resource", {}).get("dspool.pool"))]
        if not spans:
            raise UnknownName(f"pool {pool} has no trace of {id[:80]!r}; without --pool there is one")
        out.result({"trace_id": spans[0]["trace_id"], "spans": spans}, render(spans))


# --- what they show ---------------------------------------------------------------------------------


def look(file: RunFile, pool: str | None = None) -> dict[str, Any]:
    """What `overview.status` sees of the pool.

    Raises:
        PoolNotReady: nothing runs.
        Unreachable: it does not answer.
    """
    seen = overview.status(file, pool)
    if not seen["running"] or seen["status"] is None:
        with running_pool(file, pool) as served:
            served.status()  # raises what is wrong with it
    return seen


def picture(seen: dict[str, Any]) -> RenderableType:
    """What `dspool top` shows for `look`; legible in 80 columns."""
    status, metrics = seen["status"], seen["metrics"]
    if status is None:
        return Text(overview.headline(seen), style="bold red")
    wrong = seen["problems"]
    parts: list[RenderableType] = [
        Text(overview.headline(seen), style="bold yellow" if wrong else "bold green")
    ]
    parts += [Padding(Text(f"! {problem}", style="yellow"), (0, 0, 0, 2)) for problem in wrong]
    if metrics is None:
        parts.append(Text(f"no figures: {seen.get('metrics_why', 'they are off')}", style="yellow"))
    else:
        parts.append(_cards(metrics))
    parts.append(_workers(status, metrics))
    if metrics is not None and metrics["programs"]:
        parts.append(_programs(metrics["programs"]))
    return Group(*parts)


def _cards(metrics: dict[str, Any]) -> RenderableType:
    cards = {
        "throughput": f"{metrics['throughput']:,.1f}/s",
        "p50": _ms(metrics["p50_s"]),
        "p95": _ms(metrics["p95_s"]),
        "p99": _ms(metrics["p99_s"]),
        "wait p95": _ms(metrics["wait_p95_s"]),
        "utilization": f"{metrics['utilization']:.0%}",
        "running": str(metrics["running"]),
        "queued": str(metrics["queue_depth"]),
        "errors": f"{metrics['error_rate']:.2%}",
        "tokens in/out": f"{metrics['input_tokens']:,}/{metrics['output_tokens']:,}",
        **({"cost": f"${cost:,.2f}"} if (cost := metrics.get("cost_usd")) else {}),
    }
    row = Columns(
        [Text.assemble((f"{title}\n", "dim"), (value, "bold")) for title, value in cards.items()],
        padding=(0, 3),
    )
    lost = metrics["telemetry"]["dropped"] + metrics["telemetry"]["unattributed"]
    return Panel(
        row,
        title=f"last {metrics['window_s']:.0f} s",
        subtitle=f"{lost} samples lost" if lost else None,
        expand=False,
    )


def _workers(status: dict[str, Any], metrics: dict[str, Any] | None) -> Table:
    table = _table("worker", "state", "run", "sess", "used", "ops/s", "p95", "memory", "done")
    for worker in status["workers"]:
        series = (metrics or {}).get("slots", {}).get(str(worker["slot"]))
        mine = series if series is not None and series["worker"] == worker["id"] else None
        recent = None if mine is None else mine["recent"]
        table.add_row(
            worker["id"],
            worker["state"],
            f"{worker['running']}/{worker['slots']}",
            str(worker["sessions"]),
            "-" if recent is None else f"{recent['utilization']:.0%}",
            "-" if recent is None else f"{recent['throughput']:,.1f}",
            "-" if recent is None else _ms(recent["p95_s"]),
            f"{worker['rss_mb']:.0f}M",
            many(worker["operations"]),
        )
    return table


def _programs(programs: dict[str, Any]) -> Table:
    table = _table("program or command", "ops/s", "p50", "p95", "p99", "wait", "errors", "done")
    busiest = sorted(programs.items(), key=lambda item: -item[1]["recent"]["throughput"])
    for name, program in busiest[:20]:
        recent, counters = program["recent"], program["counters"]
        table.add_row(
            name,
            f"{recent['throughput']:,.1f}",
            *(_ms(recent[key]) for key in ("p50_s", "p95_s", "p99_s", "wait_p95_s")),
            f"{recent['error_rate']:.1%}",
            many(sum(counters["by_outcome"].values())),
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    # Where it is tight, names go on below; numbers are never cut.
    table.add_column(first, overflow="fold", min_width=8)
    for title in others:
        table.add_column(title, justify="right", no_wrap=True, min_width=len(title))
    return table


def event_text(event: LoggedEvent) -> str:
    """When, how bad, and a sentence."""
    at = datetime.fromtimestamp(event.at)
    day = "" if at.date() == datetime.now().date() else f"{at:%Y-%m-%d} "
    return f"{day}{at:%H:%M:%S}  {event.level:7}  {sentence(event)}"


def _ms(seconds: float) -> str:
    """At most seven characters."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
