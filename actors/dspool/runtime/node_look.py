"""Whether each node of a cluster can start processes of an installation, asked before anything is changed."""

from __future__ import annotations

from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dspool.core.lifecycle.upgrades import Installation
from dspool.runtime.cluster import living_nodes
from dspool.runtime.installed import StartCommand, installation

_SILENT: Final = "it does not answer"


def installations(code: StartCommand, patience_s: float) -> dict[str, Installation | str]:
    """What `code` is on each node, or why it does not start there. Then the parent that forks is there, too."""
    look: Any = ray.remote(installation)
    asked = {
        node: look.options(
            num_cpus=0,
            max_retries=0,
            runtime_env=code.runtime_env(),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote()
        for node in living_nodes()
    }
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=patience_s)
    return {node: _answer(reference) if reference in ready else _SILENT for node, reference in asked.items()}


def _answer(reference: Any) -> Installation | str:
    try:
        found = ray.get(reference)
    except RayError as failed:
        lines = [line.strip() for line in str(failed).splitlines() if line.strip()]
        return f"{type(failed).__name__}: {lines[-1] if lines else ''}"[:300]
    return found if isinstance(found, Installation) else _SILENT


__all__ = ["installations"]
