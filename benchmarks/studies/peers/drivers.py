"""The systems of `benchmarks.peers` as each is started, driven and ended by itself. Whatever a system does, the run
goes on: one that does not start, fails or hangs is told as that, and nothing here waits without an end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from urllib.request import Request, urlopen

from benchmarks import http_load
from benchmarks.common import load_processor
from benchmarks.services import dspool_up, model_server, process
from benchmarks.studies.peers.abilities import ABILITIES
from benchmarks.studies.peers.tables import Cell
from benchmarks.studies.peers.workloads import (
    LATENCIES,
    SESSIONS,
    SIGNATURE,
    SLOW_EVERY,
    dspool_settings,
    inputs_of,
)
from dspool_serve.ingress.haproxy import free_ports

HANDLES = ("dspool", "actor_pool", "serve_handle", "process_pool", "taskiq_redis")
SERVERS = ("serve_default", "serve_haproxy", "fastapi_asyncify", "fastapi_acall", "litserve")
OPEN_CONNECTIONS = 512
START_LIMIT_S = 180.0
SETTLE_S = 3.0
"""After its start: what a system still loads belongs to no cell."""
CELL_LIMIT_S = 45.0
"""For what was begun in a cell to end, beyond the time of the cell itself."""
FAILURES = 2
"""In a row, until a system is left alone."""


class Failed(Exception):
    """A system did not do what it was asked; says what it did instead."""


class Handles:
    """A process that calls systems from Python."""

    def __init__(self, started: subprocess.Popen[str]) -> None:
        assert started.stdin is not None
        self._say = started.stdin
        self._heard: SimpleQueue[str | None] = SimpleQueue()
        Thread(target=self._listen, args=(started,), daemon=True).start()
        self._gone = ""

    def _listen(self, started: subprocess.Popen[str]) -> None:
        assert started.stdout is not None
        with contextlib.suppress(ValueError):  # closed under us at the end
            for line in started.stdout:
                self._heard.put(line)
        self._heard.put(None)

    def ready(self, limit_s: float = START_LIMIT_S) -> list[str]:
        return list(self._answer(limit_s)["ready"])

    def measure(self, system: str, cell: Cell, seconds: float) -> dict[str, Any]:
        if self._gone:
            raise Failed(self._gone)
        try:
            self._say.write(json.dumps({"system": system, **cell._asdict(), "seconds": seconds}) + "\n")
            self._say.flush()
        except OSError as broken:
            raise Failed("its process ended") from broken
        found = self._answer(seconds + CELL_LIMIT_S)
        if "error" in found:
            raise Failed(found["error"])
        return found

    def _answer(self, limit_s: float) -> dict[str, Any]:
        until = time.monotonic() + limit_s
        while True:
            try:
                line = self._heard.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                # What it answers later would be taken for the answer to another question.
                self._gone = f"no answer within {limit_s:g} s"
                raise Failed(self._gone) from None
            if line is None:
                self._gone = "its process ended"
                raise Failed(self._gone)
            with contextlib.suppress(ValueError):  # libraries print, too
                found = json.loads(line)
                if isinstance(found, dict):
                    return found


class Server:
    """A system that answers HTTP: where, and with which body for which workload."""

    def __init__(self, url: str, *, pool: bool) -> None:
        self._url, self._pool = url, pool
        self._warm: set[str] = set()

    def _asked(self, workload: str, number: int) -> str:
        inputs = inputs_of(workload, number)
        return json.dumps({"inputs": inputs} if self._pool else {"workload": workload, "inputs": inputs})

    def _place(self, workload: str) -> str:
        if not self._pool:
            return f"{self._url}/execute"
        if workload == "sessions":
            return f"{self._url}/v1/pools/default/sessions/{{session}}/programs/p/execute"
        return f"{self._url}/v1/pools/default/programs/{workload}/execute"

    def ready(self, started: subprocess.Popen[str] | None = None, limit_s: float = START_LIMIT_S) -> None:
        until = time.monotonic() + limit_s
        while True:
            try:
                self._post("POST", self._place("cheapest"), self._asked("cheapest", 0))
                break
            except OSError as refused:
                if started is not None and started.poll() is not None:
                    raise Failed(f"its process ended with {started.returncode}") from refused
                if time.monotonic() > until:
                    raise Failed(f"no answer within {limit_s:g} s of its start: {refused}") from refused
                time.sleep(0.2)
        if self._pool:
            spec = json.dumps({"spec": {"signature": SIGNATURE}})
            with ThreadPoolExecutor(8) as threads:
                places = [f"{self._url}/v1/pools/default/sessions/s{n}/programs/p" for n in range(SESSIONS)]
                list(threads.map(lambda place: self._post("PUT", place, spec), places))

    def _post(self, method: str, url: str, body: str) -> None:
        asked = Request(url, body.encode(), {"content-type": "application/json"}, method=method)
        with urlopen(asked, timeout=30) as answer:
            answer.read()

    def measure(self, system: str, cell: Cell, seconds: float) -> dict[str, Any]:
        workload = cell.workload
        if workload == "sessions" and not self._pool:
            return {"note": ABILITIES[system]["sessions"]}
        try:
            self._warm_up(workload)
            return self._load(cell, seconds)
        except subprocess.TimeoutExpired as late:
            raise Failed(f"no end within {late.timeout:g} s") from late
        except (OSError, subprocess.CalledProcessError, ValueError) as failed:
            raise Failed(str(failed)) from failed

    def _warm_up(self, workload: str) -> None:
        """A few of each kind, so that each of two processes has done one of them."""
        if workload not in self._warm and workload != "sessions":
            for _ in range(4):
                self._post("POST", self._place(workload), self._asked(workload, 0))
            self._warm.add(workload)

    def _load(self, cell: Cell, seconds: float) -> dict[str, Any]:
        workload = cell.workload
        found = http_load.measure(
            self._place(workload),
            self._asked(workload, 0),
            connections=cell.concurrency or OPEN_CONNECTIONS,
            seconds=seconds,
            limit_s=seconds + CELL_LIMIT_S,
            processor=load_processor(),
            rate=cell.rate,
            sessions=SESSIONS if workload == "sessions" else 1,
            every=SLOW_EVERY if workload == "one_slow" else 0,
            instead=self._asked(workload, SLOW_EVERY - 1) if workload == "one_slow" else "",
        )
        done = found["statuses"].get("200", 0)
        return {
            "done": done,
            "failed": sum(found["statuses"].values()) - done,
            "seconds": found["seconds"],
            "load_cpu_s": found["cpu_s"],
            # The connections of an open loop last no longer than the run: nothing to leave out.
            "latencies_ms": found["latencies_ms"],
        }


class Standing:
    """The systems that stand, by name and interface; those that are not asked any more, with the reason."""

    def __init__(self) -> None:
        self.systems: dict[tuple[str, str], Any] = {}
        self.broken: dict[tuple[str, str], str] = {}
        self._in_a_row: dict[tuple[str, str], int] = {}

    def measure(self, one: tuple[str, str], cell: Cell, seconds: float) -> dict[str, Any]:
        """What was taken, or `{"error": why}`."""
        if one in self.broken:
            return {"error": self.broken[one]}
        try:
            taken: dict[str, Any] = self.systems[one].measure(one[0], cell, seconds)
        except Failed as failed:
            self.failed(one, str(failed))
            return {"error": str(failed)}
        self._in_a_row[one] = 0
        return taken

    def failed(self, one: tuple[str, str], why: str) -> None:
        count = self._in_a_row[one] = self._in_a_row.get(one, 0) + 1
        if count == FAILURES:
            self.broken[one] = f"left alone after {count} failures in a row, the last: {why}"

    def cells(
        self, one: tuple[str, str], cells: list[Cell], seconds: float, directory: Path, ports: dict[str, int]
    ) -> list[dict[str, Any]]:
        """Start it, measure each cell, end it: what was taken of each, or why not."""
        taken: list[dict[str, Any]] = []
        if one not in self.broken:
            try:
                with started(one, directory, ports) as system:
                    time.sleep(min(SETTLE_S, seconds))
                    self.systems[one] = system
                    taken = [self.measure(one, cell, seconds) for cell in cells]
            except Exception as failed:
                self.failed(one, f"did not start: {failed or type(failed).__name__}")
                taken += [{"error": f"did not start: {failed}"}] * (len(cells) - len(taken))
            finally:
                self.systems.pop(one, None)
        return taken or [{"error": self.broken[one]}] * len(cells)


def interface_of(name: str) -> tuple[str, str]:
    """How `benchmarks.peers --only NAME` is a system: its name and its interface."""
    if name == "dspool_http":
        return "dspool", "http"
    return name, "queue" if name == "taskiq_redis" else "handle" if name in HANDLES else "http"


@contextlib.contextmanager
def models() -> Iterator[dict[str, int]]:
    """The ports of the models behind HTTP, which all systems ask. They cost nothing while nobody does."""
    ports = dict(zip(LATENCIES, free_ports(len(LATENCIES)), strict=True))
    with contextlib.ExitStack() as running:
        for name, port in ports.items():
            running.enter_context(model_server(LATENCIES[name], port))
        yield ports


@contextlib.contextmanager
def started(one: tuple[str, str], directory: Path, ports: dict[str, int]) -> Iterator[Any]:
    """One system, ready, and nothing else beside it. `directory` is its own, and short: sockets are made below it."""
    name, interface = one
    directory.mkdir()
    if one == ("dspool", "http"):
        with dspool_up(directory, dspool_settings(ports)) as (address, _):
            served = Server(address, pool=True)
            served.ready()
            yield served
    elif interface == "http":
        port = free_ports(1)[0]
        command = [sys.executable, "-m", "benchmarks.studies.peers.servers", name, str(port)]
        with process([*command, str(directory), json.dumps(ports)]) as running:
            served = Server(f"http://127.0.0.1:{port}", pool=False)
            served.ready(running)
            yield served
    else:
        command = [sys.executable, "-m", "benchmarks.studies.peers.handles", name]
        command += [str(directory), json.dumps(ports)]
        with process(command, stdout=subprocess.PIPE) as running:
            driven = Handles(running)
            driven.ready()
            yield driven
