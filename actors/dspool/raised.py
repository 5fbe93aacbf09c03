"""What may be told of an exception that foreign code raised, and where: decided only here.

The author of a program writes the texts of its exceptions, and debugs with them. What users sent and what models
answered may stand in texts that others write. So `text_of` tells

1. the text of a `raise`, `assert` or `sys.exit` in the author's own code, and of every exception class defined there;
2. what the interpreter says by itself of types and names (`TypeError`, `AttributeError`, `NameError`, `ImportError`);
   of its other complaints what is not in quotation marks, as that is data: `could not convert string to float: ...`;
3. the key of a `KeyError` that stands literally in the author's function, such as that of a variable that is not set;
4. errors of the system by number, of JSON by position, of pydantic by field and rule, without the value;
5. of libraries, DSPy among them, a text that stands literally in the function that raises, such as `No RM is loaded.`:
   no data is in it;
6. nothing else: what libraries make of data may quote prompts and answers.

Code is the author's if it lies in a package that the configuration allows or names, or outside the directories of the
interpreter and of installed libraries. While code is loaded there is no user's content, and all texts are told.

Nothing here raises, whatever the exception does when somebody looks at it.
"""

from __future__ import annotations

import dis
import json
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

MAX_TEXT: Final = 2000
MAX_TRACEBACK: Final = 32_000
"""Characters of a whole traceback."""
HIDDEN: Final = "..."
_NAME_LIMIT: Final = 200
_FRAMES: Final = 30
_LISTED: Final = 200
"""Of pydantic's complaints of one value: to write more takes long, and nobody reads it."""
_EXCEPTIONS: Final = 12
"""Of one chain, groups included."""

_LIBRARIES: Final = tuple({os.path.join(path, "") for path in sysconfig.get_paths().values()})
_INSTALLED: Final = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
_SERVING: Final = frozenset({"dspool", "dspool_serve", "dspool_console", "dspy", "ray"})
"""Packages that are never the author's, wherever they lie."""
_SERVING_FILES: Final = os.path.join(Path(__file__).parent, "")
_RAISE: Final = dis.opmap["RAISE_VARARGS"]
_QUOTED: Final = re.compile(r"(['\"]).*\1", re.DOTALL)
_OF_INTERPRETER: Final = (TypeError, AttributeError, NameError, ImportError, SyntaxError, UnicodeError)
_MASKED: Final = (ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError, BufferError, EOFError)

_AS_CAUSE: Final = "The above exception was the direct cause of the following exception:"
_MEANWHILE: Final = "During handling of the above exception, another exception occurred:"

_own_packages: set[str] = set()


def own(modules: Iterable[str]) -> None:
    """The packages of these modules are the author's, also where they are installed as libraries are."""
    _own_packages.update({module.partition(".")[0] for module in modules} - _SERVING)
    _is_own.cache_clear()


def is_own_module(name: str) -> bool:
    """Whether the module that this process imported under `name` is the author's."""
    file = getattr(sys.modules.get(name), "__dict__", {}).get("__file__")
    return _is_own(name.partition(".")[0], file if isinstance(file, str) else "")


@lru_cache(4096)
def _is_own(package: str, file: str) -> bool:
    if package in _SERVING or file.startswith(_SERVING_FILES):
        return False
    if package in _own_packages:
        return True
    return bool(file) and file[0] != "<" and not file.startswith(_LIBRARIES) and not _INSTALLED.search(file)


# --- where ---------------------------------------------------------------------------------------------


def type_of(raised: BaseException) -> str:
    """The name of its type, even if the type computes its own name."""
    name: str = type.__dict__["__name__"].__get__(type(raised))
    return name[:_NAME_LIMIT]


def place_of(raised: BaseException) -> str:
    """Module and line of the code that raised it."""
    frames = list(_frames(raised))
    return _place(frames[-1]) if frames else "an unknown place"


def own_place_of(raised: BaseException) -> str:
    """Module and line of the author's code that was running; where there is none, of the code that raised it.

    A `SyntaxError` of the author's file is there and not where it was imported.
    """
    if type(raised) in (SyntaxError, IndentationError, TabError) and _place_of_text(raised):
        return _place_of_text(raised)
    last = _last_own(raised)
    return place_of(raised) if last is None else _place(last)


def _place_of_text(raised: BaseException) -> str:
    file, line = getattr(raised, "filename", None), getattr(raised, "lineno", None)
    return f"{file}:{line}" if type(file) is str and file[:1] != "<" and type(line) is int else ""


