"""Merges the sources of a configuration, and knows for every key where its value came from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from pydantic import BaseModel
from pydantic_settings.exceptions import SettingsError

from dspool.config.base import config_error, unreadable_variable
from dspool.config.environment import PREFIX, Environment, environment
from dspool.config.pool import DEFAULT_PROGRAMS, PoolConfig
from dspool.config.secret_values import FILE_SUFFIX
from dspool.errors import ConfigError


class Row(NamedTuple):
    """One line of `dspool config`: a dotted key, its value as plain JSON (secrets masked), its source."""

    key: str
    value: Any
    source: str


class Loaded(NamedTuple):
    config: PoolConfig
    sources: dict[str, str]
    """By dotted key: "code", "cli", "env:DSPOOL_X", "file:PATH" or "default"."""

    def rows(self) -> list[Row]:
        """Every key with its value and source, in the order of the model."""
        return [Row(key, value, self.sources[key]) for key, value in flat(self.config)]


def load_config(
    *,
    code: dict[str, Any] | None = None,
    cli: dict[str, Any] | None = None,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    pool: str | None = None,
) -> Loaded:
    """The configuration from all sources: `code`, `cli`, `DSPOOL_*`, YAML file, default. The first that has a key wins.

    `code` and `cli` take nested or dotted keys (`{"warmup.strategy": "staged"}`); None in `cli` means that the flag
    is absent. `file` None is the one that `DSPOOL_CONFIG` names, if any. Sources merge key by key, so a file may set
    one LM profile and a variable one field of it; lists do not merge. If no source has programs, the pool has `qa`.
    Of a file with several `pools` it is the one called `pool`, by default the first.

    Raises:
        ConfigError: the refused values, each with its source.
    """
    environ = os.environ if environ is None else environ
    with environment(environ):
        path, sections = _sections(file, environ)
        if pool is not None and pool not in sections and None not in sections:
            known = ", ".join(str(name) for name in sections)
            raise ConfigError(
                f"{path}: there is no pool {pool!r}; there is: {known}", key="pools", value=pool
            )
        name = pool if pool in sections else next(iter(sections))
        return _load(code or {}, cli or {}, environ, path, name, sections[name])


def load_pools(
    *,
    code: dict[str, Any] | None = None,
    cli: dict[str, Any] | None = None,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[Loaded]:
    """As `load_config`, of all pools of the file, in its order.

    Raises:
        ConfigError: the refused values, each with its source.
    """
    environ = os.environ if environ is None else environ
    with environment(environ):
        path, sections = _sections(file, environ)
        return [
            _load(code or {}, cli or {}, environ, path, name, section) for name, section in sections.items()
        ]


def _sections(
    file: Path | None, environ: Mapping[str, str]
) -> tuple[Path | None, dict[str | None, dict[str, Any]]]:
    path = file if file is not None else file_named_by(environ)
    return path, sections_of({} if path is None else _read(path))


def sections_of(document: dict[str, Any]) -> dict[str | None, dict[str, Any]]:
    """What a file says of each pool, by its name; of one whose file has no `pools`, all that it says, by None.

    What stands beside `pools` holds for all of them; a pool's own section counts more.

    Raises:
        ConfigError: `pools` is no mapping of sections, or one says what can only stand once.
    """
    if "pools" not in document:
        return {None: document}
    pools, shared = document["pools"], {key: value for key, value in document.items() if key != "pools"}
    if not isinstance(pools, dict) or not pools:
        raise ConfigError("pools: must be a mapping of names to the settings of each", key="pools")
    if "name" in shared:
        raise ConfigError("name: pools have their names in `pools`", key="name")
    found: dict[str | None, dict[str, Any]] = {}
    for name, section in pools.items():
        section = {} if section is None else section
        if not isinstance(section, dict):
            raise ConfigError(f"pools.{name}: must be a mapping of settings", key=f"pools.{name}")
        for key in sorted(_OF_SERVICE & section.keys()):
            rule = "is for the service with all its pools: it stands beside `pools`"
            raise ConfigError(f"pools.{name}.{key}: {rule}", key=f"pools.{name}.{key}", rule=rule)
        found[str(name)] = _merge(shared, section)
    return found


_OF_SERVICE = frozenset({"name", "service", "state_dir"})


def _load(
    code: dict[str, Any],
    cli: dict[str, Any],
    environ: Mapping[str, str],
    path: Path | None,
    name: str | None,
    section: dict[str, Any],
) -> Loaded:
    """One pool. In a file with several its name is that of its section, whatever the environment says."""
    if name is not None:
        code, cli = {**code, "name": name}, {key: value for key, value in cli.items() if key != "name"}
    with environment(environ):
        layers = [
            ("code", _nested(code)),
            ("cli", _nested({key: value for key, value in cli.items() if value is not None})),
            ("env", _environment_layer(environ)),
        ]
        if path is not None:
            layers.append((f"file:{path}", section))
        merged: dict[str, Any] = {}
        for _, layer in reversed(layers):
            merged = _merge(merged, layer)
        if "programs" not in merged:
            merged["programs"] = dict(DEFAULT_PROGRAMS)
        try:
            config = PoolConfig(**merged)
        except ConfigError as refused:
            raise _with_sources(refused, layers, environ) from None
    return Loaded(config, {key: _source(key, layers, environ) for key, _ in flat(config)})


def flat(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain JSON values. Free dicts (a spec, probe inputs) and lists are one value."""
    plain = config.model_dump(mode="json")
    for name in type(config).model_fields:
        key, value = f"{prefix}{name}", getattr(config, name)
        if isinstance(value, BaseModel):
            yield from flat(value, f"{key}.")
        elif (
            isinstance(value, dict) and value and all(isinstance(part, BaseModel) for part in value.values())
        ):
            for entry, inner in value.items():
                yield from flat(inner, f"{key}.{entry}.")
        else:
            yield key, plain[name]


