"""What others rely on, as text: routes, the OpenAPI document, metrics, events, the command line, what Python exports.

`python -m tests.interfaces` writes the files beside this one anew. A change in one of them is a change for users: it
needs a line in CHANGELOG.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import typer

import dspool
import dspool.errors

FOLDER = Path(__file__).parent


def routes() -> str:
    """Method, path and the least role of every route."""
    from dspool_console.dashboard import DASHBOARD
    from dspool_console.ray_panels import PANEL_ROUTES
    from dspool_serve.api import ROUTES

    rows = {
        f"{route.method} {route.path}  {route.role or 'open'}"
        for route in (*ROUTES, *PANEL_ROUTES, *DASHBOARD)
    }
    return _lines(sorted(rows, key=lambda row: (row.split()[1], row)))


def openapi() -> str:
    from dspool_console.dashboard import DASHBOARD
    from dspool_serve.api import ROUTES
    from dspool_serve.api.openapi import described, document

    routes = described((*ROUTES, *DASHBOARD))
    return json.dumps(document(routes, version="0"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def metrics() -> str:
    """Name, kind and labels of every exported metric."""
    from dspool.telemetry.metric_table import METRICS

    return _lines(f"{one.name} {one.kind} {' '.join(('pool', *one.labels))}" for one in METRICS)


def events() -> str:
    """Name, measurements and metadata of every event."""
    from dspool.telemetry.events import EVENTS

    return _lines(
        f"{row.name}  {' '.join(row.measurements)}  {' '.join(row.metadata)}" for row in EVENTS.values()
    )


def command_line() -> str:
    """`--help` of every verb, 100 columns wide."""
    from dspool.cli import app

    return "\n".join(_help(typer.main.get_command(app), ["dspool"]))


def results() -> str:
    """The fields of what Python and `--json` give back."""
    from dspool import messages as commands
    from dspool.core.metrics.measures import MetricsSnapshot
    from dspool.messages import Result

    shown = (
        Result,
        commands.PoolStatus,
        commands.WorkerStatus,
        commands.SessionInfo,
        commands.Deployment,
        commands.StreamEvent,
        MetricsSnapshot,
    )
    return _lines(
        f"{kind.__name__}: {' '.join(field.encode_name for field in msgspec.structs.fields(kind))}"
        for kind in shown
    )


def errors() -> str:
    """Code, status over HTTP and title of every error."""
    from dspool_serve.http.problems import TABLE

    return _lines(f"{code} {kind.status} {kind.title}" for code, kind in sorted(TABLE.items()))


def python() -> str:
    """What the packages export, and the public methods of what users hold."""
    rows = [f"dspool.{one}" for one in sorted(dspool.__all__)]
    for name in ("config", "testing"):
        rows += [f"dspool.{name}.{one}" for one in sorted(import_module(f"dspool.{name}").__all__)]
    rows += [
        f"dspool.errors.{name}"
        for name, kind in sorted(vars(dspool.errors).items())
        if isinstance(kind, type)
    ]
    held = (
        dspool.Pool,
        dspool.SessionHandle,
        dspool.BlockingPool,
        dspool.RemotePool,
        dspool.BlockingRemotePool,
    )
    for kind in held:
        rows += [f"{kind.__name__}.{one}" for one in sorted(dir(kind)) if not one.startswith("_")]
    return _lines(rows)


ALL: dict[str, Callable[[], str]] = {
    "routes.txt": routes,
    "openapi.json": openapi,
    "metrics.txt": metrics,
    "events.txt": events,
    "command_line.txt": command_line,
    "results.txt": results,
    "errors.txt": errors,
    "python.txt": python,
}


def _lines(rows: Iterable[str]) -> str:
    return "".join(f"{row}\n" for row in rows)


def _help(command: Any, path: list[str]) -> Iterator[str]:
    context = command.make_context(
        " ".join(path), [], resilient_parsing=True, terminal_width=100, max_content_width=100
    )
    yield f"$ {' '.join(path)} --help\n{command.get_help(context)}\n"
    for name, inner in getattr(command, "commands", {}).items():
        yield from _help(inner, [*path, name])
