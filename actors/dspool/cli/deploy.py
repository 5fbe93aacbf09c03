"""`dspool deploy`: a new version of a pool program, tried on one worker first."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from dspool.cli.options import ConfigFile, Debug, Json, PoolName, StateDir
from dspool.cli.output import EXIT_FAILED, Output, guarded
from dspool.cli.service import as_json, run_file, running_pool
from dspool.errors import InvalidRequest, PoolError, PoolNotReady, Unreachable
from dspool.messages import JSON, Deployment
from dspool.remote import BlockingRemotePool
from dspool.supervisor.canary import Rollout

LOOK_EVERY_S = 0.5
_STATE_KEYS = {"demos", "signature", "traces"}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(deploy)


def deploy(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The pool program; a new name is a new program.")
    ],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.json",
            help='A spec ({"signature": ..., "module": ...}); {"spec": ..., "state": ...} or {"import_path": ...}; '
            "or what DSPy's save() wrote, which is loaded into the spec of the current version.",
        ),
    ],
    watch: Annotated[
        int | None,
        typer.Option(min=0, max=3600, help="Longest time to watch the canary, in seconds (else 10)."),
    ] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Deploy a new version of a pool program.

    One worker (the canary) tries it while the others go on with the version before. The pool compares their error
    rates and run times: if the new one does worse, it rolls it back and the exit code is 1; else all workers get it.
    """
    out = Output(json, debug)
    with guarded(out):
        wanted = deployment_of(name, file)
        with running_pool(run_file(config, state_dir), pool) as served:
            rollout = _followed(served, wanted, watch, out)
            out.result({"pool": served.name, **as_json(rollout)}, outcome_text(rollout))
        if rollout.phase != "done":
            raise typer.Exit(EXIT_FAILED)


def _followed(pool: BlockingRemotePool, wanted: Deployment, watch: int | None, out: Output) -> Rollout:
    """Deploy and show how far it is; the roll-out as it ended.

    Raises:
        PoolError: it was refused, or nobody knows how it ended.
    """
    rollout: Rollout | None = None
    failed: PoolError = PoolNotReady("the service does not tell how the deployment ended")
    with shown(out) as show:
        try:
            for moment in pool.stream_deploy(wanted, canary_s=watch):
                if isinstance(moment, Rollout):
                    rollout = moment
                    show(rollout)
        except Unreachable as cut:
            # The connection went, not the deployment.
            failed = cut
            while rollout is not None and rollout.ended_at is None:
                time.sleep(LOOK_EVERY_S)
                rollout = _now(pool, rollout)
                show(rollout)
        except PoolError as refused:
            failed = refused
    if rollout is None or rollout.ended_at is None:
        raise failed
    return rollout


def _now(pool: BlockingRemotePool, rollout: Rollout) -> Rollout:
    """The same roll-out, as far as it has come."""
    for one in pool.rollouts():
        if (one.program, one.began_at) == (rollout.program, rollout.began_at):
            return one
    return rollout


def deployment_of(name: str, file: Path) -> Deployment:
    """The program in the file, as the next version of `name`.

    Raises:
        InvalidRequest: it cannot be read, or is no program.
    """
    body = program_of(file)
    if "signature" in body:
        body = {"spec": body}
    try:
        given = msgspec.convert(body, _Program)
    except msgspec.ValidationError as odd:
        raise InvalidRequest(f"{file} holds no program: {odd}") from None
    return Deployment(
        name, 0, spec=given.spec, state=given.state, import_path=given.import_path, kwargs=given.kwargs
    )


class _Program(msgspec.Struct, forbid_unknown_fields=True):
    spec: dict[str, JSON] | None = None
    state: dict[str, JSON] | None = None
    import_path: str | None = None
    kwargs: dict[str, JSON] = {}


def program_of(file: Path) -> dict[str, Any]:
    """What is in the file, as the service takes it.

    Raises:
        InvalidRequest: it cannot be read, or is no JSON object.
    """
    try:
        body = jsonlib.loads(file.read_text(encoding="utf-8"))
    except OSError as failed:
        raise InvalidRequest(f"cannot read {file}: {failed.strerror}") from None
    except ValueError as failed:
        raise InvalidRequest(f"{file} is not JSON: {failed}") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"{file} must hold a JSON object, it holds a {type(body).__name__}")
    return {"state": body} if _is_saved_state(body) else body


def _is_saved_state(body: dict[str, Any]) -> bool:
    """Whether DSPy's `save` wrote it: one predictor, or several by name."""
    parts = [body] if "demos" in body else [part for key, part in body.items() if key != "metadata"]
    return bool(parts) and all(isinstance(part, dict) and part.keys() >= _STATE_KEYS for part in parts)


@contextmanager
def shown(out: Output) -> Iterator[Callable[[Rollout], None]]:
    """Something that shows a deployment as far as it has come: live on a terminal, else a line when it changes."""
    if not out.as_json and Console().is_terminal:
        with Live(Text(""), auto_refresh=False, transient=True) as live:
            yield lambda rollout: live.update(Text(progress_text(rollout)), refresh=True)
        return
    said: list[str] = []

    def say(rollout: Rollout) -> None:
        if not said or said[-1] != rollout.phase:
            said.append(rollout.phase)
            if not out.as_json:
                out.progress(rollout.phase, progress_text(rollout))

    yield say


def progress_text(rollout: Rollout) -> str:
    what = f"{rollout.program} v{rollout.version}"
    match rollout.phase:
        case "loading":
            return f"{what}: a worker loads it"
        case "canary":
            return f"{what}: {rollout.canary} tries it\n{comparison_text(rollout)}"
        case "rolling out":
            return f"{what}: {rollout.workers_done} of {rollout.workers_total} workers have it"
    return f"{what}: {rollout.phase}"


def comparison_text(rollout: Rollout) -> str:
    both = ((rollout.previous, rollout.old), (rollout.version, rollout.new))
    rows = [
        (
            f"v{version}",
            f"{numbers.operations:,}",
            f"{numbers.errors / numbers.operations:.1%}" if numbers.operations else "-",
            f"{numbers.run_s * 1e3:,.1f} ms" if numbers.operations else "-",
            str(numbers.running),
        )
        for version, numbers in both
        if numbers is not None
    ]
    return Output().table(("version", "operations", "failed", "mean run time", "running"), rows)


def outcome_text(rollout: Rollout) -> str:
    what = f"{rollout.program} v{rollout.version}"
    compared = f"{comparison_text(rollout)}\n" if rollout.new else ""
    match rollout.phase:
        case "done":
            why = f" ({rollout.reason})" if rollout.reason else ""
            took_s = (rollout.ended_at or rollout.began_at) - rollout.began_at
            return f"{compared}{what} is on all workers after {took_s:.1f} s{why}"
        case "rolled back":
            return f"{compared}{what} was rolled back: {rollout.reason}; v{rollout.previous} is current"
    kept = f"; v{rollout.previous} is current" if rollout.previous else ""
    return f"{what} was not deployed: {rollout.reason}{kept}"
