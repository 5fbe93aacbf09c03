"""What a parent loads before it forks: all that each worker would load itself, and nothing that runs."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import traceback
from collections.abc import Iterable
from pathlib import Path

from dspool.runtime.forkserver.places import Unavailable

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
    "anyio.abc",
)
"""What a worker loads in its first seconds. A module that fails to load is left to the worker."""

_PYTHON_STEP, _PYTHON_LARGEST = 16, 512
"""Python's own allocator has a list of free pieces for each of these sizes."""
_C_SIZES = (24, 40, 56, 72, 88, 104, 136, 200, 264, 392, 520, 700, 1000, 1500, 2000, 4000)
_FILL = 250_000
"""Bytes of each size."""
_ballast: list[object] = []


def preload(modules: Iterable[str]) -> dict[str, str]:
    """Load the base and `modules`, then put it all out of the garbage collector's reach.

    Returns the environment variables that this set: a worker that loads the same itself has them too.

    Raises:
        Unavailable: a part of the base cannot be loaded, or something runs or keeps a connection open after loading.
    """
    before, environ = _descriptors(), dict(os.environ)
    # No collection meanwhile: it would find nothing, and leave holes in the memory that workers share.
    gc.disable()
    for module in BASE:
        try:
            importlib.import_module(module)
        except Exception as failed:
            raise Unavailable(f"{module} cannot be loaded: {type(failed).__name__}: {failed}") from failed
    for module in (*OFTEN, *modules):
        try:
            importlib.import_module(module)
        except BaseException:
            # `BaseException`, as a module may call `sys.exit()`. The worker will report it to the user.
            traceback.print_exc()
    # By name: this package is below what it loads.
    importlib.import_module("dspool.programs.program").rehearse()
    if descriptors := _descriptors() - before:
        targets = ", ".join(sorted(_target_of(descriptor) for descriptor in descriptors))
        raise Unavailable(f"what was loaded keeps files or connections open: {targets}")
    if why := running():
        raise Unavailable(why)
    gc.collect()
    _give_back()
    _fill_holes()
    gc.freeze()
    return {name: value for name, value in os.environ.items() if environ.get(name) != value}


def running() -> str | None:
    """Why this process must not be forked now: threads would be missing in the child, with the locks they hold."""
    threads = sorted(task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir())
    if len(threads) == 1:
        return None
    return f"threads run in the parent: {', '.join(threads)}"


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
    """Use up, for good, the small pieces of free memory that loading left all over the place.

    A worker that used one would get its own copy of the page around it. Now workers allocate on new pages, side by
    side: that saves 2 to 3 MB in each of them, and costs some memory here, once.
    """
    for size in range(_PYTHON_STEP, _PYTHON_LARGEST + 1, _PYTHON_STEP):
        _ballast.extend(_piece(size, number) for number in range(_FILL // size))
    allocate = ctypes.CDLL(None).malloc
    allocate.argtypes, allocate.restype = [ctypes.c_size_t], ctypes.c_void_p
    for size in _C_SIZES:
        for _ in range(_FILL // size):
            allocate(size)


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
