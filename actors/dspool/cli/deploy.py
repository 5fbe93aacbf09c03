"""`dspool deploy`: a new version of a pool program, tried on one worker first."""

from __future__ import annotations

import json as jsonlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from dspool.cli.options import ConfigFile, Debug, Json, PoolName, StateDir
from dspool.cli.output import EXIT_FAILED, Output, guarded
from dspool.cli.service import ServiceClient, run_file
from dspool.errors import InvalidRequest, PoolError, PoolNotReady

LOOK_EVERY_S = 0.5
ENDED = frozenset({"done", "rolled back", "failed"})
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

    One worker (the canary) tries it while the others go on with the version before. Their error rates and run times
    are compared: does it do worse, it is rolled back by itself and the exit code is 1; else all workers get it.
    """
    out = Output(json, debug)
    with guarded(out):
        body = program_of(file)
        service = ServiceClient.of(run_file(config, state_dir), pool)
        path = f"/programs/{quote(name, safe='')}/versions"
        known = [_key(one) for one in service.get("/rollouts")["rollouts"]]
        asked = Asked(lambda: service.post(path, body, query=watch_of(watch), timeout_s=None))
        seen: dict[str, Any] | None = None
        with shown(out) as show:
            while not asked.ended.wait(LOOK_EVERY_S) or (asked.cut_off and not _over(seen)):
                seen = _mine(service, name, known) or seen
                if seen is not None:
                    show(seen)
        # The last look may have been before the end.
        seen = _mine(service, name, known) or seen
        failed = asked.failed
        if seen is None or (failed is not None and seen["phase"] not in ENDED):
            raise failed or PoolNotReady("the service does not tell how the deployment ended")
        out.result({"pool": service.pool, **seen}, outcome_text(seen))
        if seen["phase"] != "done":
            raise typer.Exit(EXIT_FAILED)


class Asked:
    """A request in a thread of its own, so that its progress can be looked at meanwhile."""

    def __init__(self, ask: Any) -> None:
        self.ended = threading.Event()
        self.failed: PoolError | None = None
        self._ask = ask
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def cut_off(self) -> bool:
        """The connection went, not the deployment."""
        return isinstance(self.failed, PoolNotReady) and "does not answer" in self.failed.message

    def _run(self) -> None:
        try:
            self._ask()
        except PoolError as failed:
            self.failed = failed
        except Exception as failed:
            self.failed = PoolError(f"{type(failed).__name__}: {failed}")
        finally:
            self.ended.set()


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


def watch_of(watch: int | None) -> dict[str, str | int] | None:
    return None if watch is None else {"canary_s": watch}


def _mine(service: ServiceClient, name: str, known: list[Any]) -> dict[str, Any] | None:
    """This deployment, as the service tells it; None while it does not."""
    try:
        rollouts = service.get("/rollouts")["rollouts"]
    except PoolError:
        return None  # looked at again; the deployment itself tells what is wrong
    for one in rollouts:
        if one["program"] == name and _key(one) not in known:
            found: dict[str, Any] = one
            return found
    return None


def _key(rollout: dict[str, Any]) -> tuple[str, float]:
    return rollout["program"], rollout["began_at"]


def _over(seen: dict[str, Any] | None) -> bool:
    return seen is None or seen["phase"] in ENDED


@contextmanager
def shown(out: Output) -> Iterator[Any]:
    """Something that shows a deployment as far as it has come: live on a terminal, else a line when it changes."""
    if not out.as_json and Console().is_terminal:
        with Live(Text(""), auto_refresh=False, transient=True) as live:
            yield lambda seen: live.update(Text(progress_text(seen)), refresh=True)
        return
    said: list[str] = []

    def say(seen: dict[str, Any]) -> None:
        if not said or said[-1] != seen["phase"]:
            said.append(seen["phase"])
            if not out.as_json:
                out.progress(seen["phase"], progress_text(seen))

    yield say


def progress_text(seen: dict[str, Any]) -> str:
    what = f"{seen['program']} v{seen['version']}"
    match seen["phase"]:
        case "loading":
            return f"{what}: a worker loads it"
        case "canary":
            return f"{what}: {seen['canary']} tries it\n{comparison_text(seen)}"
        case "rolling out":
            return f"{what}: {seen['workers_done']} of {seen['workers_total']} workers have it"
    return f"{what}: {seen['phase']}"


def comparison_text(seen: dict[str, Any]) -> str:
    both = ((seen["previous"], seen["old"]), (seen["version"], seen["new"]))
    rows = [
        (
            f"v{version}",
            f"{numbers['operations']:,}",
            f"{numbers['errors'] / numbers['operations']:.1%}" if numbers["operations"] else "-",
            f"{numbers['run_s'] * 1e3:,.1f} ms" if numbers["operations"] else "-",
            str(numbers["running"]),
        )
        for version, numbers in both
        if numbers is not None
    ]
    return Output().table(("version", "operations", "failed", "mean run time", "running"), rows)


def outcome_text(seen: dict[str, Any]) -> str:
    what = f"{seen['program']} v{seen['version']}"
    compared = f"{comparison_text(seen)}\n" if seen["new"] else ""
    match seen["phase"]:
        case "done":
            why = f" ({seen['reason']})" if seen["reason"] else ""
            return (
                f"{compared}{what} is on all workers after {seen['ended_at'] - seen['began_at']:.1f} s{why}"
            )
        case "rolled back":
            return f"{compared}{what} was rolled back: {seen['reason']}; v{seen['previous']} is current"
    kept = f"; v{seen['previous']} is current" if seen["previous"] else ""
    return f"{what} was not deployed: {seen['reason']}{kept}"
