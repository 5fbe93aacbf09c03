"""The systems of `benchmarks.peers` as they are started and driven. Whatever a system does, the run goes on: one that
does not start, fails or hangs is told as that, and nothing here waits without an end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from urllib.request import Request, urlopen

from benchmarks import http_load
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

HANDLES = {
    "ray": ("dspool", "actor_pool", "serve_handle"),
    "process_pool": ("process_pool",),
    "taskiq": ("taskiq_redis",),
}
SERVERS = ("serve_default", "serve_haproxy", "fastapi_asyncify", "fastapi_acall", "litserve")
OPEN_CONNECTIONS = 512
START_LIMIT_S = 180.0
AT_ONCE = 2
"""Starts: each keeps a processor busy, and Ray gives up a node that is not there after 30 s."""
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
            # The connections of an open loop last no longer than the run: nothing to leave out.
            "latencies_ms": found["latencies_ms"],
        }


class Standing:
    """The systems by name and interface; those that do not stand, with the reason."""

    def __init__(self) -> None:
        self.systems: dict[tuple[str, str], Any] = {}
        self.broken: dict[tuple[str, str], str] = {}
        self._in_a_row: dict[tuple[str, str], int] = {}

    def all(self) -> list[tuple[str, str]]:
        return [*self.systems, *(one for one in self.broken if one not in self.systems)]

    def measure(self, one: tuple[str, str], cell: Cell, seconds: float) -> dict[str, Any]:
        """What was taken, or `{"error": why}`."""
        if one in self.broken:
            return {"error": self.broken[one]}
        try:
            taken: dict[str, Any] = self.systems[one].measure(one[0], cell, seconds)
        except Failed as failed:
            count = self._in_a_row[one] = self._in_a_row.get(one, 0) + 1
            if count == FAILURES:
                self.broken[one] = f"left alone after {count} failures in a row, the last: {failed}"
            return {"error": str(failed)}
        self._in_a_row[one] = 0
        return taken


@contextlib.contextmanager
def standing(directory: Path, wanted: set[str]) -> Iterator[Standing]:
    """All systems; some are started, and all are ended, side by side."""
    found = Standing()
    with (
        contextlib.ExitStack() as last,
        ThreadPoolExecutor(AT_ONCE) as starting,
        ThreadPoolExecutor(16) as ending,
    ):
        # Ports of one call cannot be the same one twice.
        free = free_ports(len(LATENCIES) + len(SERVERS))
        ports = dict(zip(LATENCIES, free, strict=False))
        for name, port in ports.items():
            last.enter_context(model_server(LATENCIES[name], port))
        starts: list[tuple[list[tuple[str, str]], contextlib.ExitStack, Callable[..., Any]]] = []
        for kind, names in HANDLES.items():
            if wanted & set(names):
                which = [
                    (name, "queue" if kind == "taskiq" else "handle") for name in names if name in wanted
                ]
                starts.append((which, contextlib.ExitStack(), _start_handles(kind, directory, ports)))
        for kind, port in zip(SERVERS, free[len(LATENCIES) :], strict=True):
            if kind in wanted:
                starts.append(
                    ([(kind, "http")], contextlib.ExitStack(), _start_server(kind, port, directory, ports))
                )
        if "dspool_http" in wanted:
            starts.append(([("dspool", "http")], contextlib.ExitStack(), _start_dspool(directory, ports)))
        try:
            for which, _, under_way in [
                (which, stack, starting.submit(go, stack)) for which, stack, go in starts
            ]:
                try:
                    system = under_way.result()
                except Exception as failed:
                    found.broken |= dict.fromkeys(which, f"did not start: {failed or type(failed).__name__}")
                else:
                    found.systems |= dict.fromkeys(which, system)
            yield found
        finally:
            starting.shutdown(cancel_futures=True)
            list(ending.map(lambda start: start[1].close(), starts))


def _start_handles(kind: str, directory: Path, ports: dict[str, int]) -> Callable[..., Handles]:
    def start(running: contextlib.ExitStack) -> Handles:
        command = [sys.executable, "-m", "benchmarks.studies.peers.handles", kind]
        command += [str(directory / kind[0]), json.dumps(ports)]
        driven = Handles(running.enter_context(process(command, stdout=subprocess.PIPE)))
        driven.ready()
        return driven

    return start


def _start_server(kind: str, port: int, directory: Path, ports: dict[str, int]) -> Callable[..., Server]:
    def start(running: contextlib.ExitStack) -> Server:
        place = directory / str(SERVERS.index(kind))  # short: sockets are made below it
        place.mkdir()
        command = [sys.executable, "-m", "benchmarks.studies.peers.servers", kind, str(port)]
        started = running.enter_context(process([*command, str(place), json.dumps(ports)]))
        served = Server(f"http://127.0.0.1:{port}", pool=False)
        served.ready(started)
        return served

    return start


def _start_dspool(directory: Path, ports: dict[str, int]) -> Callable[..., Server]:
    def start(running: contextlib.ExitStack) -> Server:
        address, _ = running.enter_context(dspool_up(directory / "d", dspool_settings(ports)))
        served = Server(address, pool=True)
        served.ready()
        return served

    return start
