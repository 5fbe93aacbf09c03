"""Starting and killing forked workers by the hundred, and counting what is left of them: a part of `startup`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil

AT_ONCE = 4
"""Ray starts as many at a time as there are processors; the others wait their turn while one is killed."""
_LOOK_EVERY = 100


def session_dir() -> Path:
    import ray

    node: Any = ray._private.worker._global_node
    return Path(node.get_session_dir_path())


def left_behind(parent: int) -> dict[str, int]:
    """What there is of each kind of thing that a worker could leave."""
    raylet = next(p for p in psutil.Process().children(recursive=True) if p.name() == "raylet")
    processes = [*raylet.children(recursive=True), *psutil.Process(parent).children(recursive=True)]
    folder = session_dir()
    return {
        "processes": len({process.pid for process in processes}),
        "zombies": sum(process.status() == psutil.STATUS_ZOMBIE for process in processes),
        "sockets": sum(path.is_socket() for path in folder.rglob("*")),
        # A browser on the same machine has its own there.
        "shared_memory": sum(
            not path.name.startswith(".org.chromium") for path in Path("/dev/shm").iterdir()
        ),
        "parent_fds": psutil.Process(parent).num_fds(),
        "raylet_fds": raylet.num_fds(),
    }


def soak(cycles: int, at_once: int = AT_ONCE, settle_s: float = 5.0) -> dict[str, Any]:
    """Start and kill so many forked workers; half with `ray.kill`, half with SIGKILL."""
    import ray

    from dspool.runtime import forkserver

    class Held:
        def pid(self) -> int:
            return os.getpid()

    held: Any = ray.remote(Held).options(num_cpus=0, runtime_env={"py_executable": forkserver.command()})

    def cycle(number: int) -> None:
        """So many, each killed as soon as it has answered, when the next one is ordered."""
        ordered = 0
        running: dict[Any, Any] = {}
        while ordered < number or running:
            while ordered < number and len(running) < at_once:
                actor = held.remote()
                running[actor.pid.remote()] = actor
                ordered += 1
            (answered,), _ = ray.wait(list(running), num_returns=1)
            actor = running.pop(answered)
            if (pid := ray.get(answered)) % 2:
                os.kill(pid, signal.SIGKILL)
            else:
                ray.kill(actor, no_restart=True)
        gone = time.monotonic() + 30
        while parent_of().workers and time.monotonic() < gone:
            time.sleep(0.01)

    def parent_of() -> Any:
        return next(found for found in forkserver.report(session_dir()) if found.pid is not None)

    def settled() -> dict[str, int]:
        time.sleep(settle_s)
        return left_behind(parent_of().pid)

    keeper = held.remote()
    ray.get(keeper.pid.remote())
    ray.kill(keeper, no_restart=True)
    cycle(at_once)
    forked, before, began = parent_of().forked, settled(), time.monotonic()
    print("  before:", before, flush=True)
    done = 0
    while done < cycles:
        cycle(step := min(_LOOK_EVERY, cycles - done))
        done += step
        if done < cycles:
            # A soak that is broken off has said something, too.
            now = settled()
            grown = {name: now[name] - before[name] for name in now if now[name] != before[name]}
            print(
                f"  {done} of {cycles}, {time.monotonic() - began:.0f} s, more or less: {grown}", flush=True
            )
    took_s, after = round(time.monotonic() - began, 1), settled()
    print("  after: ", after, flush=True)
    left = {name: after[name] - before[name] for name in after}
    return {
        "cycles": cycles,
        "forked": parent_of().forked - forked,
        "seconds": took_s,
        "before": before,
        "after": after,
        "left": left,
        "clean": not any(number > 0 for number in left.values()),
    }
