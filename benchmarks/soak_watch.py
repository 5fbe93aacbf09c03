"""What a long run weighs again and again, and what its slopes say: memory, descriptors, threads, tasks, disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.processes import OURS, processes_of

BLOCKS = 10
_T_95 = 2.306
"""Of Student's distribution, for `BLOCKS` - 2 degrees of freedom."""
MOST_MB_PER_HOUR = 2.0
_TRACED = 12

Points = list[tuple[float, float]]


class Slope(NamedTuple):
    per_hour: float
    low: float
    high: float
    """Between these it is with 95 % probability."""


def slope(points: Points, from_s: float) -> Slope | None:
    """Of what came after `from_s`; None for too few points.

    Points close to each other resemble each other: the medians of `BLOCKS` equal parts of the time are fitted, or the
    interval would be far too narrow.
    """
    late = [(at, value) for at, value in points if at >= from_s]
    if len(late) < 2 * BLOCKS:
        return None
    size = len(late) / BLOCKS
    parts = [late[int(number * size) : int((number + 1) * size)] for number in range(BLOCKS)]
    at = [statistics.fmean(when for when, _ in part) / 3600 for part in parts]
    value = [statistics.median(used for _, used in part) for part in parts]
    line = statistics.linear_regression(at, value)
    middle = statistics.fmean(at)
    left = sum((y - line.slope * x - line.intercept) ** 2 for x, y in zip(at, value, strict=True))
    error = (left / (BLOCKS - 2) / sum((x - middle) ** 2 for x in at)) ** 0.5
    return Slope(line.slope, line.slope - _T_95 * error, line.slope + _T_95 * error)


class Watch:
    """Series of (seconds since the start, value) by name. `service` is the process that started all others but us."""

    def __init__(
        self, pool: Any, service: int, directories: dict[str, Path], clock: Callable[[], float]
    ) -> None:
        self._pool, self._service, self._directories, self._clock = pool, service, directories, clock
        self.memory: dict[str, Points] = {}
        """USS in MB. Workers come and go: each is a series of its own."""
        self.descriptors: dict[str, Points] = {}
        self.threads: dict[str, Points] = {}
        self.tasks: dict[str, Points] = {}
        self.disk: dict[str, Points] = {}

    async def run(self, every_s: float) -> None:
        while True:
            await asyncio.to_thread(self._weigh)
            await self._count_tasks()
            await asyncio.sleep(every_s)

    def _weigh(self) -> None:
        at = self._clock()
        pids = {"client": os.getpid(), "service": self._service}
        for role, found in processes_of(self._service).items():
            for number, pid in enumerate(sorted(found)):
                pids[f"{role} {pid}" if role == "worker" else f"{role} {number}" if number else role] = pid
        for name, pid in pids.items():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                self.memory.setdefault(name, []).append((at, process.memory_full_info().uss / 2**20))
                self.descriptors.setdefault(name, []).append((at, process.num_fds()))
                self.threads.setdefault(name, []).append((at, process.num_threads()))
        for name, directory in self._directories.items():
            self.disk.setdefault(name, []).append((at, size_mb(directory)))

    async def _count_tasks(self) -> None:
        at = self._clock()
        self.tasks.setdefault("client", []).append((at, len(asyncio.all_tasks())))
        for name, actor in actors_of(self._pool).items():
            with contextlib.suppress(Exception):
                counted = await asyncio.wait_for(actor.__ray_call__.remote(_tasks), 5.0)
                self.tasks.setdefault(name, []).append((at, counted))

    def lasting(self) -> list[str]:
        return [name for name in self.memory if not name.startswith("worker ")]

    def worker_slopes(self) -> list[float]:
        found = [slope(points, 0.0) for name, points in self.memory.items() if name.startswith("worker ")]
        return [one.per_hour for one in found if one is not None]

    def figures(self, from_s: float) -> dict[str, Any]:
        """Slopes of what came after `from_s`, when a pool and its caches have filled."""
        slopes = {name: slope(self.memory[name], from_s) for name in self.lasting()}
        growing = [
            name
            for name, one in slopes.items()
            if one is not None and one.low > 0 and one.per_hour > MOST_MB_PER_HOUR
        ]
        counts = {"descriptors": self.descriptors, "threads": self.threads, "tasks": self.tasks}
        return {
            "judged_from_minute": round(from_s / 60, 1),
            "memory_mb_per_hour": {name: one and round(one.per_hour, 2) for name, one in slopes.items()},
            "memory_interval_mb_per_hour": {
                name: one and [round(one.low, 2), round(one.high, 2)] for name, one in slopes.items()
            },
            "growing": [name for name in growing if name.split()[0] in OURS or name in OURS],
            "growing_of_ray": [name for name in growing if not (name.split()[0] in OURS or name in OURS)],
            "memory_last_mb": {name: round(self.memory[name][-1][1], 1) for name in self.lasting()},
            **{
                what: {
                    name: _first_and_last(points, from_s)
                    for name, points in series.items()
                    if not name.startswith("worker ")
                }
                for what, series in counts.items()
            },
            "disk_mb": {name: _first_and_last(points, from_s) for name, points in self.disk.items()},
            "memory_series": {
                name: [(round(at, 1), round(mb, 2)) for at, mb in points[:: max(1, len(points) // 60)]]
                for name, points in self.memory.items()
                if not name.startswith("worker ")
            },
        }


def _first_and_last(points: Points, from_s: float) -> dict[str, float]:
    late = [value for at, value in points if at >= from_s] or [points[-1][1]]
    one = slope(points, from_s)
    found = {"first": round(late[0], 1), "last": round(late[-1], 1), "most": round(max(late), 1)}
    return found if one is None else {**found, "per_hour": round(one.per_hour, 2)}


def size_mb(directory: Path) -> float:
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total / 2**20


def actors_of(pool: Any) -> dict[str, Any]:
    return {"supervisor": pool.supervisor, "store": pool.store, "metrics": pool.metrics}


def _tasks(_actor: Any) -> int:
    return len(asyncio.all_tasks())


# --- what grows, by lines of code ---

_before: list[tracemalloc.Snapshot] = []
"""Of this process."""


def _trace(_actor: Any) -> None:
    tracemalloc.start(6)
    _before.append(tracemalloc.take_snapshot())


def _grown(_actor: Any) -> list[str]:
    now = tracemalloc.take_snapshot()
    found = now.compare_to(_before.pop(), "traceback")
    tracemalloc.stop()
    lines = []
    for one in found[:_TRACED]:
        way = " < ".join(
            f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}"
            for frame in reversed(one.traceback)
        )
        lines.append(f"{one.size_diff / 1024:+.0f} KB in {one.count_diff:+d}: {way}")
    return lines


async def trace(pool: Any) -> None:
    """From now on, note in each process of ours where memory is taken; this costs time and memory."""
    _trace(None)
    for actor in actors_of(pool).values():
        await actor.__ray_call__.remote(_trace)


async def grown(pool: Any) -> dict[str, list[str]]:
    """What each process has more of than when `trace` was called."""
    found = {name: await actor.__ray_call__.remote(_grown) for name, actor in actors_of(pool).items()}
    return {"client": _grown(None), **found}
