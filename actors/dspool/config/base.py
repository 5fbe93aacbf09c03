"""What all parts of the configuration share: they are frozen and keyword-only, and refuse with `ConfigError`.

A refusal names the key, the value that came and the rule, and never shows a value that may be a secret.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn, dataclass_transform
from urllib.parse import urlsplit

from platformdirs import user_state_path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)
from pydantic_core import PydanticCustomError
from pydantic_settings.exceptions import SettingsError

from dspool.errors import ConfigError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _Metaclass
else:
    _Metaclass = type(BaseModel)  # pydantic does not export it


@dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
class ConfigMeta(_Metaclass):
    """Turns pydantic's refusal of a constructor call into a `ConfigError`.

    Here and not in `__init__`, because pydantic builds nested parts without calling their class: so only the outermost
    call translates, and it knows the whole dotted key.
    """

    def __call__(cls, *args: Any, **values: Any) -> Any:
        if args:
            # Else the first one would silently become a private option of pydantic-settings.
            raise TypeError(f"{cls.__name__} takes keyword arguments only")
        try:
            return super().__call__(**values)
        except ValidationError as refused:
            # `from None`: pydantic's own message would show the values that `refusal` hides.
            raise refusal(refused) from None
        except SettingsError as unreadable:
            raise unreadable_variable(unreadable, os.environ) from None


class OfAnyVersion:
    """A model that reads what another version of it was when it was pickled: see `messages.versioned_pickle`."""

    model_fields: ClassVar[dict[str, Any]]

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Another version may have pickled it: what only that one knows is dropped, what only this one has is as its
        default says."""
        had, fields = state["__dict__"], type(self).model_fields
        values: dict[str, Any] = {}
        for name, field in fields.items():
            if name in had:
                values[name] = had[name]
            elif not field.is_required():
                values[name] = field.get_default(call_default_factory=True, validated_data=values)
        was_set = state["__pydantic_fields_set__"] & fields.keys()
        super().__setstate__(  # type: ignore[misc]
            {**state, "__dict__": values, "__pydantic_fields_set__": was_set}
        )


class Part(OfAnyVersion, BaseModel, metaclass=ConfigMeta):
    """A group of keys that belong together."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        val_json_bytes="utf8",
    )


# --- kinds of values -------------------------------------------------------------------------------


def _no_bool(value: Any) -> Any:
    # Pydantic takes True for 1, but `pool_size: yes` in a YAML file is a mistake, not a size.
    if isinstance(value, bool):
        raise PydanticCustomError("rule", "must be a number, not true or false")
    return value


_number = BeforeValidator(_no_bool)
Count = Annotated[int, _number, Field(ge=1)]
CountOrZero = Annotated[int, _number, Field(ge=0)]
Seconds = Annotated[float, _number, Field(gt=0)]
SecondsOrZero = Annotated[float, _number, Field(ge=0)]
Amount = Annotated[float, _number, Field(gt=0)]
AmountOrZero = Annotated[float, _number, Field(ge=0)]
Share = Annotated[float, _number, Field(ge=0, le=1)]
Megabytes = Annotated[float, _number, Field(gt=0)]
Dollars = Annotated[float, _number, Field(ge=0, le=1_000_000)]
Port = Annotated[int, _number, Field(ge=0, le=65535)]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
"""For actor names, URLs and metric labels: letters, digits, `_`, `.` and `-`, at most 63."""

EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

_IDENTIFIER = "[A-Za-z_][A-Za-z0-9_]*"
# ASCII: Python reads some letters as others that only look alike.
_MODULE = rf"{_IDENTIFIER}(\.{_IDENTIFIER})*"

IMPORT_PATH = rf"^{_MODULE}:{_IDENTIFIER}$"
ImportPath = Annotated[str, Field(pattern=IMPORT_PATH)]
"""`package.module:Name`."""

ModuleName = Annotated[str, Field(pattern=rf"^{_MODULE}$")]


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        fits = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        fits = False
    if fits and (parts.username or parts.password or parts.query or parts.fragment):
        raise PydanticCustomError(
            "secret_rule",
            "must not hold a user name, a password or a query: name an environment variable in api_key_env",
        )
    if not fits or re.search(r"\s", value):
        kind = "secret_rule" if "@" in value or "?" in value else "rule"
        raise PydanticCustomError(kind, "must be a URL such as http://127.0.0.1:8080/v1")
    return value


HttpUrl = Annotated[str, AfterValidator(_http_url)]


def _network(value: str) -> str:
    try:
        network = ip_network(value)
    except ValueError:
        network = None
    if network is None or network.prefixlen == 0:
        raise PydanticCustomError(
            "rule", "must be an address or a network such as 10.0.0.7, 10.0.0.0/24 or fd00::/64, and not all"
        )
    return str(network)


Network = Annotated[str, AfterValidator(_network)]
"""IPv4 or IPv6; an address is the network that holds it alone."""


def _origin(value: str) -> str:
    parts = urlsplit(value)
    with contextlib.suppress(ValueError):
        if (
            parts.scheme in ("http", "https")
            and parts.hostname
            and value == f"{parts.scheme}://{parts.netloc}"
        ):
            is_plain = value == value.lower() and not set("@* ") & set(value)
            if is_plain and not value.isascii():
                raise PydanticCustomError(
                    "rule", "must be in ASCII, as browsers send it: https://xn--mnchen-3ya.de"
                )
            if is_plain and parts.port == {"http": 80, "https": 443}[parts.scheme]:
                raise PydanticCustomError("rule", "must be without :80 or :443, as browsers send it")
            if is_plain:
                return value
    raise PydanticCustomError("rule", "must be an origin such as https://app.example.org, without a path")


Origin = Annotated[str, AfterValidator(_origin)]
"""Scheme, host and port of a web page, as browsers send it."""

_OWN_PATHS = ("v1", "dashboard", "docs", "grafana", "healthz", "readyz", "metrics", "openapi.json", "-")
"""The first parts of the service's own paths."""


