"""Which generator fills which block: a page has `<!-- begin: generated NAME -->`, the text, and the same with `end`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from docs._generators import (
    causes,
    commands,
    corrections,
    errors,
    events,
    limits,
    metrics,
    routes,
    schemas,
    settings,
)

DOCS: Final = Path(__file__).parents[1]
BLOCKS: Final[dict[str, Callable[[], str]]] = {
    "settings": settings.table,
    "variables": settings.other_variables,
    "corrections": corrections.switchable,
    "reliances": corrections.reliances,
    "commands": commands.help_texts,
    "limits": limits.table,
    "routes": routes.table,
    "route details": routes.details,
    "common problems": routes.common_problems,
    "types": schemas.types,
    "metrics": metrics.table,
    "alerts": metrics.alerts_table,
    "pool events": events.of_the_pool,
    "process events": events.of_a_process,
    "operation metadata": events.operation_metadata,
    "error tree": errors.tree,
    "errors": errors.table,
    "causes": causes.table,
}
_BLOCK = re.compile(
    r"(?P<begin><!-- begin: generated (?P<name>[a-z ]+) -->\n).*?(?P<end><!-- end: generated (?P=name) -->\n)",
    re.DOTALL,
)


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def blocks_in(text: str) -> list[str]:
    """The names of the generated blocks of a page."""
    return [found["name"] for found in _BLOCK.finditer(text)]


def filled(text: str) -> str:
    """`text` with its generated blocks made anew."""
    return _BLOCK.sub(lambda found: found["begin"] + BLOCKS[found["name"]]() + found["end"], text)
