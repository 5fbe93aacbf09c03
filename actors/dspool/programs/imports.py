"""What an import path may name, what of it dspool calls, with which arguments and inputs: decided only here.

The rule, whoever sends the path:

1. A path is `package.module:Name`, in ASCII: one plain name, no dots behind the colon.
2. dspool imports only modules within `allowed_imports`, and none that is private below them: importing runs code.
3. dspool looks at what the path names before it calls anything. A program is a public `dspy.Module` class that an
   allowed module defines, or a finished `dspy.Module` object that the named module binds.
4. `allowed_callables` lists all else one by one, each for its use: functions that make programs and classes that a
   module only imports (`programs`), what agents may call (`tools`), what judges answers (`rewards`).
5. A class or a listed function gets the arguments that it names, as the JSON they came as; a class gets none unless an
   allowed module defines its constructor, because DSPy's own constructors import what a signature's text names.
6. `RESERVED` names and names that begin with an underscore are neither arguments nor inputs: DSPy takes them for
   itself. `**inputs` takes the fields of the program's signatures.

An object does not tell where it was made: what a module binds under a public name, it offers. What it imports and does
not offer belongs under a private name (`from other import program as _program`).

A program that stands in the configuration word for word (path and arguments, or spec) is the operator's own: it may
name anything within `allowed_imports`, for this use and no other.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final, Literal

import dspy
import msgspec
from dspy.clients.backend_selection import CLIENT_KEYS

from dspool.config import PoolConfig
from dspool.config.base import IMPORT_PATH
from dspool.errors import InvalidRequest, NotAllowed, ProgramError
from dspool.messages import JSON
from dspool.messages.limits import MAX_IMPORT_PATH
from dspool.programs.models.errors import translate_errors
from dspool.programs.settings import import_module
from dspool.quotations import without, without_secrets
from dspool.raised import within_own_code

RESERVED: Final = frozenset(
    {
        # What `Predict` takes out of its inputs, and what would meet a parameter of its own on the way there.
        *("signature", "new_signature", "demos", "config", "lm", "prediction", "completions", "callbacks"),
        *("self", "instance", "args"),
        # What agents take: the number of turns, and what runs the code that the model writes.
        *("max_iters", "interpreter_factory"),
    }
)
"""Names that are no field, no input and no argument of a caller."""

_CONNECTION: Final = frozenset({"api_key", "api_base", "base_url", "model_list"})
"""Where a model is and who pays for it: no argument of a caller, however deep, and no input that no program names."""

OF_A_CALL: Final = _CONNECTION | CLIENT_KEYS
"""What `**inputs` never takes: a program may hand them to a call of its model, which would go elsewhere."""

Use = Literal["programs", "tools", "rewards"]

_FORM: Final = re.compile(IMPORT_PATH)


def is_reserved(name: str) -> bool:
    return name in RESERVED or name.startswith("_")


def _is_operator_only(name: str) -> bool:
    return is_reserved(name) or name in _CONNECTION


def _has_connection(value: JSON) -> bool:
    """Whether an object within names a part of a connection: constructors hand such objects on as settings."""
    if isinstance(value, dict):
        return not _CONNECTION.isdisjoint(value) or any(map(_has_connection, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_connection, value))


class Imports:
    """What the definition of one program may import. `configured`: the definition is the operator's own."""

    def __init__(self, config: PoolConfig, *, configured: bool = False) -> None:
        self.config = config
        self._configured = configured

    @classmethod
    def of(
        cls,
        config: PoolConfig,
        import_path: str | None,
        kwargs: Mapping[str, JSON],
        spec: Mapping[str, JSON] | None,
    ) -> Imports:
        """For the program with this definition."""
        code = _code(import_path, kwargs, spec)
        configured = (_code(p.import_path, p.kwargs, p.spec) for p in config.programs.values())
        return cls(config, configured=code in configured)

    def program(self, path: JSON, kwargs: Mapping[str, JSON]) -> Any:
        """The program that `path` names: made with `kwargs`, or a copy of a finished one.

        Raises:
            InvalidRequest: no import path, nothing there, no program, or arguments that do not fit.
            NotAllowed: the caller may not name it. ProgramError: importing or making it raised.
        """
        listed, target = self._look_up(path, "programs")
        kind = type(target)
        if issubclass(kind, dspy.Module):
            if kwargs:
                raise InvalidRequest(
                    "the import path names a finished program, which takes no kwargs", field="kwargs"
                )
            return target.deepcopy()
        if issubclass(kind, type) and issubclass(target, dspy.Module):
            if not listed and not self._is_defined_here(target):
                raise NotAllowed(
                    f"{path} is defined in {str(target.__module__)[:200]}, not within allowed_imports or not under "
                    f"this name; the configuration may list {path} in allowed_callables.programs",
                    import_path=path,
                )
            maker = target.__init__
        elif listed and callable(target):
            maker = target
        else:
            raise InvalidRequest(
                f"{path} gives no dspy.Module: it must name a class or an object of that kind; a function that "
                "makes one must be listed in allowed_callables.programs",
                field="import_path",
            )
        self._check_arguments(path, target, maker, kwargs)
        with translate_errors(f"making {path}", loading=True, hide=without(kwargs)):
            module = target(**kwargs)
        if not issubclass(type(module), dspy.Module):
            raise InvalidRequest(f"{path} gives no dspy.Module", field="import_path")
        return module

    def callable(self, path: JSON, use: Literal["tools", "rewards"]) -> Any:
        """The tool or reward that `path` names.

        Raises:
            InvalidRequest: no import path, nothing there, or nothing to call.
            NotAllowed: the configuration does not list it for this use. ProgramError: importing it raised.
        """
        _, target = self._look_up(path, use)
        if not callable(target):
            raise InvalidRequest(f"{path} cannot be called", field=use)
        return target

    def _look_up(self, path: JSON, use: Use) -> tuple[bool, Any]:
        """Whether the configuration names `path` for this use, and what it is."""
        if not isinstance(path, str) or len(path) > MAX_IMPORT_PATH or _FORM.fullmatch(path) is None:
            raise InvalidRequest(
                "an import path has the form package.module:Name, with one plain name behind the colon",
                field="import_path",
            )
        if not self.config.allows_import(path):
            allowed = ", ".join(self.config.allowed_imports) or "nothing"
            raise NotAllowed(f"{path} is not within allowed_imports, which has {allowed}", import_path=path)
        entries: tuple[str, ...] = getattr(self.config.allowed_callables, use)
        listed = self._configured or path in entries
        if not listed and use != "programs":
            raise NotAllowed(
                f"{path} is none of the {use} that the configuration names: allowed_callables.{use} has "
                f"{', '.join(entries) or 'nothing'}",
                import_path=path,
            )
        module_name, _, name = path.partition(":")
        if not listed and (name.startswith("_") or not self.config.is_public(module_name)):
            raise NotAllowed(
                f"{path} is private: no part of an import path begins with an underscore", import_path=path
            )
        return listed, binding(module_name, name, path, listed)

    def _is_defined_here(self, kind: type) -> bool:
        """Whether the module in which the class says it is defined holds it, and is an allowed one."""
        module_name = kind.__module__
        if not isinstance(module_name, str) or not self.config.allows_module(module_name):
            return False
        target: Any = sys.modules.get(module_name)
        for part in kind.__qualname__.split("."):
            target = getattr(target, "__dict__", {}).get(part)
        return target is kind

    def _check_arguments(self, path: str, target: Any, maker: Any, kwargs: Mapping[str, JSON]) -> None:
        # The metaclass of a DSPy class has a __call__ that takes anything: only __init__ tells the parameters.
        is_class = maker is not target
        try:
            signature = inspect.signature(maker)
            signature.bind(*((None,) if is_class else ()), **kwargs)
        except (TypeError, ValueError) as refused:
            raise InvalidRequest(f"kwargs do not fit {path}: {refused}", field="kwargs") from refused
        if self._configured or not kwargs:
            return
        parameters = named_parameters(signature, is_bound=not is_class)
        for name, value in kwargs.items():
            if name not in parameters or _is_operator_only(name):
                allowed = ", ".join(p for p in parameters if not _is_operator_only(p)) or "none"
                raise InvalidRequest(
                    f"kwargs do not fit {path}: {name[:80]!r} cannot be given with an import path, only {allowed}; "
                    "a program in the configuration may have it",
                    field="kwargs",
                )
            if _has_connection(value):
                raise InvalidRequest(
                    f"kwargs do not fit {path}: {name!r} holds one of {', '.join(sorted(_CONNECTION))}; only a "
                    "program in the configuration may say where a model is",
                    field="kwargs",
                )
        if is_class and not self.config.allows_module(str(getattr(maker, "__module__", ""))):
            raise InvalidRequest(
                f"kwargs do not fit {path}: it has a constructor that is not defined within allowed_imports, and so "
                "takes none; give it one of its own that names its arguments",
                field="kwargs",
            )


