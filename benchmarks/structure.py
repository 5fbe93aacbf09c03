"""The shape of the product's code: how much there is, import cycles, layers, long files, class names that occur twice.

    python -m benchmarks.structure [--json]

The product is all packages below the source roots of pyproject.toml. Each import counts, also under TYPE_CHECKING and
inside functions; what comes from a package's `__init__` is an import of that package. Layers are those of the first
`layers` contract of import-linter in pyproject.toml: the table is written down there and nowhere else.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grimp

from benchmarks.common import ROOT, arguments, finish, header

WEB = (".js", ".css", ".html")


@dataclass(frozen=True)
class Structure:
    lines: dict[str, int]
    """Of each Python and web file, by its path below the project."""
    cycles: list[list[str]]
    """Modules each of which imports all others of its list, directly or through others."""
    layers: dict[str, int]
    """From the top down: how many modules each has."""
    unlayered: list[str]
    upward: list[tuple[str, str]]
    """A module and one in a higher layer that it imports."""
    double_class_names: dict[str, list[str]]
    """Where each of them is defined: `path:line`. Classes inside of others are not looked at."""

    @property
    def longest_file(self) -> tuple[str, int]:
        return max(self.lines.items(), key=lambda file: file[1])

    def figures(self) -> dict[str, int]:
        return {
            "lines": sum(self.lines.values()),
            "files": sum(path.endswith(".py") for path in self.lines),
            "cycles": len(self.cycles),
            "layers": sum(map(bool, self.layers.values())),
            "longest_file": self.longest_file[1],
            "double_class_names": len(self.double_class_names),
        }


def structure(project: Path) -> Structure:
    """Of the code in `project`, whose pyproject.toml names the source roots and the layers."""
    tools = tomllib.loads((project / "pyproject.toml").read_text())["tool"]
    roots = [project / root for root in tools["hatch"]["build"]["dev-mode-dirs"]]
    files = sorted(
        path for root in roots for path in root.rglob("*") if path.suffix == ".py" or path.suffix in WEB
    )
    graph = import_graph(roots)
    places = layer_table(tools["importlinter"]["contracts"])
    layer = {module: place for module in graph.modules if (place := layer_of(module, places)) is not None}
    return Structure(
        lines={str(path.relative_to(project)): len(path.read_bytes().splitlines()) for path in files},
        cycles=cycles(graph),
        layers={
            name: sum(place == number for place in layer.values()) for number, (name, _) in enumerate(places)
        },
        unlayered=sorted(graph.modules - layer.keys()),
        upward=sorted(
            (module, imported)
            for module in layer
            for imported in graph.find_modules_directly_imported_by(module)
            if layer.get(imported, layer[module]) < layer[module]
        ),
        double_class_names=double_class_names(project, [path for path in files if path.suffix == ".py"]),
    )


def import_graph(roots: list[Path]) -> grimp.ImportGraph:
    packages = [path.parent.name for root in roots for path in sorted(root.glob("*/__init__.py"))]
    before = list(sys.path)
    sys.path[:0] = map(str, roots)
    try:
        return grimp.build_graph(*packages, cache_dir=None)
    finally:
        sys.path[:] = before


def cycles(graph: grimp.ImportGraph) -> list[list[str]]:
    found = set()
    for module in graph.modules:
        if both := graph.find_upstream_modules(module) & graph.find_downstream_modules(module):
            found.add(frozenset({module} | both))
    return sorted((sorted(cycle) for cycle in found), key=lambda cycle: (-len(cycle), cycle))


Layers = list[tuple[str, list[str]]]
"""From the top down: what a layer is called, and the modules that it is made of."""


def layer_table(contracts: list[dict[str, Any]]) -> Layers:
    table = next(contract for contract in contracts if contract["type"] == "layers")
    inside = [f"{container}." for container in table.get("containers", ())] or [""]
    names = [re.findall(r"[\w.]+", layer) for layer in table["layers"]]
    return [(", ".join(of), [prefix + name for prefix in inside for name in of]) for of in names]


def layer_of(module: str, layers: Layers) -> int | None:
    return next(
        (
            number
            for number, (_, members) in enumerate(layers)
            if any(module == member or module.startswith(f"{member}.") for member in members)
        ),
        None,
    )


def double_class_names(project: Path, files: list[Path]) -> dict[str, list[str]]:
    defined: dict[str, list[str]] = {}
    for path in files:
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.ClassDef):
                defined.setdefault(node.name, []).append(f"{path.relative_to(project)}:{node.lineno}")
    return {name: places for name, places in sorted(defined.items()) if len(places) > 1}


def table(found: Structure) -> Iterator[str]:
    """The figures, then what is behind them."""
    for name, figure in found.figures().items():
        more = f"   {found.longest_file[0]}" if name == "longest_file" else ""
        yield f"{name.replace('_', ' '):20s}{figure:8,}{more}"
    yield "layers, from the top down"
    for layer, modules in found.layers.items():
        yield f"{modules:8,}  {layer}"
    if found.unlayered:
        tops = sorted({module.split(".")[0] for module in found.unlayered})
        yield f"{len(found.unlayered):8,}  in no layer, of {', '.join(tops)}"
    for module, imported in found.upward:
        yield f"upward: {module} imports {imported}"
    for cycle in found.cycles:
        yield f"cycle of {len(cycle)}: {', '.join(cycle)}"
    for name, places in found.double_class_names.items():
        yield f"class {name}: {', '.join(places)}"


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    found = structure(ROOT)
    if not options.json:
        header("structure of the product's code")
        print("\n".join(f"  {line}" for line in table(found)))
    finish(found.figures(), as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
