"""`DSPOOL_*` variables as a source of the configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_settings import EnvSettingsSource

from dspool.config.base import config_error
from dspool.config.links import is_service_link, say_ignored
from dspool.config.secret_values import checked_secret, said_by, text_of

PREFIX = "DSPOOL_"
STORE_URL = "DSPOOL_STORE_URL"

OTHER_VARIABLES = {
    "DSPOOL_CONFIG": "path of the YAML file, read when no other is named",
    "DSPOOL_CORRECTIONS": "which corrections of other libraries are made: `all` (default), `none`, names with commas "
    "between, or each with a `-` before it to leave it out",
    "DSPOOL_STORE_URL_FILE": "file that holds what `DSPOOL_STORE_URL` would",
    "DSPOOL_TOKEN": "the access token that clients and the commands present",
    "DSPOOL_TOKEN_FILE": "file that holds what `DSPOOL_TOKEN` would",
    "DSPOOL_TOKENS": "access tokens of the service as JSON, beside or instead of `service.tokens_file`",
    "DSPOOL_TOKENS_FILE": "file that holds what `DSPOOL_TOKENS` would, read at the start",
    "DSPOOL_TEST_POSTGRES_URL": "PostgreSQL server that this project's own tests may use",
}
"""`DSPOOL_` variables that are not keys. `Environment` refuses any other unknown one: it is a misspelt key."""

_environ: ContextVar[Mapping[str, str] | None] = ContextVar("dspool_environ", default=None)


@contextmanager
def environment(environ: Mapping[str, str]) -> Iterator[None]:
    """Inside this block, read `DSPOOL_*` from `environ` and not from the process."""
    token = _environ.set(environ)
    try:
        yield
    finally:
        _environ.reset(token)


class Environment(EnvSettingsSource):
    """`DSPOOL_*` variables as one layer. Refuses an unknown one, but for those that an orchestrator sets."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        environ = _environ.get()
        if environ is None:
            environ = os.environ
        variables = {name: value for name, value in environ.items() if name.upper().startswith(PREFIX)}
        keys = {f"{PREFIX}{key}".upper() for key in self.settings_cls.model_fields} | set(OTHER_VARIABLES)
        others = {
            name: value
            for name, value in variables.items()
            if name.upper().split("__")[0] not in keys
            or not self._has_part(name)
            # Docker's `--link web:dspool` sets DSPOOL_NAME=/web/dspool, which is no name of a pool.
            or ("__" not in name and is_service_link(name, value))
        }
        links = frozenset(name for name, value in others.items() if is_service_link(name, value))
        if unknown := sorted(others.keys() - links):
            raise config_error(
                {"key": name, "rule": "there is no such key for this variable"} for name in unknown
            )
        if links:
            say_ignored(links)
        taken = {name.lower(): value for name, value in variables.items() if name not in links}
        # A path may hold a blank, a password none.
        if (url := text_of(environ, STORE_URL)) is not None:
            is_path, source = url.startswith("sqlite"), said_by(environ, STORE_URL)
            taken[STORE_URL.lower()] = url if is_path else checked_secret(url, source, for_header=False)
        return taken

    def _has_part(self, name: str) -> bool:
        """Whether the setting that the variable begins with has parts, if the variable names one."""
        key, mark, _ = name[len(PREFIX) :].lower().partition("__")
        field = self.settings_cls.model_fields.get(key)
        return not mark or field is None or _is_composed(field.annotation)


def _is_composed(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, (BaseModel, dict)):
        return True
    return get_origin(annotation) is dict or any(map(_is_composed, get_args(annotation)))


__all__ = ["OTHER_VARIABLES", "PREFIX", "Environment", "environment"]