def named_parameters(signature: inspect.Signature, *, is_bound: bool = True) -> dict[str, inspect.Parameter]:
    """Parameters that a caller can give by name; the first, `self`, is left out where it still stands there."""
    parameters = list(signature.parameters.values())[0 if is_bound else 1 :]
    return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def binding(module_name: str, name: str, path: str, listed: bool) -> Any:
    """What the module binds to the name; without a name, the module. `listed`: also what it fetches on demand.

    Raises:
        InvalidRequest: there is no such module or name.
        ProgramError: importing it raised; says what, with its text.
    """
    try:
        module = import_module(module_name)
    except BaseException as raised:  # such as a script that ends with `sys.exit()`
        if missing := _missing(module_name, raised):
            raise InvalidRequest(
                f"{path} is not there: there is no module {missing}", field="import_path"
            ) from raised
        raise ProgramError.of(raised, f"importing {path}", loading=True, hide=without_secrets) from raised
    if not name:
        return module
    if listed:
        with translate_errors(f"importing {path}", loading=True, hide=without_secrets):
            target = getattr(module, name, None)
        if target is None:
            raise InvalidRequest(
                f"{path} is not there: the module {module_name} has no {name}", field="import_path"
            )
        return target
    # `os.path` is another module than its name says. What a module fetches on demand (`__getattr__`) it does not bind.
    if not isinstance(module, ModuleType) or module.__name__ != module_name or name not in vars(module):
        raise InvalidRequest(
            f"{path} is not there: the module {module_name} itself binds no such name", field="import_path"
        )
    return vars(module)[name]


def _missing(module_name: str, raised: BaseException) -> str:
    """The module itself or the package around it that is not there; empty if it is one that it imports."""
    if type(raised) is not ModuleNotFoundError or within_own_code(raised):
        return ""
    return raised.name or "" if f"{module_name}.".startswith(f"{raised.name}.") else ""


def _code(import_path: str | None, kwargs: Mapping[str, JSON], spec: Mapping[str, JSON] | None) -> bytes:
    """The parts of a program that can name code, in one form, since those of a configuration may hold tuples."""
    code = {key: value for key, value in (spec or {}).items() if key not in ("lm", "adapter")}
    return msgspec.json.encode([import_path, kwargs, code], order="deterministic", enc_hook=repr)
