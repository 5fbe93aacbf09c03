"""`dspool store`: back up, restore, migrate and check the database of the sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from dspool.cli.options import ConfigFile, Debug, Json, StateDir
from dspool.cli.output import EXIT_FAILED, Output, guarded
from dspool.config import PoolConfig, load_config

T = TypeVar("T")

app = typer.Typer(
    help="Back up, restore, migrate and check the database of the sessions.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Replace = Annotated[
    bool, typer.Option("--replace", help="Also where there are rows already: those are gone then.")
]


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write all sessions, versions and kept answers, as they are at this moment, into a file. Pools go on meanwhile.

    Exit code 1 when it failed, 2 when the file exists or there is no store.
    """
    from dspool.store import copies  # SQLAlchemy is a third of what the command line would import

    out = Output(json, debug)
    with guarded(out):
        _show(out, "backed up", _run(copies.backup(_url(config, state_dir), file.absolute())))


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `dspool store backup` wrote.")],
    replace: Replace = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Put what a backup has into the store of the configuration, all or nothing. No pool of it may be served.

    Exit code 1 when it failed and the store is as before; 2 when it is refused: a pool is served, there are rows
    already, or the backup or the store is of a newer dspool.
    """
    from dspool.store import copies

    out = Output(json, debug)
    with guarded(out):
        work = copies.restore(file.absolute(), _url(config, state_dir), replace=replace)
        _show(out, "restored", _run(work))


@app.command()
def migrate(
    to: Annotated[str, typer.Option("--to", help="The database to go to, as in store_url.")],
    replace: Replace = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy the store of the configuration to another database: from SQLite to PostgreSQL or back. It stays as it is.

    Then set store_url. Exit code 1 when it failed, 2 when it is refused: a pool of either is served, or there are rows
    already.
    """
    from dspool.store import copies

    out = Output(json, debug)
    with guarded(out):
        _show(out, "migrated", _run(copies.move(_url(config, state_dir), to, replace=replace)))


@app.command()
def check(
    config: ConfigFile = None,
    state_dir: StateDir = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check the store: its file or server, its schema, and what must hold between its rows. Pools go on meanwhile.

    Exit code 1 when something is not in order, 2 when there is no store.
    """
    from dspool.store import checks

    out = Output(json, debug)
    with guarded(out):
        report = _run(checks.check(_url(config, state_dir)))
        rows = [("ok" if one.ok else "FAIL", one.check, one.found) for one in report.checks]
        served = [f"pool {pool} is served by {server}" for pool, server in report.served.items()]
        lines = [f"{report.store} (identity {report.identity or 'none'})", *served]
        out.result(
            msgspec.to_builtins(report),
            "\n".join(lines) + "\n" + out.table(("", "check", "found"), rows),
        )
        if not report.ok:
            raise typer.Exit(EXIT_FAILED)


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _url(config: Path | None, state_dir: Path | None) -> str:
    cli = {"state_dir": None if state_dir is None else str(state_dir)}
    loaded: PoolConfig = load_config(cli=cli, file=config).config
    return loaded.store_url or f"sqlite:///{loaded.state_dir / 'sessions.db'}"


def _show(out: Output, done: str, copied: Any) -> None:
    rows = ", ".join(f"{number} {name}" for name, number in copied.rows.items() if number) or "no rows"
    text = f"{done} {copied.source} to {copied.target} in {copied.seconds:g} s: {rows}"
    out.result(msgspec.to_builtins(copied), text, whole_lines=True)


__all__ = ["app"]
