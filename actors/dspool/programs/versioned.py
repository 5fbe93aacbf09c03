"""What a process says of the versions that it has loaded: their source, and what they were saved with."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from dspool.config import PoolConfig
from dspool.core.lifecycle.source import ImportedSource
from dspool.messages import Deployment
from dspool.programs.saved import directory_source, other_versions
from dspool.programs.sources import imported_source
from dspool.telemetry.events import emit

log = logging.getLogger(__name__)


def source_of(paths: Iterable[str], config: PoolConfig) -> ImportedSource:
    """What this process has imported around these import paths, and read from these directories."""
    modules: set[str] = set()
    digests: dict[str, str] = {}
    changed: dict[str, str] = {}
    for path in paths:
        if ":" in path and config.allows_import(path):
            modules.add(path)
        else:
            read, needed = directory_source(path)
            modules |= {f"{module}:" for module in needed if config.allows_module(module)}
            digests |= read.modules
            changed |= read.changed
    imported = imported_source(modules)
    return ImportedSource(imported.modules | digests, imported.changed | changed)


def warn_of_other_versions(d: Deployment, pool: str) -> None:
    """Tell if its state or the whole program was saved with another Python or DSPy: it may not do what it did there."""
    if why := other_versions(d.state, d.program_dir):
        log.warning("version %d of %s was saved with %s", d.version, d.program, why)
        emit(
            "program.saved_elsewhere",
            {"count": 1},
            {"pool": pool, "program": d.program, "version": d.version, "reason": f"saved with {why}"},
        )


__all__ = ["source_of", "warn_of_other_versions"]
