"""What an operating system can do to a pool: end or stop any of its processes or a whole node, stop its database, fill
its disk."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import ROOT
from benchmarks.processes import family, processes_of
from tests.simulation.history import History

KILLED = {
    "worker": 8,
    "client": 3,
    "ingress": 1,
    "supervisor": 2,
    "metrics": 1,
    "store": 2,
    "fork parent": 1,
    "controller": 1,
    "proxy": 1,
    "haproxy manager": 1,
    "haproxy": 1,
}
"""Kinds of process, and how often each is hit among all."""
STOP_S = (0.05, 0.5, 2.0, 6.0)
DATABASE_S = (0.2, 2.0)
DISK_S = (0.5, 3.0)
NODE_S = (0.2, 2.0)
_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
POSTGRES_INSTALLED = bool(_BINARIES)


class Postgres:
    """A server with a socket in `directory`; it can be stopped as by a power failure, and starts again."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory, self._data = directory, directory / "data"
        self.url = f"postgresql://dspool@/postgres?host={directory}"
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            # PostgreSQL refuses to run as root.
            self._as = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(directory, "postgres", "postgres")
        self._run("initdb", "-D", str(self._data), "-U", "dspool", "-A", "trust", "-E", "UTF8")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(_BINARIES[-1] / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self._directory, **self._as)

    def start(self) -> None:
        options = f"-k {self._directory} -c listen_addresses="
        log = str(self._directory / "log")
        self._run("pg_ctl", "-D", str(self._data), "-w", "-t", "60", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """Without a last word: it recovers from its log. Nothing happens if it does not run."""
        if not self.processes():
            return
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "stop")

    def processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error, OSError, ValueError):
            first = psutil.Process(int((self._data / "postmaster.pid").read_text().splitlines()[0]))
            return [first, *first.children(recursive=True)]
        return []


class SecondNode:
    """Another node of the service's cluster: its raylet may be lost, and a new one comes."""

    def __init__(self, address: str, ip: str, log: Path) -> None:
        self._command = [sys.executable, "-m", "benchmarks.second_node", address, ip]
        self._log = log
        self._started: subprocess.Popen[bytes] | None = None
        self._came_up = False

    @property
    def pid(self) -> int | None:
        """None: it was never started."""
        return None if self._started is None else self._started.pid

    def raylet(self) -> int | None:
        """None: there is none now."""
        found = [] if self.pid is None else processes_of(self.pid).get("raylet", [])
        self._came_up = self._came_up or bool(found)
        return found[0] if found else None

    @property
    def is_gone(self) -> bool:
        """And will not come by itself, as one that stood still until it was declared dead."""
        return self.raylet() is None and (
            self._came_up or self._started is None or self._started.poll() is not None
        )

    def start(self) -> None:
        """In the place of what may be left of the one before."""
        self.stop()
        self._came_up = False
        with self._log.open("ab") as log:
            self._started = subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        if self._started is None:
            return
        for one in [*family(self._started.pid), self._started]:
            with contextlib.suppress(psutil.Error):
                one.kill()
        self._started.wait()


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int = 96) -> Iterator[bool]:
    """`place` on a disk of its own, which can be filled; false where we may not mount one."""
    place.mkdir()
    options = f"size={megabytes}m,mode=700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)


def fill(place: Path) -> Path:
    """Take all room of the disk under `place`; the file to remove."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError as full:
            if full.errno != errno.ENOSPC:
                raise
    return ballast


class Faults:
    """`processes(kind)` finds those of one kind, by what the history calls them."""

    def __init__(
        self,
        processes: Callable[[str], Awaitable[dict[str, int]]],
        history: History,
        seed: int,
        *,
        postgres: Postgres | None,
        disk: Path | None,
        node: SecondNode | None,
    ) -> None:
        self._processes, self.history, self.dice = processes, history, random.Random(seed)
        self._postgres, self._disk, self._node = postgres, disk, node
        self._undo: list[tuple[float, Callable[[], None]]] = []
        self._stopped: set[int] = set()

    def kinds(self) -> dict[str, int]:
        found = {f"{how} {what}": share for what, share in KILLED.items() for how in ("kill", "stop")}
        if self._postgres is not None:
            found |= {"stop database": 1, "restart database": 1}
        if self._disk is not None:
            found["fill disk"] = 1
        if self._node is not None:
            found |= {"kill node": 1, "stop node": 1}
        return found

    async def inject(self, kind: str) -> bool:
        """Whether there was something to hit."""
        how, _, what = kind.partition(" ")
        if what == "database":
            return self._database(how)
        if what == "disk":
            assert self._disk is not None
            if not (self._disk / "ballast").exists():
                self._later(DISK_S, fill(self._disk).unlink)
                self.history.fault(kind)
            return True
        if what == "node":
            return self._second_node(how)
        found = await self._processes(what)
        if not found:
            return False
        name = self.dice.choice(sorted(found))
        return self._kill(name, found[name]) if how == "kill" else self._stop(name, found[name])

    def _kill(self, name: str, pid: int) -> bool:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.history.fault("kill", process=name)
        self.history.deaths.setdefault(name, time.monotonic())
        return True

    def _stop(self, name: str, pid: int) -> bool:
        if pid in self._stopped:
            return False
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        since = time.monotonic()
        self._stopped.add(pid)
        self.history.fault("stop", process=name)

        def go_on() -> None:
            self._stopped.discard(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            self.history.frozen.append((name, since, time.monotonic()))

        self._later(STOP_S, go_on)
        return True

    def _second_node(self, how: str) -> bool:
        """Its raylet; what it started ends with it, and a new node comes soon."""
        assert self._node is not None
        raylet, pid = self._node.raylet(), self._node.pid
        if raylet is None or pid is None or raylet in self._stopped:
            return False
        if how == "stop":
            return self._stop("node", raylet)
        for worker in processes_of(pid).get("worker", []):
            self.history.deaths.setdefault(str(worker), time.monotonic())
        if not self._kill("node", raylet):
            return False
        self._later(NODE_S, self._node.start)
        return True

    def _database(self, how: str) -> bool:
        assert self._postgres is not None
        processes = self._postgres.processes()
        if not processes or any(one.pid in self._stopped for one in processes):
            return False
        self.history.fault(f"{how} database")
        if how == "restart":
            self._postgres.stop()
            self._later(DATABASE_S, self._postgres.start)
            return True
        self._stopped |= {one.pid for one in processes}
        for one in processes:
            with contextlib.suppress(psutil.Error):
                one.suspend()

        def go_on() -> None:
            self._stopped.difference_update(one.pid for one in processes)
            for one in processes:
                with contextlib.suppress(psutil.Error):
                    one.resume()

        self._later(STOP_S, go_on)
        return True

    def _later(self, choices: tuple[float, ...], undo: Callable[[], None]) -> None:
        self._undo.append((time.monotonic() + self.dice.choice(choices), undo))

    def undo(self, *, all_of_it: bool = False) -> None:
        """What is due, or all."""
        now = time.monotonic()
        due = [undo for at, undo in self._undo if all_of_it or at <= now]
        self._undo = [] if all_of_it else [(at, undo) for at, undo in self._undo if at > now]
        for undo in due:
            undo()

    @property
    def is_under_way(self) -> bool:
        return bool(self._undo)
