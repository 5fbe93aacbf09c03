"""Commands that change the pool's workers: `dspool scale`, `drain`, `restart`, `pause`, `resume`."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from dspool.cli.options import ConfigFile, Debug, Json, PoolName, StateDir
from dspool.cli.output import EXIT_FAILED, Output, guarded
from dspool.cli.service import ServiceClient, run_file
from dspool.errors import UnknownWorker

LOOK_EVERY_S = 0.25
WAIT_EACH_S = 10.0
"""How long one request waits for a worker to be gone; asked again until the whole wait is over."""

WorkerName = Annotated[
    str,
    typer.Argument(metavar="WORKER", help="The worker's id or its slot number, as `dspool status` shows."),
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
        typer.Option(min=0, help="Seconds to wait until so many workers take traffic; 0 returns at once."),
    ] = 0.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Set the number of workers.

    New workers take traffic once they are warm; those that go finish their operations and hand their sessions on
    first. Of two at once, the later one holds. With the optimizer on, it goes on from there.
    """
    out = Output(json, debug)
    with guarded(out):
        service = ServiceClient.of(run_file(config, state_dir), pool)
        before = service.get()["desired"]
        desired = service.post("/resize", {"size": size})["desired"]
        seen = _until_sized(service, desired, wait) if wait else service.get()
        reached = seen["actual"] == desired
        facts = {"pool": service.pool, "before": before, "desired": desired, "actual": seen["actual"]}
        text = f"pool {service.pool}: {before} -> {desired} workers, {seen['actual']} take traffic now"
        why = f" ({seen['reason']})" if seen["reason"] else ""
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
    worker: WorkerName,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until the old one is gone.")] = 60.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Replace a worker: the new one is warm first, then the old one is drained."""
    _remove("restart", worker, config, state_dir, pool, wait, Output(json, debug))


def pause(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Refuse new operations until `dspool resume`; those that were accepted finish."""
    _pause("pause", config, state_dir, pool, Output(json, debug))


def resume(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take operations again."""
    _pause("resume", config, state_dir, pool, Output(json, debug))


def _until_sized(service: ServiceClient, size: int, wait_s: float) -> Any:
    until = time.monotonic() + wait_s
    while True:
        seen = service.get()
        if seen["actual"] == size or time.monotonic() >= until:
            return seen
        time.sleep(LOOK_EVERY_S)


def _remove(
    verb: str, named: str, config: Any, state_dir: Any, pool: str | None, wait_s: float, out: Output
) -> None:
    with guarded(out):
        service = ServiceClient.of(run_file(config, state_dir), pool)
        worker = service.worker_id(named)
        until = time.monotonic() + wait_s
        gone = asked = False
        while not gone and not (asked and time.monotonic() >= until):
            each = max(0.0, min(WAIT_EACH_S, until - time.monotonic()))
            try:
                answer = service.post(f"/workers/{worker}/{verb}", {"wait_s": each}, timeout_s=each + 15.0)
            except UnknownWorker:
                if not asked:
                    raise
                answer = {"gone": True}  # between two questions
            gone, asked = answer["gone"], True
        text = (
            f"worker {worker} is gone"
            if gone
            else f"worker {worker} is still finishing after {wait_s:g} s; it goes by itself"
        )
        out.result({"pool": service.pool, "worker": worker, "gone": gone}, text)
        if not gone:
            raise typer.Exit(EXIT_FAILED)


def _pause(verb: str, config: Any, state_dir: Any, pool: str | None, out: Output) -> None:
    with guarded(out):
        service = ServiceClient.of(run_file(config, state_dir), pool)
        paused = service.post(f"/{verb}")["paused"]
        text = "refuses new operations until `dspool resume`" if paused else "takes operations"
        out.result({"pool": service.pool, "paused": paused}, f"pool {service.pool} {text}")
