"""In what two versions of a pool program differ: instructions, demonstrations, model, source, arguments. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final, Literal

from msgspec import Struct

from dspool.messages import JSON, Deployment
from dspool.messages.versioned_pickle import Message

LONGEST: Final = 4000
"""Characters of a value."""
MOST: Final = 200
HIDDEN: Final = "(not shown)"
_SECRET: Final = re.compile(r"key|token|secret|password|authorization|credential", re.IGNORECASE)
_DEMOS: Final = ("demos", "traces", "train")

Part = Literal["program", "instructions", "demos", "fields", "model", "arguments", "settings", "source"]


class VersionDifference(Message, Struct, frozen=True):
    """One place where two versions are not the same; None: it is not there."""

    part: Part
    where: str
    """The predictor, module or setting."""
    before: str | None
    after: str | None


def differences(old: Deployment, new: Deployment) -> list[VersionDifference]:
    """The first `MOST` of them, by part; values cut at `LONGEST`, and none of what is named like a secret."""
    before, after = dict(_leaves_of(old)), dict(_leaves_of(new))
    names = [*before, *(name for name in after if name not in before)]
    found = [
        VersionDifference(
            part, where, _text(where, before.get((part, where))), _text(where, after.get((part, where)))
        )
        for part, where in names
        if before.get((part, where)) != after.get((part, where))
    ]
    return sorted(found, key=lambda one: _ORDER.index(one.part))[:MOST]


_ORDER: Final[tuple[Part, ...]] = (
    "program", "instructions", "demos", "fields", "model", "arguments", "settings", "source",
)  # fmt: skip


def _leaves_of(d: Deployment) -> Iterator[tuple[tuple[Part, str], JSON]]:
    if d.import_path is not None:
        yield ("program", "import path"), d.import_path
    if d.program_dir is not None:
        yield ("program", "directory"), d.program_dir
    for name, value in d.kwargs.items():
        yield ("arguments", name), value
    for module, digest in (d.source or {}).items():
        yield ("source", module), digest[:12]
    yield from _leaves((), d.spec)
    state = {name: value for name, value in (d.state or {}).items() if name != "metadata"}
    yield from _leaves((), state)


def _leaves(path: tuple[str, ...], value: JSON) -> Iterator[tuple[tuple[Part, str], JSON]]:
    """Whole demonstrations, fields and models; of everything else each value by itself."""
    last = path[-1] if path else ""
    where = ".".join(path[:-1])
    if last in _DEMOS:
        if value:
            yield ("demos", f"{where} {last}" if last != "demos" else where or "program"), value
    elif last == "instructions":
        yield ("instructions", where or "program"), value
    elif last in ("lm", "adapter") or "lm" in path:
        if value is not None:
            yield from _plain("model", ".".join(path), value)
    elif last in ("fields", "inputs", "outputs") or (last == "signature" and not isinstance(value, dict)):
        yield ("fields", ".".join(path)), value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves((*path, str(name)), inner)
    elif path:
        yield ("settings", ".".join(path)), value


def _plain(part: Part, where: str, value: JSON) -> Iterator[tuple[tuple[Part, str], JSON]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _plain(part, f"{where}.{name}", inner)
    else:
        yield (part, where), value


def _text(where: str, value: JSON) -> str | None:
    if value is None:
        return None
    if _SECRET.search(where.rpartition(".")[2]) and isinstance(value, str):
        return HIDDEN
    text = value if isinstance(value, str) else json.dumps(_shown(value), ensure_ascii=False, indent=1)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _shown(value: JSON) -> JSON:
    """Without what is named like a secret, however deep."""
    if isinstance(value, dict):
        return {
            name: HIDDEN if _SECRET.search(str(name)) and isinstance(inner, str) else _shown(inner)
            for name, inner in value.items()
        }
    return [_shown(one) for one in value] if isinstance(value, list) else value
