"""What the text of a signature may name in DSPy: types that are there, and nothing that runs.

DSPy reads `"question: shop.Price -> answer"` by importing `shop` and taking whatever attribute follows, over any number
of dots; pydantic evaluates a quoted type, as in `list['Price']`, as Python. So a program that makes a signature of a
text which a caller chose (an argument, an input) would run what the caller likes. Here a type in such a text is one of
Python, `typing` or DSPy, or one that the program itself can see: under its own name, or as `module.Name` in a module
that it imported and whose package defines it. Nothing is imported; only `Literal` and `Field` take values.
"""

from __future__ import annotations

import ast
import functools
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Final

import pydantic

_BUILTIN: Final = (int, str, float, bool, list, tuple, dict, set, frozenset, complex, bytes, bytearray)
_UNION: Any = typing.Union
_ALIASES: Final = (
    types.GenericAlias,
    types.UnionType,
    type(_UNION[int, str]),
    type(typing.Annotated[int, 1]),
)
_KNOWN: Final[Mapping[str, Any]] = {
    **{kind.__name__: kind for kind in _BUILTIN},
    **{name: getattr(typing, name) for name in typing.__all__},
    "NoneType": type(None),
    "typing": typing,
}


def running_nothing(parse: Any) -> Any:
    """`parse`, DSPy's reader of a type, which hands each part of a type to itself again."""

    @functools.wraps(parse)
    def read(node: Any, names: Any = None) -> Any:
        if isinstance(node, ast.Name | ast.Attribute):
            return _named(node, names or {})
        if isinstance(node, ast.Subscript) and read(node.value, names) is typing.Literal:
            values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return typing.Literal[tuple(_plain(value) for value in values)]
        if isinstance(node, ast.Constant) and node.value not in (None, ...):
            raise ValueError("only Literal takes values in the text of a signature")
        if isinstance(node, ast.Call):
            if not all(isinstance(k.value, ast.Constant) for k in node.keywords):
                raise ValueError("Field takes plain values in the text of a signature")
            for keyword in node.keywords:
                _plain(keyword.value)
        return parse(node, names)

    return read


def _plain(node: ast.expr) -> Any:
    """The value that stands in a text. It goes into the prompt, where DSPy makes more than text of its marks."""
    value = ast.literal_eval(node)
    types = sys.modules["dspy.adapters.types.base_type"]
    if any(
        mark in str(value) for mark in (types.CUSTOM_TYPE_START_IDENTIFIER, types.CUSTOM_TYPE_END_IDENTIFIER)
    ):
        raise ValueError("a value in the text of a signature holds a mark of DSPy")
    return value


def _named(node: ast.Name | ast.Attribute, names: Mapping[str, Any]) -> Any:
    found = _found(node, names)
    is_type = isinstance(found, (type, *_ALIASES)) or any(found is known for known in _KNOWN.values())
    if not is_type or isinstance(found, types.ModuleType) or _imports_values(found):
        raise ValueError(
            f"{ast.unparse(node)[:80]} is no type that the text of a signature may name: one of Python, typing or "
            "dspy, or one that the program itself has or imported"
        )
    return found


def _imports_values(kind: Any) -> bool:
    """Whether pydantic reads a value of this type by importing what it names (`PyObject` of its first version, too)."""
    return kind is pydantic.ImportString or str(getattr(kind, "__module__", "")).startswith("pydantic.v1")


def _found(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """What a name means; None if that is nothing, or not its owner's own."""
    if isinstance(node, ast.Name):
        # By its name: this package is below what imports DSPy.
        known = names.get(node.id, _KNOWN.get(node.id, sys.modules["dspy"] if node.id == "dspy" else None))
        return _seen(node.id) if known is None else known
    if not isinstance(node, ast.Attribute):
        return None
    owner = _found(node.value, names)
    if not isinstance(owner, types.ModuleType | type):
        return None
    found = vars(owner).get(node.attr)
    if isinstance(found, types.ModuleType):
        return found if found.__name__ == f"{owner.__name__}.{node.attr}" else None
    # A module also holds what it only imported. An alias does not tell where it was made.
    home = owner.__name__ if isinstance(owner, types.ModuleType) else owner.__module__
    is_own = not isinstance(found, type) or found.__module__.partition(".")[0] == home.partition(".")[0]
    return found if is_own else None


def _seen(name: str) -> Any:
    """What the program that makes the signature calls so. DSPy itself looks only for a type that stands alone."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in ("dspy", "dspool"):
            for scope in (frame.f_locals, frame.f_globals):
                if name in scope:
                    return scope[name]
        frame = frame.f_back
    return None
