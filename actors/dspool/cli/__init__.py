"""`dspool`: the commands. Each is a few lines; what they do lies in the modules beside this one."""

from __future__ import annotations

from dspool.cli import interrupt

# isort: split
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any

import typer

from dspool.cli import (
    actions,
    apply,
    checklist,
    deploy,
    dev,
    doctor,
    evaluation,
    failures,
    logs,
    new,
    open,
    operations,
    overview,
    programs,
    sizing,
    store,
    tokens,
    upgrade,
    versions,
    views,
    warm,
    where,
)
from dspool.cli.detached import run_detached
from dspool.cli.entry import Commands, piped
from dspool.cli.env_file import take_variables
from dspool.cli.json_log import JsonLog
from dspool.cli.options import ConfigFile, Debug, EnvFile, Host, Json, PoolName, Port, StateDir
from dspool.cli.output import EXIT_FAILED, EXIT_NOT_RUNNING, Output, guarded
from dspool.cli.service import run_file
from dspool.cli.start import run_down, run_up
from dspool.config import load_config, load_pools
from dspool.errors import ConfigError


def _version(asked: bool) -> None:
    if asked:
        print(f"dspool {version_of('dspool')}")
        raise typer.Exit


app = typer.Typer(
    name="dspool",
    cls=Commands,
    help="Serve stateful DSPy programs from a pool of warm, supervised Ray actors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(tokens.app, name="token")
app.add_typer(store.app, name="store")
app.add_typer(sizing.app, name="sizing")


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", is_eager=True, help="Print the version and end.", callback=_version),
    ] = False,
) -> None:
    """Serve stateful DSPy programs from a pool of warm, supervised Ray actors."""


@app.command()
def up(
    served: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROGRAM",
            help="Serve this program of yours: package.module:Name, found from the current directory. "
            "Its name in the pool is that of the class, or what stands before a =.",
        ),
    ] = None,
    config: ConfigFile = None,
    host: Host = None,
    port: Port = None,
    address: Annotated[
        str | None, typer.Option(help='Join this Ray cluster ("auto" finds it) and do not start one.')
    ] = None,
    state_dir: StateDir = None,
    name: Annotated[str | None, typer.Option("--name", "--pool", help="Name of the pool.")] = None,
    pool_size: Annotated[int | None, typer.Option(help="Workers to start with.")] = None,
    slots: Annotated[int | None, typer.Option(help="Operations a worker runs at once.")] = None,
    ray_dashboard: Annotated[
        bool, typer.Option("--ray-dashboard", help="Start Ray's dashboard too.")
    ] = False,
    root_path: Annotated[
        str | None,
        typer.Option("--root-path", help="Path below which a proxy offers the service, such as /dsp."),
    ] = None,
    log_format: Annotated[
        str,
        typer.Option(
            "--log-format",
            help="text; or json: all that the pool logs too, a JSON line each, for containers.",
        ),
    ] = "text",
    timings: Annotated[
        bool, typer.Option("--timings", help="Show where the time of the start went.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Serve in the background, also after this terminal is closed; returns when it serves.",
        ),
    ] = False,
    env_file: EnvFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Start the pool and its HTTP service, and serve until Ctrl-C.

    Ctrl-C (or SIGTERM) lets running operations finish, then stops what was started; a second Ctrl-C ends at once.
    On a cluster that it joins, it takes over a service whose `dspool up` has died.
    """
    out = JsonLog(True, debug) if log_format == "json" else Output(json, debug)
    flags = {
        "service.host": host,
        "service.port": port,
        "service.root_path": root_path,
        "state_dir": None if state_dir is None else str(state_dir),
        "name": name,
        "pool_size": pool_size,
        "slots_per_worker": slots,
    }
    with guarded(out):
        if log_format not in ("text", "json"):
            raise ConfigError(f"--log-format is text or json, not {log_format!r}", key="log_format")
        if detach:
            raise typer.Exit(run_detached(sys.argv[1:], run_file(config, state_dir), out))
        if env_file is not None and (taken := take_variables(env_file, os.environ)):
            out.progress("env", f"read {', '.join(taken)} from {env_file}")
        if served:
            programs.find_here()
            flags = programs.flags_for(served, config, flags)
        else:
            for one in load_pools(cli=flags, file=config):
                programs.find_configured(one.config)
        run_up(config, flags, out, address=address, ray_dashboard=ray_dashboard, timings=timings)


@app.command()
def down(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    timeout: Annotated[float, typer.Option(help="Seconds to let running operations finish.")] = 60.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Stop the service of this state directory: running operations finish first."""
    out = Output(json, debug)
    with guarded(out):
        said = run_down(run_file(config, state_dir), timeout, out)
        out.result(said, said["message"])


@app.command()
def status(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    decisions: Annotated[
        bool,
        typer.Option("--decisions", help="Also the last decisions about the size, with what led to them."),
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Show at most this many decisions.")] = 20,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the pool's health, what is wrong with it, where it runs, and its workers.

    Exit code 3 when nothing runs.
    """
    out = Output(json, debug)
    with guarded(out):
        file = run_file(config, state_dir)
        seen = overview.status(file, pool)
        text = overview.status_text(seen)
        if decisions and seen.get("status"):
            seen["decisions"] = overview.decisions(file, pool, limit)
            text += f"\n\n{overview.decisions_text(seen['decisions'])}"
        out.result(seen, text)
        if not seen["running"]:
            raise typer.Exit(EXIT_NOT_RUNNING)
        if seen["status"] is None:
            raise typer.Exit(EXIT_FAILED)


@app.command()
def sessions(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many.")] = 100,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the sessions of the pool, with the worker that holds each."""
    out = Output(json, debug)
    with guarded(out):
        found = overview.sessions(run_file(config, state_dir), pool, limit)
        out.result(found, overview.sessions_text(found))


@app.command("config")
def show_config(
    config: ConfigFile = None, state_dir: StateDir = None, json: Json = False, debug: Debug = False
) -> None:
    """Print every configuration key with its value and where it came from."""
    out = Output(json, debug)
    with guarded(out):
        rows = load_config(cli=_flags(state_dir), file=config).rows()
        as_json = {row.key: {"value": row.value, "source": row.source} for row in rows}
        out.result(as_json, out.table(("key", "value", "source"), [tuple(map(_shown, row)) for row in rows]))


@app.command()
def version(json: Json = False) -> None:
    """Print the versions that matter for a bug report."""
    found: dict[str, str] = {"python": platform.python_version()}
    for package in ("dspool", "ray", "dspy"):
        try:
            found[package] = version_of(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    Output(json).result(
        found, "\n".join(f"{name} {found[name]}" for name in ("dspool", "ray", "dspy", "python"))
    )


for commands in (
    new,
    dev,
    open,
    where,
    views,
    logs,
    failures,
    operations,
    actions,
    apply,
    upgrade,
    warm,
    deploy,
    versions,
    evaluation,
    doctor,
    checklist,
):
    commands.add_to(app)


def _flags(state_dir: Path | None) -> dict[str, Any]:
    return {"state_dir": None if state_dir is None else str(state_dir)}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else "-" if value is None else str(value)


def main() -> None:
    _in_utf8()
    sys.stdout, sys.stderr = piped(sys.stdout), piped(sys.stderr)
    interrupt.raise_it()
    app(prog_name="dspool")


def _in_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale cannot say every path: Ray takes only what UTF-8 can say."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


__all__ = ["app", "main"]
