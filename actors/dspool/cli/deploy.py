"""`dspool deploy`: a new version of a pool program, tried on one worker first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from dspool.cli import completion
from dspool.cli.layout import table
from dspool.cli.options import ConfigFile, Debug, Json, PoolName, StateDir
from dspool.cli.output import EXIT_FAILED, Output, guarded
from dspool.cli.service import as_json, run_file, running_pool
from dspool.config.saved_state import read_state
from dspool.errors import (
    Conflict,
    InvalidRequest,
    PoolError,
    PoolNotReady,
    UnknownProgram,
    Unreachable,
    suggestion,
)
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
        str,
        typer.Argument(
            metavar="NAME", help="The pool program; --new makes one.", autocompletion=completion.programs
        ),
    ],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE.json",
            help='A spec ({"signature": ..., "module": ...}); {"spec": ..., "state": ...} or {"import_path": ...}; '
            "or what DSPy's save() wrote, as --state. Without it: what the current version is made of, with its source "
            "as it is now.",
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", help="Load this state, which DSPy's save() wrote, into the program."
        ),
    ] = None,
    import_path: Annotated[
        str | None,
        typer.Option("--from", metavar="PACKAGE.MODULE:NAME", help="Make it from this import path."),
    ] = None,
    kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="Arguments for the import path, as a JSON object.")
    ] = None,
    program_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help="A program that DSPy saved whole, within allowed_program_dirs of the pool. Loading it runs its code.",
        ),
    ] = None,
    new: Annotated[
        bool, typer.Option("--new", help="NAME is a program that the pool does not have yet.")
    ] = False,
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

    Edited source is imported by new worker processes, which then take the place of the old ones. If exactly this runs
    already, nothing is deployed, and that is no failure.
    """
    out = Output(json, debug)
    with guarded(out):
        wanted = wanted_of(name, file, state, import_path, kwargs, program_dir)
        with running_pool(run_file(config, state_dir), pool) as served:
            refuse_unless_meant(name, served.current_versions(), new=new)
            try:
                rollout = _followed(served, wanted, watch, out)
            except Conflict as same:
                if same.details.get("reason") != "nothing_changed":
                    raise
                unchanged = {"pool": served.name, "program": name, "version": same.details["version"]}
                out.result({**unchanged, "phase": "unchanged", "reason": same.message}, same.message)
                return
            out.result({"pool": served.name, **as_json(rollout)}, outcome_text(rollout))
        if rollout.phase != "done":
            raise typer.Exit(EXIT_FAILED)


def refuse_unless_meant(name: str, known: Iterable[str], *, new: bool) -> None:
    """A mistyped name must not become a program.

    Raises:
        UnknownProgram: there is none of that name, and it was not to be `new`. Conflict: there is one, and it was.
    """
    there = name in known
    if new and there:
        raise Conflict(f"there is a program {name!r} already; leave --new out to deploy its next version")
    if not new and not there:
        raise UnknownProgram(
            f"no program {name!r}{suggestion(name, known)}; --new makes a new program", program=name
        )


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


def wanted_of(
    name: str,
    file: Path | None,
    state: Path | None,
    import_path: str | None,
    kwargs: str | None,
    program_dir: Path | None,
) -> Deployment:
    """What the command line says, as the next version of `name`; what it does not say is as in the current version.

    Raises:
        InvalidRequest: something cannot be read, or two of it name a program.
    """
    if sum(one is not None for one in (file, import_path, program_dir)) > 1:
        raise InvalidRequest("give one of FILE.json, --from and --program-dir")
    wanted = Deployment(name, 0) if file is None else deployment_of(name, file)
    if state is not None:
        try:
            wanted = msgspec.structs.replace(wanted, state=read_state(state))
        except ValueError as why:
            raise InvalidRequest(f"--state: {state} {why}", field="state") from None
    if kwargs is not None:
        try:
            wanted = msgspec.structs.replace(wanted, kwargs=msgspec.json.decode(kwargs, type=dict[str, Any]))
        except msgspec.DecodeError as odd:
            raise InvalidRequest(f"--kwargs must be a JSON object: {odd}", field="kwargs") from None
    place = None if program_dir is None else str(program_dir.resolve())
    return msgspec.structs.replace(
        wanted, import_path=import_path or wanted.import_path, program_dir=place or wanted.program_dir
    )


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
        name, 0, given.spec, given.state, given.import_path, given.kwargs, program_dir=given.program_dir
    )


class _Program(msgspec.Struct, forbid_unknown_fields=True):
    spec: dict[str, JSON] | None = None
    state: dict[str, JSON] | None = None
    import_path: str | None = None
    kwargs: dict[str, JSON] = {}
    program_dir: str | None = None


def program_of(file: Path) -> dict[str, Any]:
    """What is in the file, as the service takes it.

    Raises:
        InvalidRequest: it cannot be read, or is no JSON object.
    """
    try:
        body = read_state(file)
    except ValueError as why:
        raise InvalidRequest(f"{file} {why}") from None
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
        case "rolling out" if not rollout.workers_total:
            return f"{what}: the workers take it over"
        case "rolling out":
            return f"{what}: {rollout.workers_done} of {rollout.workers_total} workers have it"
    return f"{what}: {rollout.phase}"


def comparison_text(rollout: Rollout) -> str:
    both = (
        (f"v{rollout.previous}", rollout.old),
        (f"v{rollout.version}", rollout.new),
        (f"v{rollout.previous}, in all", rollout.base),
    )
    rows = [
        (
            version,
            f"{numbers.operations:,}",
            f"{numbers.errors / numbers.operations:.1%}" if numbers.operations else "-",
            f"{numbers.run_s * 1e3:,.1f} ms" if numbers.operations else "-",
            str(numbers.running),
        )
        for version, numbers in both
        if numbers is not None
    ]
    return table(("version", "operations", "failed", "mean run time", "running"), rows)


def outcome_text(rollout: Rollout) -> str:
    what = f"{rollout.program} v{rollout.version}"
    compared = f"{comparison_text(rollout)}\n" if rollout.new else ""
    match rollout.phase:
        case "done":
            why = f" ({rollout.reason})" if rollout.reason else ""
            took_s = (rollout.ended_at or rollout.began_at) - rollout.began_at
            place = "all workers"
            if rollout.workers_done < rollout.workers_total:
                place = f"{rollout.workers_done} of {rollout.workers_total} workers"
            return f"{compared}{what} is on {place} after {took_s:.1f} s{why}"
        case "rolled back":
            return f"{compared}{what} was rolled back: {rollout.reason}; v{rollout.previous} is current"
    kept = f"; v{rollout.previous} is current" if rollout.previous else ""
    return f"{what} was not deployed: {rollout.reason}{kept}"