def _root_path(value: str) -> str:
    if value and not re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+", value):
        raise PydanticCustomError(
            "rule", "must be a path such as /dsp, which begins with a slash and does not end with one"
        )
    if value.split("/")[1:2] and value.split("/")[1] in _OWN_PATHS:
        raise PydanticCustomError("rule", "must not begin as the service's own paths do")
    return value


RootPath = Annotated[str, AfterValidator(_root_path)]
"""Empty, or a path without an end slash."""

_STORES = ("sqlite", "sqlite+aiosqlite", "postgresql", "postgresql+asyncpg")


def _store_url(value: str) -> str:
    if value.partition("://")[0] not in _STORES or "://" not in value:
        raise PydanticCustomError(
            "rule", f"must be a database URL that starts with one of {', '.join(_STORES)}"
        )
    return value


def without_secrets(url: str) -> str:
    """`url` with `***` in place of its password and of the values of its query, and without its fragment."""
    scheme, mark, rest = url.partition("#")[0].partition("://")
    # First: what stands in a query may hold an `@` too.
    rest, _, query = rest.partition("?")
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    names = "&".join(f"{name.partition('=')[0]}=***" for name in query.split("&")) if query else ""
    return f"{scheme}{mark}{user}{colon}{'***' if colon else ''}{at}{place}{'?' if names else ''}{names}"


def names_only(value: Any) -> Any:
    """The keys in `value`, with `***` for all that stands below them."""
    if isinstance(value, dict):
        return {str(key): names_only(inner) for key, inner in value.items()}
    return [names_only(inner) for inner in value] if isinstance(value, (list, tuple)) else "***"


StoreUrl = Annotated[str, AfterValidator(_store_url), PlainSerializer(without_secrets, when_used="json")]

FreeForm = Annotated[dict[str, Any], PlainSerializer(names_only, when_used="json"), Field(repr=False)]
"""Arguments for others' code, of which nobody here knows which are secrets: shown by their names only."""


def _in_a_known_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise PydanticCustomError(
            "rule", "is in a home directory, and the system knows none (is HOME set?); name a full path"
        ) from None


def _a_name(value: Any) -> Any:
    """The empty name would be the working directory. What is no UTF-8 goes into no file that is."""
    if value == "" or (isinstance(value, str | Path) and "\0" in str(value)):
        raise PydanticCustomError("rule", "must name a path")
    if isinstance(value, str | Path) and any("\ud800" <= one <= "\udfff" for one in str(value)):
        raise PydanticCustomError("rule", "must be a path in UTF-8")
    return value


Directory = Annotated[Path, BeforeValidator(_a_name), AfterValidator(_in_a_known_home)]
File = Directory
"""`~` is the home directory in both."""


def default_state_dir() -> Path:
    """The platform's state directory; for a user without a home one in `~`, which `Directory` refuses."""
    try:
        return user_state_path("dspool")
    except RuntimeError:
        return Path("~", ".local", "state", "dspool")


# --- refusals --------------------------------------------------------------------------------------


