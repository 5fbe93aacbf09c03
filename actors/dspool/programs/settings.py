"""What the code of a program configures DSPy with, held to that program.

In a script `dspy.configure` changes the settings of the process, and only one thread may call it. A worker runs many
programs in many threads. So whoever imports or makes a program does it `within` a recording, which gets what is
configured meanwhile:

- A module's body configures once, when Python first imports the module, for whichever program that was. It counts for
  all that import the module, directly or through others: `_records` holds it by module.
- A constructor configures the one program that it makes.
- A call within an operation changes the settings of that operation, from then on.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import logging
import modulefinder
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType
from typing import Any, Final, NamedTuple

import dspy
from dspy.dsp.utils.settings import thread_local_overrides

from dspool.corrections.dspy_settings import divert_settings, shorten_contexts
from dspool.programs.models.operation import SETTING

log = logging.getLogger(__name__)

KEPT: Final = frozenset(
    {
        # They grow by kilobytes a call and keep user data.
        *("disable_history", "trace"),
        # What dspool runs an operation with.
        *(SETTING, "usage_tracker", "send_stream", "stream_listeners", "caller_modules", "caller_predict"),
    }
)
"""Settings that no program changes."""

Settings = dict[str, Any]


class _Change(NamedTuple):
    number: int
    """Grows with time."""
    settings: Settings


class _ModuleRecord:
    """What one run of a module's body configured."""

    def __init__(self, spec: object) -> None:
        self.spec = spec
        """The module's spec: another one when the module is loaded again."""
        self.changes: list[_Change] = []
        self.importers: set[str] = set()
        """The modules whose bodies were importing it."""


_records: dict[str, _ModuleRecord] = {}
_numbers = itertools.count()


class Recording:
    """What is configured while the code of a program is imported or makes it."""

    def __init__(self, outermost: FrameType | None, layer: Settings) -> None:
        self.settings: Settings = {}
        self._outermost = outermost
        self._layer = layer
        """What that code reads as `dspy.settings`, outside of a `dspy.context` of its own."""
        self._seen: set[int] = set()

    def import_module(self, name: str) -> ModuleType:
        """The module `name`; what it and the modules that it imports configured counts here, whoever was first."""
        module = importlib.import_module(name)
        self.add(_changes_of(name))
        return module

    def take(self, settings: Settings) -> None:
        change = _Change(next(_numbers), settings)
        if bodies := _bodies(self._outermost):
            _remember(bodies, change)
        self.add([change])

    def add(self, changes: Iterable[_Change]) -> None:
        """Make these changes, save those made already: another one may have come after them."""
        for change in changes:
            if change.number not in self._seen:
                self._seen.add(change.number)
                self.settings.update(change.settings)
                self._layer.update(change.settings)

    def forget_outermost(self) -> None:
        self._outermost = None


_recording: ContextVar[Recording | None] = ContextVar("dspool_recording", default=None)


@contextmanager
def within(defaults: Mapping[str, Any] | None = None) -> Iterator[Recording]:
    """Within this block, and in what it starts with its context, `dspy.configure` changes the recording it yields.

    `defaults`: what is configured already.
    """
    with dspy.context(**(defaults or {})):
        # Two above: the context manager's own frame, and contextlib's.
        recording = Recording(sys._getframe(2), thread_local_overrides.get())
        token = _recording.set(recording)
        try:
            yield recording
        finally:
            _recording.reset(token)
            recording.forget_outermost()


def import_module(name: str) -> ModuleType:
    """The module `name`, for what is made in this recording; without one, its settings wait for those that need it."""
    if (recording := _recording.get()) is not None:
        return recording.import_module(name)
    with within() as recording:
        return recording.import_module(name)


async def run_setup(import_path: str) -> Settings:
    """Call the function of yours that `import_path` names, in a thread, and await what it returns if that is to be
    awaited. Returns what it configured. Raises what it raises."""
    module, _, name = import_path.partition(":")
    with within() as recording:
        result = await asyncio.to_thread(lambda: getattr(import_module(module), name)())
        if inspect.isawaitable(result):
            await result
    return recording.settings


