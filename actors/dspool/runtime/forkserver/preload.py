"""What a parent loads before it forks: all that each worker would load itself, and nothing that runs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from dspool.runtime.forkserver.places import Unavailable, is_library

BASE = (
    "ray",
    "dspy",
    "dspool.runtime.workers",
    "dspool.programs.sessions.host",
    "dspool.programs.program",
)
"""A parent is of no use without all of these."""
OFTEN = (
    "dspool.programs.sessions.streaming",
    "dspool.programs.spans",
    "dspool.telemetry.trace_export",
    "dspool.runtime.store",
    "dspy.clients.execution",
    "dspy.clients.costs",
    "dspy.clients.engines.streaming",
    "ray._common.usage.usage_lib",
    "ray._common.pydantic_compat",
    "ray._private.arrow_serialization",
    "ray._private.worker",
    "pydantic.deprecated.class_validators",
    "pydantic.v1",
    "starlette.concurrency",
    "starlette.datastructures",
    "anyio.abc",
    "cryptography.hazmat.backends.openssl.backend",
)
"""What a worker loads in its first seconds. A module that fails to load is left to the worker."""

_PYTHON_STEP, _PYTHON_LARGEST = 16, 512
"""Python's own allocator has a list of free pieces for each of these sizes."""
_BATCH = 8_192
"""Bytes of one size that are taken, and looked at, together: half of what Python's allocator takes from the system."""
_MOST = 2_000_000
"""Bytes of one size that are taken at most: it must end, and stay small, whatever the allocator does."""
_JUMPS = 4
"""So many gaps in a batch of new memory: where a stretch of it ends, and what else was allocated meanwhile."""
_C_SIZES = (4000, 2000, 1500, 1000, 700, 520, 392, 264, 200, 136, 104, 88, 72, 56, 40, 24)
_ballast: list[object] = []


_SETTLED_S = 1.0
"""How long the threads of a pool that a module has closed may take to end."""
_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/")


class Unshareable(Exception):
    """`module` cannot be loaded before the fork; the text says why. The process that tried must not be forked."""

    def __init__(self, module: str, why: str) -> None:
        super().__init__(why)
        self.module = module


class Preloaded(NamedTuple):
    variables: dict[str, str]
    """What loading set in the environment: a worker that loads the same itself has it too."""
    failed: dict[str, str]
    """Modules that could not be imported here, and why. The worker tries, and reports it to the user."""
    watched: dict[str, int]
    """Source files of the user's modules, and when each was last modified (ns); 0: it changed while it was loaded."""


def preload(modules: Iterable[str], also: Iterable[str] = ()) -> Preloaded:
    """Load the base, `also` what is to run beside the pool, and `modules`; then put it all out of the garbage
    collector's reach.

    Raises:
        Unavailable: a part of the base cannot be loaded, or something runs or keeps a connection open after loading.
        Unshareable: one of these modules leaves a thread, an open file or connection, or a GPU in use.
    """
    before, environ = _descriptors(), dict(os.environ)
    # No collection meanwhile: it would find nothing, and leave holes in the memory that workers share.
    gc.disable()
    for module in BASE:
        try:
            importlib.import_module(module)
        except Exception as failed:
            raise Unavailable(f"{module} cannot be loaded: {type(failed).__name__}: {failed}") from failed
        if module == "ray":
            _leave_rays_dice_alone()
    for module in OFTEN:
        _import(module)
    if why := _unshareable(before):
        raise Unavailable(why)
    failures: dict[str, str] = {}

    def load(names: Iterable[str]) -> None:
        for module in names:
            if why := _import(module):
                failures[module] = why
            if why := _unshareable(before):
                raise Unshareable(module, why)

    load(also)
    known = set(sys.modules)
    load(modules)
    # By name: this package is below what it loads.
    for module in ("dspool.programs.program", "dspool.wire.handshake"):
        importlib.import_module(module).rehearse()
    if why := _unshareable(before):
        raise Unavailable(why)
    gc.collect()
    _fill_holes()
    gc.freeze()
    variables = {name: value for name, value in os.environ.items() if environ.get(name) != value}
    return Preloaded(variables, failures, _sources(set(sys.modules) - known))


def changed(watched: Mapping[str, int]) -> str:
    """A watched file that is not what was loaded any more; empty if all are."""
    return next((file for file, modified in watched.items() if _modified(file) != modified), "")


