"""Whether a deployment differs from what runs, and whether the workers can load it: pure comparisons.

A version's content is its spec, state, import path and arguments, and the source of the modules that it names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from dspool.errors import Conflict
from dspool.messages import Deployment

NAMED = 3
"""A message names so many modules and counts the others."""


class ImportedSource(Struct, frozen=True):
    """What a process has imported of the modules around some import paths."""

    modules: dict[str, str] = {}
    """Digest of each module's file at import."""
    changed: dict[str, str] = {}
    """The file of each module that is different by now, or gone."""


def import_paths(d: Deployment) -> tuple[str, ...]:
    """All that a version names by import path: the program, or the tools and the reward of its spec."""
    settings = d.spec.get("settings") if isinstance(d.spec, dict) else None
    paths = [d.import_path]
    if isinstance(settings, dict):
        tools = settings.get("tools")
        paths += [*(tools if isinstance(tools, list) else ()), settings.get("reward")]
    return tuple(sorted({path for path in paths if isinstance(path, str)}))


def differing(left: Mapping[str, str], right: Mapping[str, str]) -> list[str]:
    """The modules that both have imported, from different source. A module that only one has imported proves nothing:
    that depends on what else it runs."""
    return sorted(name for name in left.keys() & right.keys() if left[name] != right[name])


def check_deployment(
    new: Deployment,
    current: Deployment | None,
    original: Mapping[str, str] | None,
    workers: Mapping[str, ImportedSource],
) -> None:
    """Raises `Conflict` if deploying `new` would change nothing, or would not load what its source says now.

    `original` is the source that the current version was first loaded from; `workers` is what each worker has imported.
    """
    changes = {name: file for source in workers.values() for name, file in source.changed.items()}
    if changes:
        files = [f"{name} ({file})" for name, file in sorted(changes.items())]
        raise Conflict(
            f"the source of {_listed(files)} changed since workers imported it; new code needs new processes. "
            f"Nothing was deployed: restart the pool (dspool down, dspool up), then deploy {new.program} again",
            program=new.program,
            reason="source_changed",
        )
    conflicts = {
        name
        for source in workers.values()
        for name in differing(next(iter(workers.values())).modules, source.modules)
    }
    if conflicts:
        raise Conflict(
            f"the workers have imported {_listed(sorted(conflicts))} from different source; nothing was deployed: "
            f"see that all nodes have the same files, and restart the pool",
            program=new.program,
            reason="source_differs",
        )
    if current is None or not _same(new, current):
        return
    if any(differing(original or {}, source.modules) for source in workers.values()):
        return  # this source ran under the old number after the workers restarted: now it gets its own
    unchanged = ", and its source is as the workers imported it" if workers else ""
    raise Conflict(
        f"version {current.version} of {current.program} already runs exactly this{unchanged}; nothing was deployed",
        program=current.program,
        version=current.version,
        reason="nothing_changed",
    )


def check_rollback(
    d: Deployment, original: Mapping[str, str] | None, workers: Mapping[str, ImportedSource]
) -> None:
    """Raises `Conflict` if a worker would run version `d` from other source than it was first loaded from."""
    changed = {name for source in workers.values() for name in differing(original or {}, source.modules)}
    if changed:
        raise Conflict(
            f"the workers no longer have the source that version {d.version} of {d.program} was made from: "
            f"{_listed(sorted(changed))} changed; nothing was rolled back: bring that source back and restart the pool "
            f"first, or deploy what there is as a new version",
            program=d.program,
            version=d.version,
            reason="source_changed",
        )


def _same(new: Deployment, current: Deployment) -> bool:
    """As JSON: in Python 1, 1.0 and True are equal."""
    try:
        left, right = (
            msgspec.json.encode([d.spec, d.state, d.import_path, d.kwargs], order="sorted")
            for d in (new, current)
        )
    except (TypeError, ValueError, RecursionError):
        return False  # no JSON: the store says so
    return left == right


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
