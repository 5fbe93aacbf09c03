"""`dspool sizing`: what automatic sizing would do with a load, before it is switched on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from dspool.cli.load_trace import Workload, read_trace
from dspool.cli.options import AppliedFile, Debug, Json
from dspool.cli.output import Output, guarded
from dspool.config import PoolConfig, load_config
from dspool.core.autoscale.inputs import SizingConfig
from dspool.core.autoscale.policies import BUDGET
from dspool.core.autoscale.simulation import PoolModel, SimulatedRun
from dspool.core.autoscale.simulation import simulate as run_simulation
from dspool.core.autoscale.sizers import AutomaticSizer, smallest_constant
from dspool.errors import InvalidRequest

DAY_S: Final = 86_400
MOST: Final = 10_000
"""Workers, slots of one, and times as fast: beyond, a simulation takes memory and time, and means nothing."""
LONGEST_S: Final = 7.0 * DAY_S
"""A wrong timestamp would keep a simulation busy for hours."""

app = typer.Typer(
    help="Try the sizing of a pool on a load, without a pool.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def group() -> None:
    """Try the sizing of a pool on a load, without a pool."""


@app.command()
def simulate(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="CSV or JSON lines with a column timestamp; - is stdin.")
    ],
    file: AppliedFile = None,
    pool: Annotated[
        str | None, typer.Option("--pool", help="Which of the file's pools; by default the first.")
    ] = None,
    compress: Annotated[
        float, typer.Option(min=0.001, max=MOST, metavar="N", help="Divide the times of the trace by N.")
    ] = 1.0,
    service: Annotated[
        float, typer.Option(min=0.0001, max=DAY_S, metavar="S", help="Mean seconds that an operation takes.")
    ] = 0.5,
    slots: Annotated[
        int | None, typer.Option(min=1, max=MOST, metavar="N", help="Operations a worker runs at once.")
    ] = None,
    least: Annotated[
        int | None, typer.Option("--min", min=1, max=MOST, metavar="N", help="Fewest workers.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", min=1, max=MOST, metavar="N", help="Most workers.")
    ] = None,
    start_delay: Annotated[
        float,
        typer.Option(min=0, max=DAY_S, metavar="S", help="Seconds until a new worker takes operations."),
    ] = 1.0,
    max_wait: Annotated[
        float | None,
        typer.Option(min=0.001, max=DAY_S, metavar="S", help="Longest wait in seconds that you tolerate."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Replay a trace of arrivals: what would automatic sizing do, and what would a constant size take?

    Bounds and goals are those of the configuration; options count more. TRACE says when operations came (timestamp:
    ISO time, seconds or milliseconds). How long they take follows from a column of generated tokens if it has one;
    else it is drawn at random, the same in each run. The constant size is the smallest with which 99 % wait no longer
    than tolerated, found by trying. Exit code 2 when the trace or the bounds are refused.

    Example: dspool sizing simulate arrivals.csv -f pool.yaml --service 2
    """
    out = Output(json, debug)
    with guarded(out):
        configured = load_config(file=file, pool=pool).config
        sizing, model = simulated_pool(configured, slots, least, most, start_delay, max_wait)
        facts = simulated(read_trace(trace, compress=compress, service_mean_s=service), sizing, model)
        out.result(facts, simulation_text(facts))


def simulated_pool(
    configured: PoolConfig,
    slots: int | None,
    least: int | None,
    most: int | None,
    start_delay_s: float,
    max_wait_s: float | None,
) -> tuple[SizingConfig, PoolModel]:
    """The pool's bounds and goals with what is not None in their place.

    Raises:
        InvalidRequest: the fewest workers are more than the most.
    """
    own = SizingConfig.of(configured)
    config = msgspec.structs.replace(
        own,
        min_size=own.min_size if least is None else least,
        max_size=own.max_size if most is None else most,
        max_wait_s=own.max_wait_s if max_wait_s is None else max_wait_s,
    )
    if config.min_size > config.max_size:
        raise InvalidRequest(
            f"the fewest workers are more than the most: {config.min_size} and {config.max_size}; see --min and --max"
        )
    model = PoolModel(
        slots=configured.slots_per_worker if slots is None else slots,
        min_size=config.min_size,
        initial_size=min(config.max_size, max(config.min_size, configured.pool_size)),
        max_size=config.max_size,
        max_overflow=config.max_overflow,
        start_delay_s=start_delay_s,
        max_wait_s=config.max_wait_s,
    )
    return config, model


