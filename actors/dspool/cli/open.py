"""`dspool open`: the dashboard of the running service, or Ray's, in the browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from dspool.cli.options import ConfigFile, Debug, Json, PoolName, StateDir
from dspool.cli.output import Output, guarded
from dspool.cli.run_file import ServiceRun
from dspool.cli.service import asks_for_token, pool_of, run_file, running
from dspool.errors import NotAllowed


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("open")(open_dashboard)


def open_dashboard(
    ray: Annotated[
        bool, typer.Option("--ray", help="Ray's own dashboard (`dspool up --ray-dashboard`).")
    ] = False,
    show: Annotated[
        bool,
        typer.Option("--print", help="Print the address and open nothing, as without a browser."),
    ] = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    pool: PoolName = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Open the dashboard of the running service in the browser, and print its address and how to log in."""
    out = Output(json, debug)
    with guarded(out):
        run = running(run_file(config, state_dir))
        facts = ray_dashboard(run) if ray else dashboard(run, pool)
        facts["opened"] = not (show or json) and opened(facts["url"])
        out.result(facts, f"{facts['url']}\n{facts['login']}")


def dashboard(run: ServiceRun, pool: str | None) -> dict[str, Any]:
    """Where the service's own is.

    Raises:
        UnknownPool: the service has no such pool. PoolNotReady: it is still starting.
    """
    with pool_of(run, pool) as served:
        if pool is not None:
            served.status()
        url = f"{run.url}/dashboard#/{quote(served.name, safe='')}"
    login = "it asks for an access token" if asks_for_token(run) else "it needs no token"
    return {"url": url, "login": login}


def ray_dashboard(run: ServiceRun) -> dict[str, Any]:
    """Where Ray's is, with the token that its page asks for.

    Raises:
        NotAllowed: this service runs without it.
    """
    if run.ray_dashboard is None:
        raise NotAllowed(
            "Ray's dashboard does not run; start the service with `dspool up --ray-dashboard`"
            if not run.joined
            else f"the service joined Ray at {run.ray_address}, which has no dashboard"
        )
    token = _token(run)
    login = (
        f"paste this token where the page asks for one: {token}"
        if token
        else "the cluster's token, if it has one"
    )
    return {"url": run.ray_dashboard, "login": login, "token": token}


def opened(url: str) -> bool:
    """Whether a browser with a window took it; one of text would take the terminal."""
    has_windows = sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    return bool(has_windows) and webbrowser.open(url)


def _token(run: ServiceRun) -> str | None:
    """Of a Ray that the service started: only its own user can read it."""
    return Path(run.ray_token_path).read_text().strip() if run.ray_token_path else None


__all__ = ["add_to", "dashboard", "opened", "ray_dashboard"]
