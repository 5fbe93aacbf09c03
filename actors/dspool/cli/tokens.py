"""`dspool token`: make, list and revoke access tokens."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from dspool import tokens
from dspool.cli.options import ConfigFile, Json
from dspool.cli.output import Output, guarded
from dspool.config import load_config
from dspool.core.admission.access import ROLES, Role, Token
from dspool.errors import ConfigError

app = typer.Typer(
    help="Make, list and revoke access tokens of the HTTP service.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
DEFAULT_NAME = "tokens.yaml"

TokensFile = Annotated[
    Path | None,
    typer.Option("--file", help="The tokens file (else service.tokens_file of the configuration)."),
]


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Whose it is: the principal that owns its sessions.")],
    role: Annotated[str, typer.Option(help=f"One of {', '.join(ROLES)}.")] = "caller",
    days: Annotated[
        float | None,
        typer.Option(min=0.001, max=36_500, help="Days until it expires; by default it never does."),
    ] = None,
    file: TokensFile = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Make a token and print it: this is the only time it can be seen. The file keeps its hash."""
    out = Output(json)
    with guarded(out):
        text, token = tokens.issue(_file(file, config), name, _role(role), days=days)
        facts = {"token": text, **_shown(token), "file": str(_file(file, config))}
        hint = "" if _configured(config) else f"\nserve with it: DSPOOL_SERVICE__TOKENS_FILE={facts['file']}"
        out.result(facts, f"{text}\n{role} {name}, id {token.id}; its hash is in {facts['file']}{hint}")


@app.command("list")
def show(file: TokensFile = None, config: ConfigFile = None, json: Json = False) -> None:
    """List the tokens by id, name, role and expiry. Their texts are kept nowhere."""
    out = Output(json)
    with guarded(out):
        path = _file(file, config)
        kept = tokens.read(path) if path.exists() else []
        rows = [(one.id, one.name, one.role, _date(one.expires_at)) for one in kept]
        table = out.table(("id", "name", "role", "expires"), rows) if rows else f"{path} has no tokens"
        out.result({"tokens": [_shown(one) for one in kept], "file": str(path)}, table)


@app.command()
def revoke(
    which: Annotated[
        str, typer.Argument(metavar="TOKEN", help="A token's id, or a name: all tokens of that name.")
    ],
    file: TokensFile = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Remove a token. A running service follows within about a second."""
    out = Output(json)
    with guarded(out):
        gone = tokens.revoke(_file(file, config), which)
        named = ", ".join(f"{one.id} ({one.name})" for one in gone)
        out.result(
            {"revoked": [_shown(one) for one in gone]},
            f"revoked {named}; a running service follows within about a second",
        )


def _file(file: Path | None, config: Path | None) -> Path:
    if file is not None:
        return file.absolute()
    configured = _configured(config)
    return (configured or load_config(file=config).config.state_dir / DEFAULT_NAME).absolute()


def _configured(config: Path | None) -> Path | None:
    return load_config(file=config).config.service.tokens_file


def _role(text: str) -> Role:
    for role in ROLES:
        if text == role:
            return role
    raise ConfigError(f"no role {text!r}; a token has one of {', '.join(ROLES)}", key="role")


def _shown(token: Token) -> dict[str, Any]:
    return {"id": token.id, "name": token.name, "role": token.role, "expires_at": token.expires_at}


def _date(at: float | None) -> str:
    if at is None:
        return "never"
    try:
        return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="minutes")
    except (OverflowError, OSError, ValueError):
        return "later than any calendar says"


__all__ = ["app"]
