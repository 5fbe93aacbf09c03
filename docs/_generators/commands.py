"""What `dspool VERB --help` prints, of every verb."""

from __future__ import annotations

from collections.abc import Iterator

import click
import typer

from dspool.cli import app

_WIDTH = 90


def help_texts() -> str:
    root = typer.main.get_command(app)
    return "".join(
        f"## {name}\n```text\n{context.get_help().rstrip()}\n```\n\n"
        for name, context in _verbs(root, "dspool")
    )


def _verbs(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[tuple[str, click.Context]]:
    """Each verb with the context that its help is written in; a group's verbs after the group."""
    settings = {**command.context_settings, "terminal_width": _WIDTH, "max_content_width": _WIDTH}
    context = command.context_class(command, info_name=name.split()[-1], parent=parent, **settings)
    yield name, context
    for verb, inner in getattr(command, "commands", {}).items():
        yield from _verbs(inner, f"{name} {verb}", context)
