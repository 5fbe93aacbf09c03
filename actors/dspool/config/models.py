"""The groups of keys about language models: profiles, prices, what a request may choose, and the answer cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dspool.config.base import (
    Count,
    Dollars,
    EnvironmentName,
    File,
    FreeForm,
    HttpUrl,
    Megabytes,
    Part,
    Seconds,
    SecondsOrZero,
    refuse,
)
from dspool.config.secret_values import checked_secret, read_secret, secret_of
from dspool.errors import ConfigError


def _no_secret(extra: Any) -> Any:
    for key in extra if isinstance(extra, dict) else ():
        if str(key).lower().replace("-", "_") in _SECRETS:
            refuse(str(key), "***", "secrets do not belong here: name an environment variable in api_key_env")
    return extra


_SECRETS = frozenset({"api_key", "apikey", "key", "token", "password", "secret", "authorization", "headers"})


class LMProfile(Part):
    """A language model by name. Holds no key: `api_key_env` names its variable, or `api_key_file` its file."""

    model: str = Field(min_length=1)
    """Provider and model, such as `openai/gpt-4o-mini`."""
    endpoint: HttpUrl | None = None
    """Base URL, when it is not the provider's own."""
    api_key_env: EnvironmentName | None = None
    """Name of the environment variable that holds the key, on every node that runs workers. Where it is not set,
    `NAME_FILE` may name a file that holds the key."""
    api_key_file: File | None = None
    """File that holds the key, such as `/run/secrets/openai`, on every node that runs workers; by absolute path."""
    engine: Literal["auto", "lm15", "litellm", "offline"] = "auto"
    """`auto` is lm15 where it knows the provider. litellm costs 141 MB and seconds a worker."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """null is the back end's own."""
    max_tokens: Count | None = None
    """Longest answer; null is the back end's own."""
    timeout_s: Seconds | None = None
    """For one call of the back end; null is what is left of the operation's deadline."""
    extra: Annotated[FreeForm, BeforeValidator(_no_secret)] = Field(default={})
    """Further arguments for `dspy.LM`. No output shows their values."""
    max_rate_limit_wait_s: SecondsOrZero = 10.0
    """Longest that one call waits in all before it is tried again, after a 429, a 5xx or a connection that broke off;
    beyond, or after `retry.attempts` tries, the caller gets the error. 0: no second try."""

    @model_validator(mode="after")
    def _one_key(self) -> LMProfile:
        if self.api_key_file is not None:
            if self.api_key_env is not None:
                refuse(
                    "api_key_file", str(self.api_key_file), "is given instead of api_key_env, not beside it"
                )
            if not self.api_key_file.is_absolute():
                refuse("api_key_file", str(self.api_key_file), "must be an absolute path")
        return self

    def api_key(self, environ: Mapping[str, str]) -> str | None:
        """The key, from where the profile says it is; None where it says nothing.

        Raises:
            ConfigError: it is not there, or no header takes it. `key` names the variable or file; no value is shown.
        """
        if self.api_key_file is not None:
            path = str(self.api_key_file)
            return checked_secret(read_secret(self.api_key_file, "api_key_file"), path)
        if (name := self.api_key_env) is None:
            return None
        if (key := secret_of(environ, name)) is None:
            raise ConfigError(f"the environment variable {name} is not set", key=name, rule="set")
        return key


class ModelPrice(Part):
    """What a model's tokens cost: US dollars a million (`mtok`)."""

    input_usd_per_mtok: Dollars
    """Of the prompt."""
    output_usd_per_mtok: Dollars
    """Of the answer."""
    cached_input_usd_per_mtok: Dollars | None = None
    """Of what the provider's own prompt cache had; null is as the rest of the prompt."""
    cache_write_usd_per_mtok: Dollars | None = None
    """Of what the provider puts into its prompt cache; null is as the rest of the prompt."""
    reasoning_usd_per_mtok: Dollars | None = None
    """Of what the model thought before its answer; null is as the answer."""


_Setting = Literal[
    "*",
    "temperature",
    "top_p",
    "max_tokens",
    "rollout_id",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "stop",
]


class RequestLM(Part):
    """What a request may choose with `lm`, whoever may run the program; `true` is everything, `false` nothing."""

    profiles: tuple[str, ...] = ()
    """LM profiles by name; `*` is any."""
    settings: tuple[_Setting, ...] = ()
    """`temperature`, `top_p`, `max_tokens`, `rollout_id`, `seed`, `presence_penalty`, `frequency_penalty`, `stop`; `*`
    is any."""

    @model_validator(mode="before")
    @classmethod
    def _all_or_nothing(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {"profiles": ("*",), "settings": ("*",)} if value else {}
        return value


class CacheConfig(Part):
    """The answers of models that all workers of a pool share; `true` is `scope: principal`, `false` is `scope: off`."""

    scope: Literal["off", "principal", "pool"] = "off"
    """Whose answers a caller may get: `principal` is those to the same principal (without one, the same session, or any
    caller without both); `pool` is those to anybody."""
    ttl_s: Seconds = 3600.0
    """How long an answer is kept."""
    max_mb: Megabytes = 64.0
    """Memory for the answers of a pool. The ones that were used longest ago go first."""

    @model_validator(mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {"scope": "principal" if value else "off"}
        if isinstance(value, dict) and value and "scope" not in value:
            refuse("scope", None, "says whose answers a caller may get: principal or pool")
        return value

    def __bool__(self) -> bool:
        return self.scope != "off"
