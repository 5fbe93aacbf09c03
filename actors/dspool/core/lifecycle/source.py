"""Whether a deployment differs from what runs, and whether the workers can load it: pure comparisons.

A version's content is its spec, state, import path and arguments, and the source of the modules that it names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from dspool.errors import Conflict
from dspool.messages import Deployment
from dspool.messages.versioned_pickle import Message

SOURCE_DIFFERS = "source_differs"
"""The `reason` of a refusal to run a version from source that it is not made of."""
NAMED = 3
"""A message names so many modules and counts the others."""


class ImportedSource(Message, Struct, frozen=True):
    """What a process has imported of the modules around some import paths."""

    modules: dict[str, str] = {}
    """Digest of each module's file at import."""
    changed: dict[str, str] = {}
    """The file of each module that is different by now, or gone."""


def import_paths(d: Deployment) -> tuple[str, ...]:
    """All that a version names by path: the program (an import path or a directory), or the tools and the reward of its
    spec."""
    settings = d.spec.get("settings") if isinstance(d.spec, dict) else None
    paths = [d.import_path, d.program_dir]
    if isinstance(settings, dict):
        tools = settings.get("tools")
        paths += [*(tools if isinstance(tools, list) else ()), settings.get("reward")]
    return tuple(sorted({path for path in paths if isinstance(path, str)}))


def source_record(d: Deployment) -> str:
    """The record in the store that holds what a version is made of."""
    return f"source:{d.program}:{d.version}"


def differing(left: Mapping[str, str], right: Mapping[str, str]) -> list[str]:
    """The modules that both have imported, from different source. A module that only one has imported proves nothing:
    that depends on what else it runs."""
    return sorted(name for name in left.keys() & right.keys() if left[name] != right[name])


def edited_files(workers: Mapping[str, ImportedSource]) -> dict[str, str]:
    """The file of each module that is different by now from what a worker imported: new code needs new processes."""
    return {name: file for source in workers.values() for name, file in source.changed.items()}


def check_source(d: Deployment, modules: Mapping[str, str]) -> None:
    """Raises `Conflict` if a process with these modules would run version `d` from other source than it is made of."""
    if changed := differing(d.source or {}, modules):
        raise Conflict(
            f"version {d.version} of {d.program} is made of other source than there is: {_listed(changed)} differs; "
            f"deploy {d.program} for a version of its own, or bring that source back",
            program=d.program,
            version=d.version,
            reason=SOURCE_DIFFERS,
        )


def check_edited(
    current: Deployment, edited: Iterable[str], modules: Mapping[str, str], *, where: str
) -> None:
    """Raises `Conflict` if a new process has the source of `current`, which another worker saw edited."""
    source = current.source or {}
    if same := sorted(name for name in edited if name in source and modules.get(name) == source[name]):
        raise Conflict(
            f"worker {where}, which just started, has {_listed(same)} as in version {current.version} of "
            f"{current.program}, but another worker saw it edited; nothing was deployed: see that all nodes have the "
            "same files",
            program=current.program,
            reason=SOURCE_DIFFERS,
        )


def check_deployment(
    new: Deployment, current: Deployment | None, workers: Mapping[str, ImportedSource]
) -> None:
    """Raises `Conflict` if deploying `new` into these workers, whose source is unedited, would change nothing, or not
    the same in all of them."""
    first = next(iter(workers.values()), ImportedSource())
    conflicts = {name for source in workers.values() for name in differing(first.modules, source.modules)}
    if conflicts:
        raise Conflict(
            f"the workers have imported {_listed(sorted(conflicts))} from different source; nothing was deployed: "
            f"see that all nodes have the same files, and restart the pool",
            program=new.program,
            reason=SOURCE_DIFFERS,
        )
    if current is None or not same_definition(new, current):
        return
    unchanged = ", and its source is as the workers imported it" if workers else ""
    raise Conflict(
        f"version {current.version} of {current.program} already runs exactly this{unchanged}; nothing was deployed",
        program=current.program,
        version=current.version,
        reason="nothing_changed",
    )


def check_rollback(d: Deployment, workers: Mapping[str, ImportedSource]) -> None:
    """Raises `Conflict` if a worker would run version `d` from other source than it is made of."""
    changed = {name for source in workers.values() for name in differing(d.source or {}, source.modules)}
    if changed:
        raise Conflict(
            f"the workers no longer have the source that version {d.version} of {d.program} was made from: "
            f"{_listed(sorted(changed))} changed; nothing was rolled back: bring that source back first, or deploy "
            f"what there is as a new version",
            program=d.program,
            version=d.version,
            reason="source_changed",
        )


def digest_of(value: object) -> str:
    """A short digest of plain data, for people to compare; empty for nothing."""
    if not value:
        return ""
    return hashlib.blake2b(msgspec.json.encode(value, order="sorted"), digest_size=6).hexdigest()


def same_definition(new: Deployment, current: Deployment) -> bool:
    """As JSON: in Python 1, 1.0 and True are equal."""
    try:
        left, right = (
            msgspec.json.encode([d.spec, d.state, d.import_path, d.program_dir, d.kwargs], order="sorted")
            for d in (new, current)
        )
    except (TypeError, ValueError, RecursionError):
        return False  # no JSON: the store says so
    return left == right


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
