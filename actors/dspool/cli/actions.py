"""Commands that change the pool's workers: `dspool scale`, `drain`, `restart`, `pause`, `resume`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from dspool.cli.apply import restart_all
from dspool.cli.options import ConfigFile, Debug, Json, PoolName, StateDir
from dspool.cli.output import EXIT_FAILED, Output, guarded
from dspool.cli.service import run_file, running, serving
from dspool.core.wording import counted
from dspool.errors import InvalidRequest
from dspool.messages import PoolStatus
from dspool.remote import BlockingRemotePool

CUT_OFF: Final = (
    "what was begun goes on by itself, and the rest was not begun; the same command does all of it"
)
LOOK_EVERY_S = 0.25

WorkerName = Annotated[
    str,
    typer.Argument(metavar="WORKER", help="The worker's id, or its number: 0 for default-w0-a1b2c3."),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (scale, drain, restart, pause, resume):
        app.command()(command)


def scale(
    size: Annotated[int, typer.Argument(metavar="N", help="Workers, from min_pool_size to max_pool_size.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    wait: Annotated[
        float,
        typer.Option(min=0, help="Seconds to wait until that many workers take traffic; 0 returns at once."),
    ] = 0.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Set the number of workers.

    New workers take traffic once they are warm; those that go finish their operations and hand their sessions on
    first. Of two commands at once, the later one holds. With the optimizer on, it goes on from there.
    """
    out = Output(json, debug)
    with serving(out, config, state_dir, pool) as served:
        before = served.status().desired
        desired = served.resize(size)
        status = _until_sized(served, desired, wait)
        reached = status.actual == desired
        take = "takes" if status.actual == 1 else "take"
        facts = {"pool": served.name, "before": before, "desired": desired, "actual": status.actual}
        text = f"pool {served.name}: {before} -> {counted(desired, 'worker')}, {status.actual} {take} traffic now"
        why = f" ({status.reason})" if status.reason else ""
        out.result(facts, text if reached or not wait else f"{text} after {wait:g} s{why}")
        if wait and not reached:
            raise typer.Exit(EXIT_FAILED)


def drain(
    worker: WorkerName,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until it is gone.")] = 60.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take a worker out of traffic, let it finish, hand its sessions on, stop it.

    A replacement starts at the same time.
    """
    _remove("drain", worker, config, state_dir, pool, wait, Output(json, debug))


def restart(
    worker: Annotated[
        str | None,
        typer.Argument(metavar="WORKER", help="The worker's id, or its number: 0 for default-w0-a1b2c3."),
    ] = None,
    rolling: Annotated[
        bool,
        typer.Option(
            "--rolling",
            help="Replace all workers, one after the other, and without --pool the HTTP processes too.",
        ),
    ] = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until the old one is gone.")] = 60.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Replace a worker, or all: the new one is warm first, then the old one is drained. No request fails by it."""
    out = Output(json, debug)
    if rolling or worker is None:
        with serving(out, config, state_dir, pool) as found:
            found.status()  # a pool that the service does not have is refused here
        with guarded(out, interrupted=CUT_OFF):
            if not rolling or worker is not None:
                raise InvalidRequest("name a worker, or say --rolling for all of them")
            facts = restart_all(running(run_file(config, state_dir)), pool, out)
            workers = sum(facts["restarted"].values())
            out.result(facts, f"replaced {counted(workers, 'worker')} in {facts['took_s']:.1f} s")
        return
    _remove("restart", worker, config, state_dir, pool, wait, out)


def pause(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Refuse new operations until `dspool resume`; those that were accepted finish."""
    _pause(True, config, state_dir, pool, Output(json, debug))


def resume(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take operations again."""
    _pause(False, config, state_dir, pool, Output(json, debug))


def _until_sized(pool: BlockingRemotePool, size: int, wait_s: float) -> PoolStatus:
    until = time.monotonic() + wait_s
    while True:
        status = pool.status()
        if status.actual == size or time.monotonic() >= until:
            return status
        time.sleep(LOOK_EVERY_S)


def _remove(
    verb: Literal["drain", "restart"],
    named: str,
    config: Path | None,
    state_dir: Path | None,
    pool: str | None,
    wait_s: float,
    out: Output,
) -> None:
    with serving(out, config, state_dir, pool) as served:
        worker = served.status().worker_id(named)
        remove = served.drain if verb == "drain" else served.restart
        gone = remove(worker, wait_s=wait_s)
        text = (
            f"worker {worker} is gone"
            if gone
            else f"worker {worker} is still finishing after {wait_s:g} s; it goes by itself"
        )
        out.result({"pool": served.name, "worker": worker, "gone": gone}, text)
        if not gone:
            raise typer.Exit(EXIT_FAILED)


def _pause(paused: bool, config: Path | None, state_dir: Path | None, pool: str | None, out: Output) -> None:
    with serving(out, config, state_dir, pool) as served:
        if paused:
            served.pause()
        else:
            served.resume()
        text = "refuses new operations until `dspool resume`" if paused else "takes operations"
        out.result({"pool": served.name, "paused": paused}, f"pool {served.name} {text}")