def _place(trace: TracebackType) -> str:
    return f"{_module(trace)[:_NAME_LIMIT]}:{trace.tb_lineno}"


def _module(trace: TracebackType) -> str:
    module = dict.get(trace.tb_frame.f_globals, "__name__")
    return module if type(module) is str else "?"


def _frames(raised: BaseException) -> Iterator[TracebackType]:
    trace: TracebackType | None = BaseException.__dict__["__traceback__"].__get__(raised)
    while trace is not None:
        yield trace
        trace = trace.tb_next


def is_own_frame(trace: TracebackType) -> bool:
    return is_own_code(trace.tb_frame)


def is_own_code(frame: FrameType) -> bool:
    """Whether the function that runs in `frame` is the author's."""
    module = dict.get(frame.f_globals, "__name__")
    package = module.partition(".")[0] if type(module) is str else ""
    return _is_own(package, frame.f_code.co_filename)


def _last_own(raised: BaseException) -> TracebackType | None:
    last = None
    for trace in _frames(raised):
        if is_own_frame(trace):
            last = trace
    return last


def within_own_code(raised: BaseException) -> bool:
    """Whether any of the author's code was running."""
    return _last_own(raised) is not None


# --- what ----------------------------------------------------------------------------------------------


def text_of(raised: BaseException, *, whole: bool = False, hide: Callable[[str], str] = str) -> str:
    """What `raised` says of itself, as far as the rule above tells it; empty if nothing.

    With `whole` all of it. `hide` takes out what must not be told, such as `quotations.without`.
    """
    try:
        text = str(raised) if whole else _told(raised)
        # `hide` sees all that a cut could split; what comes out can be written anywhere.
        return _written(hide(text[: 4 * MAX_TEXT]))[:MAX_TEXT]
    except BaseException:  # its own words are anybody's code
        return ""


def _told(raised: BaseException) -> str:
    return _by_kind(raised) or _literal(raised)


def _by_kind(raised: BaseException) -> str:
    kind = type(raised)
    module: Any = type.__dict__["__module__"].__get__(kind)
    package = module.partition(".")[0] if type(module) is str else ""
    if module == "dspool.errors":
        return str(raised)
    if package in _SERVING:
        return ""
    if package == "pydantic_core" and type_of(raised) == "ValidationError":
        return _invalid(raised)
    if package != "builtins" and is_own_module(module):
        return str(raised)
    *_, last = _frames(raised)
    if is_own_frame(last) and (_is_raise(last) or issubclass(kind, SystemExit)):
        return str(raised)
    if kind is json.JSONDecodeError:
        return str(raised)
    if issubclass(kind, KeyError):
        return _key(raised)
    if issubclass(kind, OSError) and module == "builtins" and type(raised.errno) is int:  # type: ignore[attr-defined]
        return f"[Errno {raised.errno}] {os.strerror(raised.errno)}"  # type: ignore[attr-defined]
    if module != "builtins" or _is_raise(last):
        return ""
    if issubclass(kind, _OF_INTERPRETER):
        return str(raised)
    return _QUOTED.sub(HIDDEN, str(raised)) if issubclass(kind, _MASKED) else ""


def _is_raise(trace: TracebackType) -> bool:
    """Whether a `raise` or `assert` of this very frame raised it, not what the frame called."""
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISE


def _literal(raised: BaseException) -> str:
    """Its text, if that is a constant of the function that raised it. Code that was made of data has no file."""
    *_, last = _frames(raised)
    code = last.tb_frame.f_code
    if not _is_raise(last) or code.co_filename.startswith("<"):
        return ""
    text = str(raised)
    return text if text in _literals(code) else ""


def _key(raised: BaseException) -> str:
    frame, args = _last_own(raised), BaseException.__dict__["args"].__get__(raised)
    key = args[0] if len(args) == 1 else None
    return repr(key) if type(key) is str and frame and key in _literals(frame.tb_frame.f_code) else ""