def import_for_workers(module: str) -> None:
    """Import `module`; what it configures DSPy with counts for the workers' programs that import it."""
    # By name: this package is below what it loads.
    importlib.import_module("dspool.programs.settings").import_module(module)


def running() -> str | None:
    """Why this process must not be forked now: threads would be missing in the child, with the locks they hold."""
    threads = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            threads.append(task.joinpath("comm").read_text().strip())
    if len(threads) == 1:
        return None
    return f"threads run in the parent: {', '.join(sorted(threads))}"


def _leave_rays_dice_alone() -> None:
    """Make the ids of actor classes without Ray's own generator of random numbers.

    Ray's library seeds that at its first use, and a module with a `@ray.remote` class uses it, as Ray Serve's do. The
    children of this process would then draw the same numbers: two that start at once take the same id in the object
    store, and one dies of it.
    """
    actor: Any = importlib.import_module("ray.actor")
    ids = actor.ActorClassID
    actor.ActorClassID = SimpleNamespace(from_random=lambda: ids(os.urandom(ids.size())))


def _import(module: str) -> str:
    """Import it; why that failed, or nothing."""
    try:
        import_for_workers(module)
    except BaseException as failed:
        # `BaseException`, as a module may call `sys.exit()`. The worker will report it to the user.
        traceback.print_exc()
        return f"{type(failed).__name__}: {failed}"
    return ""


def _unshareable(before: set[int]) -> str:
    """Why this process must not be forked after what it loaded; `before` are the descriptors it had before that."""
    targets = sorted(_target_of(descriptor) for descriptor in _descriptors() - before)
    torch: Any = sys.modules.get("torch")
    cuda: Any = getattr(torch, "cuda", None)
    if any(target.startswith(_DEVICES) for target in targets) or (cuda and cuda.is_initialized()):
        return (
            "it uses a GPU, and a CUDA context does not survive a fork: "
            "load to the CPU here, and move to the GPU in a step of the warm-up"
        )
    if targets:
        return f"what was loaded keeps files or connections open: {', '.join(targets)}"
    until = time.monotonic() + _SETTLED_S
    while why := running():
        if time.monotonic() >= until:
            return f"{why} (those of a numerical library: leave OMP_NUM_THREADS and the like at 1)"
        time.sleep(0.01)
    return ""


def _sources(names: Iterable[str]) -> dict[str, int]:
    """The source files of those modules that are neither Python's own nor installed: an author may edit them."""
    sources = importlib.import_module("dspool.programs.sources")
    watched = {}
    for name in names:
        file, digest = sources.record_of(name) or ("", "")
        if file and not is_library(file):
            watched[file] = _modified(file) if sources.digest_of(file) == digest else 0
    return watched


def _modified(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return -1


def _descriptors() -> set[int]:
    descriptors = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one that listed the directory
        descriptors.add(int(name))
    return descriptors


def _target_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _fill_holes() -> None:
    """Use up, for good, the small pieces of free memory that loading left all over the place, and no more than those.

    A worker that used one would get its own copy of the page around it. Now workers allocate on new pages, side by
    side: that saves 2 to 3 MB in each of them, and costs one here, once.
    """
    for size in range(_PYTHON_STEP, _PYTHON_LARGEST + 1, _PYTHON_STEP):
        for _ in range(_MOST // _BATCH):
            pieces = [_piece(size, number) for number in range(_BATCH // size)]
            if _side_by_side(pieces, size):
                break
            _ballast.extend(pieces)
    _give_back()
    library = ctypes.CDLL(None)
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.sbrk.argtypes, library.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    end = library.sbrk(0)
    for size in _C_SIZES:
        for _ in range(_MOST // size):
            # A piece behind the end is new memory: no hole is left that has room for this size.
            if (library.malloc(size) or end) >= end:
                break


def _side_by_side(pieces: Sequence[object], size: int) -> bool:
    """Whether nearly all of them lie one behind the other: then they are of new memory, and in no holes."""
    places = sorted(map(id, pieces))
    return sum(second - first == size for first, second in pairwise(places)) >= len(pieces) - _JUMPS


def _piece(size: int, number: int) -> object:
    """A new object of so many bytes."""
    if size <= 32:
        return object() if size == 16 else float(number)
    return bytes(size - 33)


def _give_back() -> None:
    """Return freed memory to the system, where the C library knows how."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