def refuse(key: str, value: Any, rule: str) -> NoReturn:
    """Refuse `value` of `key` from inside a validator; pydantic adds the place of the part."""
    # The rule is a parameter, not the template: it may quote a value with braces.
    raise PydanticCustomError("cross_rule", "{rule}", {"key": key, "value": printable(value), "rule": rule})


STEP_NAMES = ("import_modules", "configure_lm", "load_programs", "probe", "custom_code")
"""The warm-up steps, as `step` names them."""

_SECRETS = ("api_key_env", "api_key_file", "store_url")
"""Keys into which people paste the secret itself by mistake."""
_HIDDEN = (*_SECRETS, "extra", "kwargs")
"""Keys that may hold one."""


def refusal(refused: ValidationError) -> ConfigError:
    """One `ConfigError` for all that pydantic found. `key`, `value` and `rule` are those of the first."""
    refusals = [_entry(error) for error in refused.errors(include_url=False)]
    return config_error(refusals)


def config_error(refusals: Iterable[dict[str, Any]]) -> ConfigError:
    entries = list(refusals)
    return ConfigError("; ".join(map(_sentence, entries)), **entries[0], refusals=entries)


def unreadable_variable(unreadable: SettingsError, environ: Mapping[str, str]) -> ConfigError:
    # Pydantic names the field and not the content, so its message may be shown.
    rule = """a list is given as JSON (["a", "b"]), and so is a mapping ({"a": 1})"""
    broken = unreadable.__cause__
    if isinstance(broken, JSONDecodeError):
        for name, value in environ.items():
            if value == broken.doc and name.upper().startswith("DSPOOL_"):
                where = f"line {broken.lineno}, column {broken.colno}: {broken.msg}"
                return ConfigError(f"{name} is no JSON ({where}); {rule}", key=name, rule=rule)
    return ConfigError(f"an environment variable could not be read: {unreadable}; {rule}", rule=rule)


def _entry(error: Any) -> dict[str, Any]:
    context = error.get("ctx", {})
    parts = _dotted(error["loc"])
    rule = str(error["msg"])
    if error["type"] == "cross_rule":
        key = ".".join([*parts, context["key"]])
        if any(part in _SECRETS for part in key.split(".")):
            return {"key": key, "rule": f"{context['rule']} (the value is not shown: it may hold a secret)"}
        return {"key": key, "value": context["value"], "rule": context["rule"]}
    key = ".".join(parts)
    if error["type"] == "extra_forbidden":
        # The value of an unknown key may be a secret (`api_key: ...`): the message shows only the key.
        return {"key": key, "rule": "there is no such key"}
    if error["type"] == "secret_rule" or any(part in _HIDDEN for part in parts):
        return {"key": key, "rule": f"{rule} (the value is not shown: it may hold a secret)"}
    if error["type"] == "missing":
        return {"key": key, "rule": rule}
    if (expected := _COMPOSED.get(error["type"])) is not None:
        rule = f"must be {expected}"
        if isinstance(error["input"], (str, list, tuple)):
            # All that a variable or a section holds, perhaps a secret in the wrong place.
            return {
                "key": key,
                "rule": f"{rule}, not {'text' if isinstance(error['input'], str) else 'a list'}",
            }
    return {"key": key, "value": printable(error["input"]), "rule": rule}


_COMPOSED = {
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
}
"""By pydantic's name of the refusal: what is expected."""


def _dotted(location: tuple[Any, ...]) -> list[str]:
    """`location` without the tags that pydantic adds after a list index for the member of a union."""
    return [
        str(part)
        for before, part in zip((None, *location), location, strict=False)
        if not (isinstance(before, int) and isinstance(part, str) and part in STEP_NAMES)
    ]


def _sentence(entry: dict[str, Any]) -> str:
    value = f"={entry['value']!r}" if "value" in entry else ""
    source = f" (from {entry['source']})" if entry.get("source") else ""
    if entry.get("source") == "default":
        source = " (the default)" if value else ""
    return f"{entry['key']}{value}{source}: {entry['rule']}"


def printable(value: Any) -> Any:
    """`value` as plain JSON of bounded length, for an error that crosses processes.

    Of a mapping only the keys: a secret may stand below any of them.
    """
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, dict):
        text = f"mapping with {', '.join(map(str, value)) or 'nothing in it'}"
    elif isinstance(value, (list, tuple, set)):
        text = f"[{', '.join(repr(printable(item)) for item in value)}]"
    else:
        text = str(value) if isinstance(value, (str, Path)) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
