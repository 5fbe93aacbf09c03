"""Two configurations of a service compared, setting by setting: what changes, and what has to happen for it. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

from dspool.core.lifecycle.setting_rules import PARTS, REFUSED, Part

if TYPE_CHECKING:
    from dspool.config import PoolConfig

How = Literal["in place", "new workers", "new ingress", "new workers and ingress", "refused"]
Deed = Literal["add", "change", "remove", "keep"]

_HIDDEN: Final = frozenset({"store_url"})
"""Settings whose values may hold a secret: only that they differ is shown."""
_GROUPS_SHOWN: Final = frozenset({"programs", "lm_profiles"})
"""Dicts of groups of which only the names of the entries that differ are shown: their arguments may be secret."""


class SettingChange(Struct, frozen=True, kw_only=True):
    """One setting that differs."""

    setting: str
    before: Any
    after: Any
    how: How
    why: str = ""
    """Why it is refused."""


class PoolChange(Struct, frozen=True, kw_only=True):
    """What happens to one pool."""

    pool: str
    deed: Deed
    settings: tuple[SettingChange, ...] = ()
    parts: tuple[Part, ...] = ()
    """Who has to hear of it."""

    @property
    def refused(self) -> list[SettingChange]:
        return [one for one in self.settings if one.how == "refused"]


def changes(running: Mapping[str, PoolConfig], wanted: Mapping[str, PoolConfig]) -> list[PoolChange]:
    """What turns the pools that run into those that are wanted, pool by pool: first what is there, then what is new."""
    found = []
    for name, before in running.items():
        if name not in wanted:
            found.append(PoolChange(pool=name, deed="remove"))
            continue
        settings = tuple(differences(before, wanted[name]))
        parts = {part for one in settings for part in PARTS.get(one.setting, ())}
        found.append(
            PoolChange(
                pool=name,
                deed="change" if settings else "keep",
                settings=settings,
                parts=tuple(sorted(parts)),
            )
        )
    return found + [PoolChange(pool=name, deed="add") for name in wanted if name not in running]


def differences(before: PoolConfig, after: PoolConfig) -> Iterator[SettingChange]:
    """The settings in which they differ, in the order of the model."""
    old, new = dict(settings_of(before)), dict(settings_of(after))
    for setting in (one for one in old if old[one] != new[one]):
        was, is_to_be = shown(setting, old[setting], new[setting])
        yield SettingChange(
            setting=setting, before=was, after=is_to_be, how=how(setting), why=REFUSED.get(setting, "")
        )


def how(setting: str) -> How:
    if setting in REFUSED:
        return "refused"
    parts = PARTS[setting]
    if "workers" in parts:
        return "new workers and ingress" if "ingress" in parts else "new workers"
    return "new ingress" if "ingress" in parts else "in place"


def settings_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted settings and their values as they are. A dict of groups is one setting."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if hasattr(type(value), "model_fields"):
            yield from settings_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def shown(setting: str, before: Any, after: Any) -> tuple[Any, Any]:
    """Both values as they may be printed."""
    if setting in _HIDDEN:
        return ("***" if before is not None else None), ("***" if after is not None else None)
    if isinstance(before, dict) and isinstance(after, dict):
        differ = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        was, becomes = (
            {name: _entry(setting, one[name]) for name in one if name in differ} for one in (before, after)
        )
        return was, becomes
    return _plain(before), _plain(after)


def _entry(setting: str, value: Any) -> Any:
    if setting not in _GROUPS_SHOWN:
        return _plain(value)
    # Told apart by a mark; what stands in it may be a secret.
    return f"{type(value).__name__} {digest('shown', repr(dict(value)))[:6]}"


def _plain(value: Any) -> Any:
    if hasattr(type(value), "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def worker_settings(config: PoolConfig, key: str, code: str = "") -> str:
    """A mark of all settings that workers have from their start: one with another mark is to be replaced.

    `key` is a secret of the pool: nobody else can try what a setting may be. `code` says what they run, where an
    upgrade chose that.
    """
    of_workers = [
        (setting, _whole(value))
        for setting, value in settings_of(config)
        if "workers" in PARTS.get(setting, ())
    ]
    return digest(key, repr(of_workers) + code)


def _whole(value: Any) -> Any:
    """With what a group does not show of itself, because it may be secret: that may be all that differs."""
    if hasattr(type(value), "model_fields"):
        return type(value).__name__, [(name, _whole(one)) for name, one in dict(value).items()]
    if isinstance(value, dict):
        return [(name, _whole(one)) for name, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [_whole(one) for one in value]
    return repr(value)


def ingress_mark(configs: Sequence[PoolConfig]) -> str:
    """A mark of all that an ingress process has from its start."""
    of_ingress = [
        (setting, repr(value))
        for config in configs
        for setting, value in settings_of(config)
        if "ingress" in PARTS.get(setting, ()) or setting == "name"
    ]
    return digest("ingress", repr(of_ingress))


def digest(key: str, text: str) -> str:
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()[:12]


def text_of(plan: list[PoolChange]) -> str:
    """The changes for people, one setting a line."""
    lines = []
    for change in plan:
        if change.deed in ("add", "remove"):
            sign, says = ("+", "new") if change.deed == "add" else ("-", "ends: its operations finish first")
            lines.append(f"{sign} pool {change.pool}: {says}")
        elif change.deed == "change":
            lines.append(f"~ pool {change.pool}")
            for one in change.settings:
                why = f": {one.why}" if one.why else ""
                lines.append(f"    {one.setting}: {one.before} -> {one.after}  ({one.how}{why})")
    return "\n".join(lines) or "nothing differs"


__all__ = [
    "PoolChange",
    "SettingChange",
    "changes",
    "differences",
    "how",
    "ingress_mark",
    "settings_of",
    "text_of",
    "worker_settings",
]