def simulated(work: Workload, config: SizingConfig, model: PoolModel) -> dict[str, Any]:
    """What `--json` prints; `constant` and `saved_pct` are None where no constant size within the bounds suffices.

    Raises:
        InvalidRequest: the load is longer than `LONGEST_S`.
    """
    if work.span_s > LONGEST_S:
        raise InvalidRequest(
            f"the trace spans {work.span_s / DAY_S:,.1f} days; a simulation takes at most {LONGEST_S / DAY_S:g}"
        )
    automatic = run_simulation(work.arrivals, work.services, AutomaticSizer(model, config), model)
    constant = smallest_constant(work.arrivals, work.services, model)
    saved = None if constant is None else 100 * (1 - automatic.worker_seconds / constant.worker_seconds)
    return {
        "trace": work.name,
        "operations": len(work.arrivals),
        "span_s": round(work.span_s, 3),
        "note": work.note,
        "settings": {
            "slots_per_worker": model.slots,
            "min_pool_size": model.min_size,
            "max_pool_size": model.max_size,
            "max_overflow": model.max_overflow,
            "pool_size": model.initial_size,
            "start_delay_s": model.start_delay_s,
            "max_wait_s": model.max_wait_s,
            "target_utilization": config.target_utilization,
        },
        "automatic": _figures(automatic, work.span_s),
        "constant": None if constant is None else _figures(constant, work.span_s),
        "saved_pct": None if saved is None else round(saved, 1),
    }


def _figures(run: SimulatedRun, span_s: float) -> dict[str, Any]:
    return {
        "waited_too_long": run.over,
        "waited_too_long_pct": round(run.over_pct, 3),
        "worker_seconds": round(run.worker_seconds, 1),
        "worker_hours": round(run.worker_seconds / 3600, 3),
        "mean_size": round(run.worker_seconds / span_s, 2),
        "largest_size": run.largest,
        "resizes": run.resizes,
    }


def simulation_text(facts: dict[str, Any]) -> str:
    """The load, the pool, a row for each way to size it, and what follows."""
    settings, automatic, constant = facts["settings"], facts["automatic"], facts["constant"]
    rows = [_row("automatic", automatic)]
    if constant is not None:
        rows.append(_row(f"constant {constant['largest_size']}", constant))
    overflow = f" and {settings['max_overflow']} overflow" if settings["max_overflow"] else ""
    return "\n".join(
        [
            f"{facts['trace']}: {facts['operations']:,} operations in {facts['span_s']:,.0f} s; {facts['note']}",
            f"pool: {settings['min_pool_size']} to {settings['max_pool_size']}{overflow} workers of "
            f"{settings['slots_per_worker']} slots, {settings['pool_size']} at first; a new one serves after "
            f"{settings['start_delay_s']:g} s; at most {100 * BUDGET:g} % may wait longer than "
            f"{settings['max_wait_s']:g} s",
            "",
            Output.table(_TITLES, rows),
            "",
            _conclusion(facts),
        ]
    )


_TITLES: Final = ("size", "waited too long", "worker-seconds", "worker-hours", "mean", "largest", "resizes")


def _row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{figures['waited_too_long_pct']:.2f} %",
        f"{figures['worker_seconds']:,.0f}",
        f"{figures['worker_hours']:,.2f}",
        f"{figures['mean_size']:.2f}",
        str(figures["largest_size"]),
        str(figures["resizes"]),
    )


def _conclusion(facts: dict[str, Any]) -> str:
    settings, saved = facts["settings"], facts["saved_pct"]
    goal = f"keeps {100 * (1 - BUDGET):g} % within {settings['max_wait_s']:g} s"
    missed = facts["automatic"]["waited_too_long_pct"] > 100 * BUDGET
    if saved is None:
        neither = ", and neither does automatic sizing" if missed else "; automatic sizing does"
        return f"no constant size up to {settings['max_pool_size']} {goal}{neither}"
    than = f"{abs(saved):.0f} % {'less' if saved > 0 else 'more'} than" if round(saved) else "as much as"
    but = ", but does not keep that goal itself" if missed else ""
    return f"automatic sizing costs {than} the smallest constant size that {goal}{but}"


__all__ = ["app", "simulated", "simulated_pool", "simulation_text"]
