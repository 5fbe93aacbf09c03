"""Operations a second over HTTP, beside what the same DSPy program reaches behind other HTTP stacks.

One run in rounds: each system is started, measured and ended by itself, in turn, each round from another first one. The
cheapest program there is (`question -> answer`, Predict, an engine inside the process); the load generator is a process
on the same machine, pinned to one processor, and its own cost is printed. dspool is compared with each peer round by
round: a ratio, its 95 % interval, and a verdict.

- dspool: `dspool up`, 2 workers, one ingress process behind HAProxy.
- serve_default: Ray Serve as it comes, 2 replicas that run the program with `dspy.asyncify`.
- serve_haproxy: the same with Serve's HAProxy ingress.
- fastapi: what DSPy's guide on deployment shows: FastAPI, `dspy.asyncify`, 2 uvicorn workers.

Then `slots_200`: an LM that takes 1 s behind real HTTP, 200 slots, 1,000 requests at once, three times (once if quick).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks import http_load
from benchmarks.common import arguments, finish, header, load_processor, percentile, spread
from benchmarks.pools import INPUTS, PROGRAM, SPEC
from benchmarks.ratios import VERDICTS, Ratio, paired
from benchmarks.services import START_S, dspool_up, model_server, model_settings, process
from dspool_serve.ingress.haproxy import free_ports

TO_REACH = {"serve_default": 5.0, "serve_haproxy": 1.2, "fastapi": 1.0}
"""How many times a peer's requests a second dspool is to answer."""
SYSTEMS = ("dspool", *TO_REACH)
CONNECTIONS = (32, 1)
PARTS = (*SYSTEMS, "slots_200")


class Target:
    """One system: where it answers, what to send, and the process that all of it descends from."""

    def __init__(self, url: str, body: dict[str, Any], pid: int) -> None:
        self.url, self.body = url, json.dumps(body)
        self._root = psutil.Process(pid)

    def cpu_s(self) -> float:
        """Processor time that its processes have taken so far."""
        family = {one.pid for one in (self._root, *self._root.children(recursive=True))}
        sessions = {sid for pid in family if (sid := _session(pid)) is not None}
        total = 0.0
        for one in psutil.process_iter():
            # A forked worker descends from nobody, but is in the session of those that Ray started.
            if one.pid in family or _session(one.pid) in sessions:
                with contextlib.suppress(psutil.Error):
                    total += sum(one.cpu_times()[:2])
        return total

    def wait(self) -> None:
        until = time.monotonic() + START_S
        while True:
            try:
                asked = Request(self.url, self.body.encode(), {"content-type": "application/json"})
                with urlopen(asked, timeout=10) as answer:
                    answered = json.loads(answer.read())
                assert "answer" in answered["outputs"], answered
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def load(self, connections: int, seconds: float, requests: int | None = None) -> dict[str, Any]:
        return http_load.measure(
            self.url,
            self.body,
            connections=connections,
            seconds=seconds,
            requests=requests,
            limit_s=seconds + 300,
            processor=load_processor(),
        )


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


@contextlib.contextmanager
def dspool(directory: Path, config: dict[str, Any]) -> Iterator[Target]:
    """`dspool up` with one pool program `answer`."""
    programs = {PROGRAM: {"spec": SPEC, "idempotent": True}}
    with dspool_up(directory, {"programs": programs, **config}) as (address, pid):
        target = Target(f"{address}/v1/pools/default/programs/{PROGRAM}/execute", {"inputs": INPUTS}, pid)
        target.wait()
        yield target


@contextlib.contextmanager
def peer(kind: str, directory: Path) -> Iterator[Target]:
    directory.mkdir()
    port = free_ports(1)[0]
    server = [sys.executable, "-m", "benchmarks.studies.peers.servers", f"{kind}_stock"]
    with process([*server, str(port), str(directory), "{}"]) as served:
        body = {"workload": "cheapest", "inputs": INPUTS}
        target = Target(f"http://127.0.0.1:{port}/execute", body, served.pid)
        target.wait()
        yield target


System = Callable[[Path], contextlib.AbstractContextManager[Target]]
"""Starts it, in a directory of its own, and ends it."""