# --- layers ----------------------------------------------------------------------------------------


def _environment_layer(environ: Mapping[str, str]) -> dict[str, Any]:
    try:
        return Environment(PoolConfig)()
    except SettingsError as unreadable:
        raise unreadable_variable(unreadable, environ) from None
    except RecursionError:
        raise ConfigError(
            "a variable DSPOOL_... nests too deep", key="environment", rule="less deep"
        ) from None


def file_named_by(environ: Mapping[str, str]) -> Path | None:
    if not (name := environ.get("DSPOOL_CONFIG")):
        return None
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"DSPOOL_CONFIG={name}: the system knows no such home directory; name a full path",
            key="file",
            value=name,
            rule="a path",
        ) from None


def _read(path: Path) -> dict[str, Any]:
    def refused(said: str, rule: str = "one YAML mapping") -> ConfigError:
        return ConfigError(said, key="file", value=str(path), rule=rule)

    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError) as unreadable:
        why = unreadable.strerror if isinstance(unreadable, OSError) else "it is no text in UTF-8"
        raise refused(f"cannot read the configuration file {path}: {why}", "readable") from unreadable
    except (ValueError, RecursionError):
        # Of a date that there is none of, a number of too many digits, or lists within lists without an end.
        raise refused(
            f"{path}: a value in it cannot be read (a date or number that there is none of, or too deep)"
        ) from None
    except yaml.YAMLError as broken:
        mark = getattr(broken, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # The YAML error itself quotes the line, which may hold a secret.
        raise refused(f"{path}{where}: {getattr(broken, 'problem', None) or 'not YAML'}") from None
    if document is None:
        return {}
    if _is_too_much(document):
        raise refused(
            f"{path} holds too much: with its aliases more than {MOST_VALUES:,} values, or a value within itself",
            "fewer values",
        )
    if not isinstance(document, dict):
        raise refused(f"{path}: the file must be one mapping of keys to values", "mapping")
    return document


MOST_VALUES: Final = 200_000
_TEXTS: Final = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


def _is_too_much(document: Any) -> bool:
    values, pending = 0, [document]
    while pending:
        part = pending.pop()
        values += 1
        if values > MOST_VALUES:
            return True
        if isinstance(part, dict):
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return False


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML readers silently take the last, and one that is no
    text: `on`, `no` and `010` are none."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key_node.tag not in _TEXTS:
                problem = f"the key {key_node.value[:80]!r} is no text in YAML: put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key_node.value in keys and key_node.value != "<<":
                problem = f"the key {key_node.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            keys.add(key_node.value)
        return super().construct_mapping(node, deep)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with dotted keys as nested dicts, and models as dicts of what is set in them, for `_merge`."""
    nested: dict[str, Any] = {}
    for dotted, value in values.items():
        if isinstance(value, BaseModel):
            value = value.model_dump(exclude_unset=True)
        elif isinstance(value, dict):
            value = {
                key: part.model_dump(exclude_unset=True) if isinstance(part, BaseModel) else part
                for key, part in value.items()
            }
        for name in reversed(dotted.split(".")):
            value = {name: value}
        nested = _merge(nested, value)
    return nested


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


# --- where a value came from -----------------------------------------------------------------------


def _source(key: str, layers: list[tuple[str, dict[str, Any]]], environ: Mapping[str, str]) -> str:
    for source, layer in layers:
        if _holds(layer, key.split(".")):
            return f"env:{_variable(key, environ)}" if source == "env" else source
    return "default"


def _holds(layer: Any, path: list[str]) -> bool:
    for name in path:
        if not isinstance(layer, dict):
            # A list or a bad scalar stands where the path goes on: this layer set all below it.
            return True
        if name not in layer:
            return False
        layer = layer[name]
    return True


def _variable(key: str, environ: Mapping[str, str]) -> str:
    """The variable that set `key`: the one with the longest name that begins it."""
    by_upper = {name.upper(): name for name in environ}
    path = key.upper().split(".")
    for length in range(len(path), 0, -1):
        name = PREFIX + "__".join(path[:length])
        for said in (name, name + FILE_SUFFIX):
            if said in by_upper:
                return by_upper[said]
    return PREFIX + path[0]


def _with_sources(
    refused: ConfigError, layers: list[tuple[str, dict[str, Any]]], environ: Mapping[str, str]
) -> ConfigError:
    refusals = refused.details.get("refusals")
    if not refusals:
        return refused
    return config_error({**entry, "source": _source(entry["key"], layers, environ)} for entry in refusals)