def _take(changes: Settings) -> bool:
    recording = _recording.get()
    overrides: Settings = thread_local_overrides.get()
    in_operation = SETTING in overrides
    if recording is None and not in_operation:
        return False
    if ignored := KEPT.intersection(changes):
        log.info("dspy.configure: %s are the pool's and stay as they are", ", ".join(sorted(ignored)))
    own = {key: value for key, value in changes.items() if key not in KEPT}
    if recording is not None:
        recording.take(own)
    else:
        # The settings of the innermost module that runs; each operation has its own.
        overrides.update(own)
    return True


def _keeps_cache() -> bool:
    if _recording.get() is None and SETTING not in thread_local_overrides.get():
        return False
    log.info("dspy.configure_cache: the cache is the pool's and stays as it is")
    return True


def _bodies(outermost: FrameType | None) -> list[dict[str, Any]]:
    """The globals of the modules whose bodies run now, innermost first, down to the frame `outermost`."""
    found = []
    frame: FrameType | None = sys._getframe(3)
    while frame is not None and frame is not outermost:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__":
            found.append(frame.f_globals)
        frame = frame.f_back
    return found


def _remember(bodies: list[dict[str, Any]], change: _Change) -> None:
    names = [str(body.get("__name__")) for body in bodies]
    spec = bodies[0].get("__spec__")
    record = _records.get(names[0])
    if record is None or record.spec is not spec:
        record = _records[names[0]] = _ModuleRecord(spec)
    record.changes.append(change)
    record.importers.update(names)


# --- which modules count ----------------------------------------------------------------------------


def _changes_of(name: str, spec: ModuleSpec | None = None) -> list[_Change]:
    """What the module `name` and all that it imports configured, oldest first. `spec`: it is not imported yet."""
    records = {
        module: record
        for module, record in tuple(_records.items())
        if _spec_of(sys.modules.get(module)) is record.spec
    }
    if not records:
        return []
    reached = _reached(name, spec, {module.partition(".")[0] for module in records})
    changes = [
        change
        for module, record in records.items()
        if module in reached or not record.importers.isdisjoint(reached)
        for change in record.changes
    ]
    return sorted(changes, key=lambda change: change.number)


def _reached(name: str, spec: ModuleSpec | None, tops: set[str]) -> set[str]:
    """`name` and the imported modules that it reaches through import statements; of libraries only those in `tops`."""
    reached: set[str] = set()
    waiting = [(name, spec)]
    while waiting:
        module, found = waiting.pop()
        found = found or _spec_of(sys.modules.get(module))
        if module in reached or found is None:
            continue
        if module.partition(".")[0] not in tops and _is_library(found):
            continue
        reached.add(module)
        waiting += [(imported, None) for imported in _imported_by(module, found)]
    return reached


def _imported_by(name: str, spec: ModuleSpec) -> Iterator[str]:
    """What the body of a module imports, and the packages around; no function's imports: it may never run."""
    yield from _parents(name)
    try:
        code = spec.loader.get_code(name)  # type: ignore[union-attr]
    except Exception:  # no loader of Python code, or the file is gone
        return
    if code is None:
        return
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    for what, found in modulefinder.ModuleFinder(path=[]).scan_opcodes(code):
        if what == "absolute_import":
            names, base = found
        elif what == "relative_import":
            level, names, base = found
            outer = package.rsplit(".", level - 1)[0] if level > 1 else package
            base = f"{outer}.{base}" if base else outer
        else:
            continue
        yield base
        yield from _parents(base)
        yield from (f"{base}.{item}" for item in names or ())


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        yield name


def _is_library(spec: ModuleSpec) -> bool:
    if spec.name.partition(".")[0] in sys.stdlib_module_names:
        return True
    origin = spec.origin or next(iter(spec.submodule_search_locations or ()), "")
    return "site-packages" in origin or "dist-packages" in origin


def _spec_of(module: object) -> Any:
    """Read from `__dict__`: some modules import others when asked for an attribute."""
    return module.__dict__.get("__spec__") if isinstance(module, ModuleType) else None


class _Arrivals(MetaPathFinder):
    """Finds nothing. Before a module runs it has `dspy.settings` hold what the modules that it will import configured:
    Python does not run those again."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> None:
        recording = _recording.get()
        if recording is None or not _records:
            return
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.has_location and not _is_library(spec):
            recording.add(_changes_of(name, spec))


sys.meta_path.insert(0, _Arrivals())
divert_settings(_take, _keeps_cache)
shorten_contexts()
