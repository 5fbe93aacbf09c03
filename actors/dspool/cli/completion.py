"""What the shell offers on Tab besides verbs and options: names of pools and programs, from files alone."""

from __future__ import annotations

from typing import Any

import typer

from dspool.cli.run_file import RunFile
from dspool.config import PoolConfig, load_config
from dspool.errors import PoolError


def pools(ctx: typer.Context, incomplete: str) -> list[str]:
    """The pool that runs from the state directory, and the one of the configuration."""
    config = _config(ctx)
    if config is None:
        return []
    run = RunFile(config.state_dir).living()
    names = {config.name, *([run.pool] if run is not None else [])}
    return sorted(name for name in names if name.startswith(incomplete))


def programs(ctx: typer.Context, incomplete: str) -> list[str]:
    """The programs of the configuration."""
    config = _config(ctx)
    return sorted(name for name in (config.programs if config else ()) if name.startswith(incomplete))


def _config(ctx: Any) -> PoolConfig | None:
    """Of the options that stand on the line already; None where it is refused: Tab says nothing of that."""
    given = ctx.params
    state_dir = given.get("state_dir")
    try:
        flags = {"state_dir": None if state_dir is None else str(state_dir)}
        return load_config(cli=flags, file=given.get("config")).config
    except PoolError:
        return None


__all__ = ["pools", "programs"]
