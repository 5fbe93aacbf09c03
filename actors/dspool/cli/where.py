"""`dspool where`: where everything of a service is, running or not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from dspool.cli.options import ConfigFile, Debug, Json, StateDir
from dspool.cli.output import Output, guarded
from dspool.cli.run_file import RunFile, ServiceRun
from dspool.config import Loaded, load_config
from dspool.config.base import without_secrets
from dspool.config.load import file_named_by
from dspool.store.settings import store_url
from dspool.telemetry.observation import checkpoint_file
from dspool.telemetry.operation_keeper import operations_file
from dspool.telemetry.trace_export import DIRECTORY

AUDIT_LOG = "audit.jsonl"
"""As `dspool_serve.access.audit` has it, which this package does not know."""


def add_to(app: typer.Typer) -> None:
    app.command()(where)


def where(
    config: ConfigFile = None, state_dir: StateDir = None, json: Json = False, debug: Debug = False
) -> None:
    """Show where everything of a service is: state, logs, store, sockets, Ray's session, the configuration's sources.

    Paths of a running service exist only while it runs.
    """
    out = Output(json, debug)
    with guarded(out):
        cli = {"state_dir": None if state_dir is None else str(state_dir)}
        loaded = load_config(cli=cli, file=config)
        file = config if config is not None else file_named_by(os.environ)
        run = RunFile(loaded.config.state_dir).read()
        found = places(loaded, file, run if run is not None and run.alive() else None)
        rows = [(name, _shown(value)) for name, value in found.items()]
        out.result(found, out.table(("what", "where"), rows))


def places(loaded: Loaded, file: Path | None, run: ServiceRun | None) -> dict[str, Any]:
    """The places by name, as `--json` prints them. None: there is no such thing, or not while nothing runs."""
    config = loaded.config
    state = config.state_dir.absolute()
    sources = sorted({source for source in loaded.sources.values() if source != "default"})
    temp = None if run is None or run.temp_dir is None else Path(run.temp_dir)
    session = None if temp is None else temp / "ray" / "session_latest"
    tokens, certificate = config.service.tokens_file, config.service.tls_cert
    return {
        "running": run is not None,
        "pid": None if run is None else run.pid,
        "url": None if run is None else run.url or None,
        "configuration": None if file is None else str(file.absolute()),
        "sources": sources,
        "state_dir": str(state),
        "run_file": str(RunFile(state).path),
        "store": without_secrets(store_url(config)),
        "operations": str(operations_file(config).absolute()),
        "metrics": str(checkpoint_file(config).absolute()),
        "traces": str(state / DIRECTORY),
        "audit_log": str(state / AUDIT_LOG),
        "tokens_file": None if tokens is None else str(tokens.absolute()),
        "tls_cert": None if certificate is None else str(certificate.absolute()),
        "temp_dir": None if temp is None else str(temp),
        "ray_address": None if run is None else run.ray_address or None,
        "ray_token": None if run is None else run.ray_token_path,
        "ray_session": None if session is None else str(session.resolve()),
        "logs": None if session is None else str(session.resolve() / "logs"),
        "sockets": None if session is None else str(session.resolve() / "sockets"),
        "haproxy": None if temp is None else str(temp / "h"),
    }


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "defaults"
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


__all__ = ["add_to", "places", "where"]