class Seen:
    """What one system did with so many connections, a value a round."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.latencies: list[float] = []
        self.errors = self.asked = 0
        self.cpu_s = self.load_cpu_s = 0.0

    def add(self, found: dict[str, Any], cpu_s: float) -> None:
        self.rates.append(found["statuses"].get("200", 0) / found["seconds"])
        self.latencies += found["latencies_ms"]
        self.errors += sum(n for status, n in found["statuses"].items() if status != "200")
        self.asked += sum(found["statuses"].values())
        self.cpu_s += cpu_s
        self.load_cpu_s += found["cpu_s"]


def compare(
    systems: dict[str, System], seconds: float, rounds: int, directory: Path
) -> dict[tuple[str, int], Seen]:
    """By system and connections."""
    seen: dict[tuple[str, int], Seen] = {}
    names = list(systems)
    for turn in range(rounds):
        first = turn % max(1, len(names))
        for number, name in enumerate(names[first:] + names[:first]):
            with systems[name](directory / f"{turn}{number}") as target:
                target.load(32, min(2.0, seconds))
                for connections in CONNECTIONS:
                    before = target.cpu_s()
                    found = target.load(connections, seconds)
                    seen.setdefault((name, connections), Seen()).add(found, target.cpu_s() - before)
    return seen


def rows_of(seen: dict[tuple[str, int], Seen]) -> list[dict[str, Any]]:
    for (name, connections), one in seen.items():
        print(
            f"  {name:14s} {connections:3d} connections: {spread(one.rates)} requests/s, the load generator took "
            f"{1e6 * one.load_cpu_s / max(1, one.asked):.0f} us of processor time a request",
            flush=True,
        )
    return [
        {
            "system": name,
            "connections": connections,
            "rps": round(statistics.median(one.rates), 1),
            "p50_ms": round(percentile(one.latencies, 0.50), 2),
            "p99_ms": round(percentile(one.latencies, 0.99), 2),
            "errors": one.errors,
        }
        for (name, connections), one in seen.items()
    ]


def standings(seen: dict[tuple[str, int], Seen]) -> list[tuple[int, str, Ratio]]:
    """dspool's requests a second over those of each peer, by connections."""
    return [
        (connections, name, ratio)
        for (name, connections), one in seen.items()
        if name != "dspool"
        and ("dspool", connections) in seen
        and (ratio := paired(seen["dspool", connections].rates, one.rates))
    ]


@contextlib.contextmanager
def slow_model(directory: Path, requests: int) -> Iterator[Target]:
    """200 slots, each operation taking 1 s of a model behind HTTP."""
    config = {
        "pool_size": 2,
        "slots_per_worker": 100,
        "max_queue": 2 * requests,
        "checkout_timeout_s": 120.0,
        "operation_timeout_s": 120.0,
    }
    with model_server(1.0) as port, dspool(directory, config | model_settings(port)) as target:
        yield target


def slots_200(target: Target, requests: int, rounds: int) -> dict[str, Any]:
    """`requests` at once, from opening the first connection to the last answer: ramp and end count."""
    target.load(200, 60.0, 200)
    runs = [target.load(requests, 120.0, requests) for _ in range(rounds)]
    answered = sum(found["statuses"].get("200", 0) for found in runs)
    rate = statistics.median(found["statuses"].get("200", 0) / found["seconds"] for found in runs)
    return {
        "requests": requests * rounds,
        "at_once": requests,
        "answered": answered,
        "failed": requests * rounds - answered,
        "seconds": round(statistics.median(found["seconds"] for found in runs), 2),
        "rps": round(rate, 1),
        "of_possible": round(rate / 200, 3),
    }


def told(stand: list[tuple[int, str, Ratio]]) -> None:
    for connections, name, ratio in stand:
        reach = f", to reach: {TO_REACH[name]:g}" if connections == 32 else ""
        print(
            f"  dspool with {connections} connections: {ratio.verdict} of {name}, {ratio} times as many{reach}"
        )


def figures(seen: dict[tuple[str, int], Seen]) -> dict[str, Any]:
    stand = standings(seen)
    told(stand)
    found = [ratio.verdict for _, _, ratio in stand]
    cpu_us = {
        name: round(one.cpu_s / max(1, one.asked) * 1e6)
        for (name, connections), one in seen.items()
        if connections == 32
    }
    load_us = {
        name: round(one.load_cpu_s / max(1, one.asked) * 1e6)
        for (name, connections), one in seen.items()
        if connections == 32
    }
    print(
        "  processor time of a request at 32 connections, all processes but the load generator: "
        + ", ".join(f"{name} {us} us" for name, us in cpu_us.items())
    )
    return {
        **{f"vs_{name}": round(ratio.value, 2) for connections, name, ratio in stand if connections == 32},
        "ratios": [
            {"connections": connections, "peer": name, **ratio.figures()}
            for connections, name, ratio in stand
        ],
        "verdicts": {verdict: found.count(verdict) for verdict in VERDICTS},
        "behind_on": [
            f"{connections} connections: {ratio} of {name}"
            for connections, name, ratio in stand
            if ratio.verdict == "behind"
        ],
        "cpu_us": cpu_us,
        "load_us": load_us,
    }


def main() -> int:
    options = arguments(__doc__ or "", PARTS).parse_args()
    seconds, rounds = (1.0, 1) if options.quick else (5.0, 5)
    header("http: cheapest signature, 2 workers, offline engine, load generator on the same machine")
    directory = Path(tempfile.mkdtemp(prefix="dsb-", dir="/tmp"))
    systems: dict[str, System] = {"dspool": partial(dspool, config={"slots_per_worker": 64})}
    systems |= {kind: partial(peer, kind) for kind in TO_REACH}
    systems = {name: system for name, system in systems.items() if name in options.only}
    slots: dict[str, Any] | None = None
    try:
        seen = compare(systems, seconds, rounds, directory)
        if "slots_200" in options.only:
            with slow_model(directory / "s", 1000) as target:
                slots = slots_200(target, 1000, 1 if options.quick else 3)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    rows = rows_of(seen)
    found = figures(seen)
    if slots is not None:
        print(
            f"  200 slots, LM of 1 s: {slots['answered']} of {slots['requests']} answered in {slots['seconds']} s, "
            f"{slots['rps']} a second, {slots['of_possible']:.0%} of what the slots allow (to reach: 90%)"
        )
    finish({"rows": rows, **found, "slots_200": slots, "rounds": rounds}, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