def _literals(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if type(constant) is str:
            yield constant
        elif type(constant) is tuple:
            yield from (part for part in constant if type(part) is str)


def _invalid(raised: Any) -> str:
    """What pydantic refused: the model, and by field the rule that the value breaks."""
    from pydantic import BaseModel

    if (count := raised.error_count()) > _LISTED:
        return f"{count} validation errors for {raised.title}"
    fields: set[str] = set()
    kinds: list[type[BaseModel]] = [BaseModel]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        fields.update(kind.__dict__.get("__pydantic_fields__", ()))
    lines = []
    for error in raised.errors(include_input=False, include_url=False, include_context=True):
        # Other names are keys of the value itself.
        place = ".".join(
            str(part) if type(part) is int or part in fields else f"[{HIDDEN}]" for part in error["loc"]
        )
        said = error["msg"] if error["type"] != "union_tag_invalid" else "an unknown tag"
        if (cause := error.get("ctx", {}).get("error")) is not None:
            said = text_of(cause)
        lines.append(f"{place}: {said}" if place else said)
    return f"{len(lines)} validation error{'s' * (len(lines) > 1)} for {raised.title}: {'; '.join(lines)}"


def _written(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


# --- all of it, for the log ------------------------------------------------------------------------------


def traceback_of(raised: BaseException, *, whole: bool = False, hide: Callable[[str], str] = str) -> str:
    """The traceback as Python prints it: frames, source lines, causes, groups and notes; texts as `text_of` tells them.

    Frames of dspool before the author's are left out. Bounded in frames, exceptions and characters.
    """
    try:
        lines: list[str] = []
        _write(raised, lines, "", set(), whole, hide)
        text = _written("\n".join(lines))
    except BaseException:
        return f"{type_of(raised)} at {place_of(raised)}, which cannot be written down"
    if len(text) > MAX_TRACEBACK:
        half = MAX_TRACEBACK // 2
        text = f"{text[:half]}\n  ... {len(text) - 2 * half} characters ...\n{text[-half:]}"
    return text


def _write(
    raised: BaseException,
    lines: list[str],
    margin: str,
    written: set[int],
    whole: bool,
    hide: Callable[[str], str],
) -> None:
    written.add(id(raised))
    cause: BaseException | None = BaseException.__dict__["__cause__"].__get__(raised)
    context: BaseException | None = BaseException.__dict__["__context__"].__get__(raised)
    suppressed = BaseException.__dict__["__suppress_context__"].__get__(raised)
    before = cause if cause is not None else None if suppressed else context
    if before is not None and id(before) not in written and len(written) < _EXCEPTIONS:
        _write(before, lines, margin, written, whole, hide)
        lines += ["", f"{margin}{_AS_CAUSE if cause is not None else _MEANWHILE}", ""]
    frames = list(_frames(raised))
    if any(map(is_own_frame, frames)):
        first = next(i for i, trace in enumerate(frames) if _module(trace).partition(".")[0] not in _SERVING)
        frames = frames[first:]
    if frames:
        lines.append(f"{margin}Traceback (most recent call last):")
        lines += [f"{margin}{line}" for line in _frame_lines(frames)]
    text = text_of(raised, whole=whole, hide=hide)
    last = _qualified(raised) + (f": {text}" if text else "")
    lines += [f"{margin}{line}" for line in last.split("\n")]
    notes = raised.__dict__.get("__notes__") if text else None
    for note in notes if isinstance(notes, list) else ():
        if type(note) is str:
            lines += [f"{margin}{line}" for line in hide(note[:MAX_TEXT]).split("\n")]
    if issubclass(type(raised), BaseExceptionGroup):
        members: Any = BaseExceptionGroup.__dict__["exceptions"].__get__(raised)
        for number, member in enumerate(members, 1):
            if id(member) in written or len(written) >= _EXCEPTIONS:
                lines.append(f"{margin}  + {len(members) - number + 1} more")
                break
            lines.append(f"{margin}  +---------------- {number} ----------------")
            _write(member, lines, f"{margin}  | ", written, whole, hide)


def _frame_lines(frames: list[TracebackType]) -> Iterator[str]:
    left_out = len(frames) - _FRAMES
    shown = frames if left_out <= 0 else [*frames[: _FRAMES // 3], *frames[-(_FRAMES - _FRAMES // 3) :]]
    summary = traceback.StackSummary.extract((trace.tb_frame, trace.tb_lineno) for trace in shown)
    for number, entry in enumerate(summary):
        if left_out > 0 and number == _FRAMES // 3:
            yield f"  ... {left_out} more frames ..."
        yield f'  File "{entry.filename}", line {entry.lineno}, in {entry.name}'
        if entry.line:
            yield f"    {entry.line}"


def _qualified(raised: BaseException) -> str:
    module: Any = type.__dict__["__module__"].__get__(type(raised))
    return (
        type_of(raised) if module == "builtins" or type(module) is not str else f"{module}.{type_of(raised)}"
    )


__all__ = [
    "HIDDEN",
    "MAX_TEXT",
    "is_own_code",
    "is_own_frame",
    "is_own_module",
    "own",
    "own_place_of",
    "place_of",
    "text_of",
    "traceback_of",
    "type_of",
    "within_own_code",
]
