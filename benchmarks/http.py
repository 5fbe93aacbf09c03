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
import signal
import statistics
import subprocess
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

from benchmarks.common import ROOT, arguments, finish, header, percentile, spread
from dspool_serve.ingress.haproxy import free_ports

PEERS = ("serve_default", "serve_haproxy", "fastapi")
SYSTEMS = ("dspool", *PEERS)
QUESTION = {"question": "How many founders does it take to change a pool?"}
PROGRAM = {"spec": {"signature": "question -> answer", "module": "Predict"}, "idempotent": True}
START_S = 300.0


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
        command = [sys.executable, "-m", "benchmarks.http_load", self.url, "--body", self.body]
        command += ["--connections", str(connections), "--seconds", str(seconds)]
        if requests is not None:
            command += ["--requests", str(requests)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=seconds + 300)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


@contextlib.contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process and all that it starts; ended by SIGTERM, and by SIGKILL what does not heed it."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Several clusters start on one machine, one after the other, beside those that run.
    environ["RAY_raylet_start_wait_time_s"] = "120"
    started = subprocess.Popen(
        command, cwd=ROOT, env=environ, text=True, stdin=subprocess.PIPE, start_new_session=True, **options
    )
    try:
        yield started
    finally:
        family = [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]
        assert started.stdin is not None
        started.stdin.close()
        started.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(family, timeout=20)
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()
        started.wait()


@contextlib.contextmanager
def dspool_up(directory: Path, settings: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """`dspool up` with these settings: its address and its process."""
    directory.mkdir()
    file = directory / "pool.yaml"  # JSON is YAML
    file.write_text(json.dumps({"init_timeout_s": START_S, **settings}))
    command = [sys.executable, "-m", "dspool.cli", "up", "--json", "--port", "0"]
    command += ["--config", str(file), "--state-dir", str(directory)]
    with process(command, stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        for line in service.stdout:
            said = json.loads(line)
            if said["event"] == "ready":
                break
            if said["event"] == "error":
                raise RuntimeError(said["message"])
        else:
            raise RuntimeError("dspool up ended before it was ready")
        yield str(said["url"]), service.pid


@contextlib.contextmanager
def dspool(directory: Path, config: dict[str, Any]) -> Iterator[Target]:
    """`dspool up` with one pool program `answer`."""
    with dspool_up(directory, {"programs": {"answer": PROGRAM}, **config}) as (address, pid):
        target = Target(f"{address}/v1/pools/default/programs/answer/execute", {"inputs": QUESTION}, pid)
        target.wait()
        yield target


@contextlib.contextmanager
def peer(kind: str, directory: Path) -> Iterator[Target]:
    directory.mkdir()
    port = free_ports(1)[0]
    with process([sys.executable, "-m", "benchmarks.http_peers", kind, str(port), str(directory)]) as served:
        target = Target(f"http://127.0.0.1:{port}/execute", QUESTION, served.pid)
        target.wait()
        yield target


@contextlib.contextmanager
def all_of(managers: dict[str, contextlib.AbstractContextManager[Target]]) -> Iterator[dict[str, Target]]:
    """All entered at once and left at once: starting and stopping is most of a short run."""
    with ThreadPoolExecutor(len(managers)) as threads:
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
    port = free_ports(1)[0]
    config = {
        "pool_size": 2,
        "slots_per_worker": 100,
        "max_queue": 2 * requests,
        "checkout_timeout_s": 120.0,
        "operation_timeout_s": 120.0,
        "lm_profiles": {
            "slow": {"model": "openai/slow", "endpoint": f"http://127.0.0.1:{port}/v1", "engine": "lm15"}
        },
        "default_lm": "slow",
    }
    model = [sys.executable, "-m", "dspool.testing.lm_server", "--port", str(port), "--latency", "1.0"]
    with (
        process(model, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
        dspool(directory, config) as target,
    ):
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


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    seconds, rounds = (1.0, 1) if options.quick else (5.0, 5)
    header("http: cheapest signature, 2 workers, offline engine, load generator on the same machine")
    directory = Path(tempfile.mkdtemp(prefix="dsb-", dir="/tmp"))
    systems = {"dspool": dspool(directory / "d", {"slots_per_worker": 64})}
    systems |= {kind: peer(kind, directory / str(number)) for number, kind in enumerate(PEERS)}
    slow = {"slow": slow_model(directory / "s", 1000)}
    try:
        # In a short run it is started with the others; in a full one nothing else runs beside it.
        with all_of(systems | slow if options.quick else systems) as targets:
            rows, cpu_us = compare({name: targets[name] for name in SYSTEMS}, seconds, rounds)
            slots = slots_200(targets["slow"], 1000, 1) if options.quick else None
        if slots is None:
            with all_of(slow) as targets:
                slots = slots_200(targets["slow"], 1000, 3)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    by = {(row["system"], row["connections"]): row for row in rows}
    ours = by["dspool", 32]
    ratios = {
        f"vs_{name}": round(ours["rps"] / by[name, 32]["rps"], 2) for name in PEERS if by[name, 32]["rps"]
    }
    print(
        f"  dspool at 32 connections: p50 {ours['p50_ms']} ms, p99 {ours['p99_ms']} ms, "
        f"{ours['rps'] / by['serve_default', 32]['rps']:.1f} times serve_default (to reach: 5), "
        f"{ratios['vs_serve_haproxy']} times serve_haproxy (1.2), {ratios['vs_fastapi']} times fastapi (1)\n"
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
