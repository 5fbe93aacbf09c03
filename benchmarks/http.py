"""Operations a second over HTTP, beside what the same DSPy program reaches behind other HTTP stacks.

One run, the systems in turn, several rounds, the cheapest program there is (`question -> answer`, Predict, an engine
inside the process), the load generator on the same machine in a process of its own:

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
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks import http_load
from benchmarks.common import arguments, finish, header, percentile, spread
from benchmarks.pools import INPUTS, PROGRAM, SPEC
from benchmarks.services import START_S, dspool_up, model_server, model_settings, process
from dspool_serve.ingress.haproxy import free_ports

TO_REACH = {"serve_default": 5.0, "serve_haproxy": 1.2, "fastapi": 1.0}
"""How many times a peer's requests a second dspool is to answer."""
SYSTEMS = ("dspool", *TO_REACH)
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


@contextlib.contextmanager
def all_of(managers: dict[str, contextlib.AbstractContextManager[Target]]) -> Iterator[dict[str, Target]]:
    """All entered at once and left at once: starting and stopping is most of a short run."""
    with ThreadPoolExecutor(max(1, len(managers))) as threads:
        entering = {name: threads.submit(manager.__enter__) for name, manager in managers.items()}
        wait(entering.values())
        try:
            yield {name: entered.result() for name, entered in entering.items()}
        finally:
            entered = [managers[name] for name, one in entering.items() if one.exception() is None]
            list(threads.map(lambda manager: manager.__exit__(None, None, None), entered))


def compare(
    targets: dict[str, Target], seconds: float, rounds: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows, and the processor time of a request at 32 connections in microseconds, by system."""
    rates: dict[tuple[str, int], list[float]] = {}
    latencies: dict[tuple[str, int], list[float]] = {}
    errors: Counter[tuple[str, int]] = Counter()
    cpu_s: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for target in targets.values():
        target.load(32, min(2.0, seconds))
    for _ in range(rounds):
        for name, target in targets.items():
            for connections in (32, 1):
                before = target.cpu_s()
                found = target.load(connections, seconds)
                if connections == 32:
                    cpu_s[name] += target.cpu_s() - before
                    asked[name] += sum(found["statuses"].values())
                key = name, connections
                rates.setdefault(key, []).append(found["statuses"].get("200", 0) / found["seconds"])
                latencies.setdefault(key, []).extend(found["latencies_ms"])
                errors[key] += sum(n for status, n in found["statuses"].items() if status != "200")
    for (name, connections), values in rates.items():
        print(f"  {name:14s} {connections:3d} connections: {spread(values)} requests/s", flush=True)
    rows = [
        {
            "system": name,
            "connections": connections,
            "rps": round(statistics.median(values), 1),
            "p50_ms": round(percentile(latencies[name, connections], 0.50), 2),
            "p99_ms": round(percentile(latencies[name, connections], 0.99), 2),
            "errors": errors[name, connections],
        }
        for (name, connections), values in rates.items()
    ]
    return rows, {name: round(cpu_s[name] / max(1, asked[name]) * 1e6) for name in targets}


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


def told(rows: list[dict[str, Any]], ratios: dict[str, float]) -> None:
    for row in rows:
        if (row["system"], row["connections"]) == ("dspool", 32):
            print(f"  dspool at 32 connections: p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms")
    for name, ratio in ratios.items():
        print(
            f"  dspool {ratio} times {name.removeprefix('vs_')} (to reach: {TO_REACH[name.removeprefix('vs_')]:g})"
        )


def main() -> int:
    options = arguments(__doc__ or "", PARTS).parse_args()
    seconds, rounds = (1.0, 1) if options.quick else (5.0, 5)
    header("http: cheapest signature, 2 workers, offline engine, load generator on the same machine")
    directory = Path(tempfile.mkdtemp(prefix="dsb-", dir="/tmp"))
    systems = {"dspool": dspool(directory / "d", {"slots_per_worker": 64})}
    systems |= {kind: peer(kind, directory / str(number)) for number, kind in enumerate(TO_REACH)}
    systems = {name: system for name, system in systems.items() if name in options.only}
    slow = {"slow": slow_model(directory / "s", 1000)} if "slots_200" in options.only else {}
    slots: dict[str, Any] | None = None
    try:
        # In a short run it is started with the others; in a full one nothing else runs beside it.
        with all_of(systems | slow if options.quick else systems) as targets:
            rows, cpu_us = compare({name: targets[name] for name in systems}, seconds, rounds)
            if slow and options.quick:
                slots = slots_200(targets["slow"], 1000, 1)
        if slow and not options.quick:
            with all_of(slow) as targets:
                slots = slots_200(targets["slow"], 1000, 3)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    rps = {row["system"]: row["rps"] for row in rows if row["connections"] == 32}
    ratios = {
        f"vs_{name}": round(rps["dspool"] / rps[name], 2)
        for name in TO_REACH
        if rps.get(name) and "dspool" in rps
    }
    told(rows, ratios)
    if slots is not None:
        print(
            f"  200 slots, LM of 1 s: {slots['answered']} of {slots['requests']} answered in {slots['seconds']} s, "
            f"{slots['rps']} a second, {slots['of_possible']:.0%} of what the slots allow (to reach: 90%)"
        )
    print(
        "  processor time of a request at 32 connections, all processes but the load generator: "
        + ", ".join(f"{name} {us} us" for name, us in cpu_us.items())
    )
    finish(
        {"rows": rows, **ratios, "slots_200": slots, "cpu_us": cpu_us, "rounds": rounds}, as_json=options.json
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
