"""What an import path names, read from the source without running it: so that a typing error costs no start of Ray."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from dspool.errors import ConfigError


def check_source(path: str) -> None:
    """Refuse `package.module:Name` where the source shows that it is no program.

    What only running it would show passes: a worker says it.

    Raises:
        ConfigError: no such module, a syntax error, no such name, or something that cannot be a program.
    """
    module, _, name = path.partition(":")
    tree = _tree(module, path)
    if tree is None:
        return
    bound, is_open = _bound(tree)
    if name not in bound:
        if not is_open:
            raise _refusal(path, f"{module} has no {name}{_meant(name, _programs(bound))}")
        return
    node = bound[name]
    if isinstance(node, ast.ClassDef):
        if missing := _needed(node):
            raise _refusal(
                path,
                f"{name} needs {', '.join(missing)} to be made: give them as `kwargs` in a configuration file, "
                f"or name an instance",
            )
    elif isinstance(node, ast.Constant | ast.List | ast.Dict | ast.Set | ast.Tuple | ast.JoinedStr):
        kind = type(node.value).__name__ if isinstance(node, ast.Constant) else type(node).__name__.lower()
        raise _refusal(
            path,
            f"{name} is a {kind}, which is no program: name a dspy.Module class, an instance of one, or a "
            f"function that makes one",
        )


def find_module(module: str) -> ModuleSpec | None:
    """Its spec, found without importing the packages around it; None if there is none."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    for depth in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = ".".join([top, *rest[: depth + 1]])
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec


def _tree(module: str, path: str) -> ast.Module | None:
    spec = find_module(module)
    if spec is None:
        while (parent := module.rpartition(".")[0]) and find_module(parent) is None:
            module = parent
        top = module.partition(".")[0]
        if (Path(top) / top / "__init__.py").is_file() and find_module(f"{top}.{top}") is not None:
            raise _refusal(
                path, f"there is no module {module!r} here; it is in the folder {top}: `cd {top}` first"
            )
        where = f"in {parent}" if parent else f"neither in {os.getcwd()} nor among what is installed"
        raise _refusal(path, f"there is no module {module!r}, {where}{_meant(module, _siblings(module))}")
    if not spec.has_location or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        return ast.parse(Path(spec.origin).read_bytes(), spec.origin)
    except OSError:
        return None
    except (SyntaxError, ValueError) as broken:
        line = getattr(broken, "lineno", None)
        raise _refusal(
            path, f"{spec.origin}{f', line {line}' if line else ''}: {getattr(broken, 'msg', broken)}"
        ) from broken


def _bound(tree: ast.Module) -> tuple[dict[str, ast.AST], bool]:
    """What the module's top level binds, and whether it may bind more than that."""
    bound: dict[str, ast.AST] = {}
    is_open = False
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            bound[node.name] = node
            is_open = is_open or node.name == "__getattr__"
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                names = [one.id for one in ast.walk(target) if isinstance(one, ast.Name)]
                bound.update(dict.fromkeys(names, node.value if len(names) == 1 else target))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            bound[node.target.id] = node.value
        elif isinstance(node, ast.Import | ast.ImportFrom):
            is_open = is_open or any(alias.name == "*" for alias in node.names)
            bound.update({(alias.asname or alias.name).partition(".")[0]: node for alias in node.names})
        else:
            # Within `if`, `try`, `with`, ...: both ways may be taken.
            pending += [
                child for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node
            ]
            # A call such as `globals().update(...)` or `exec(...)` may bind anything.
            is_open = is_open or "globals" in ast.dump(node) or "'exec'" in ast.dump(node)
    return bound, is_open


def _needed(node: ast.ClassDef) -> list[str]:
    """Arguments that its own constructor needs."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and one.name == "__init__":
            arguments = one.args
            positional = [*arguments.posonlyargs, *arguments.args][1:]
            needed = (
                positional[: len(positional) - len(arguments.defaults)] if arguments.defaults else positional
            )
            keywords = [
                argument
                for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
                if default is None
            ]
            return [argument.arg for argument in (*needed, *keywords)]
    return []


def _programs(bound: dict[str, ast.AST]) -> list[str]:
    return [name for name in bound if not name.startswith("_")]


def _meant(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), 1, 0.6) or get_close_matches(
        name.lower(), [one for one in known if one.lower() == name.lower()], 1, 0.6
    )
    return f"; did you mean {close[0]}?" if close else ""


def _siblings(module: str) -> list[str]:
    """Modules beside the one that is not there."""
    parent, _, _ = module.rpartition(".")
    places: list[str]
    if parent:
        spec = find_module(parent)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
    else:
        places = [os.getcwd()]
    found = {
        entry.stem
        for place in places
        if os.path.isdir(place)
        for entry in Path(place).iterdir()
        if entry.suffix == ".py" or (entry / "__init__.py").is_file()
    }
    return sorted(f"{parent}.{name}" if parent else name for name in found)


def _refusal(path: str, why: str) -> ConfigError:
    return ConfigError(why, key="programs", value=path)


__all__ = ["check_source", "find_module"]
