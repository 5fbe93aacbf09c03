"""Would it pay if workers answered HTTP themselves? The figures of ADR 12.

    python -m benchmarks.studies.one_hop.study [--json] [--quick]

Two systems in turn, two workers each, HAProxy in front of both:

- two_hops: `dspool up`: an ingress process with the pool's queue, a connection to each worker.
- one_hop: the prototype in `worker.py`: two processes with ingress and worker in one, no queue for all.

Of each load: requests a second, and processor time of all processes a request. Then what it costs: `held` is how many
of a thousand requests for the cheapest program take more than half a second while somebody asks, again and again, for
one that keeps its event loop for a second; `killed` is how many requests failed when one of the workers was killed
under load.
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
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks.common import arguments, finish, header
from benchmarks.http import Target
from benchmarks.processes import processes_of
from benchmarks.ratios import paired
from benchmarks.services import dspool_up, model_server, process
from benchmarks.studies.peers.workloads import LATENCIES, QUESTION, WORKERS, dspool_settings
from dspool_serve.ingress.haproxy import binary, free_ports

LOADS = (("noop", 1), ("noop", 32), ("cheapest", 1), ("cheapest", 32), ("lm_50ms", 64))
BLOCKING = "blocking"
_HAPROXY = """
global
  nbthread 2
  maxconn 4096
defaults
  mode http
  option http-keep-alive
  http-reuse always
  timeout connect 5s
  timeout client 600s
  timeout server 600s
frontend all
  bind 127.0.0.1:{port}
  default_backend workers
backend workers
  balance leastconn
  option redispatch
  retries 3
"""


class System:
    """One of the two while it runs."""

    def __init__(self, address: str, roots: list[int], workers: Callable[[], list[int]]) -> None:
        """`roots` are the processes that all others descend from."""
        self.address, self.roots, self.workers = address, roots, workers

    def load(self, program: str, connections: int, seconds: float) -> dict[str, Any]:
        return self._target(program, self.roots[0]).load(connections, seconds)

    def cpu_s(self) -> float:
        """Processor time of all of its processes so far."""
        return sum(self._target("noop", pid).cpu_s() for pid in self.roots)

    def _target(self, program: str, pid: int) -> Target:
        inputs = {"question": QUESTION} if program in ("cheapest", *LATENCIES) else {}
        return Target(f"{self.address}/v1/pools/default/programs/{program}/execute", {"inputs": inputs}, pid)


def settings(port: int) -> dict[str, Any]:
    made = dspool_settings({"lm_50ms": port})
    made["programs"][BLOCKING] = {"import_path": "benchmarks.modules:Blocking"}
    return made


@contextlib.contextmanager
def two_hops(directory: Path, config: dict[str, Any]) -> Iterator[System]:
    with dspool_up(directory, config) as (address, pid):
        yield System(address, [pid], lambda: processes_of(pid)["worker"])


@contextlib.contextmanager
def one_hop(directory: Path, config: dict[str, Any]) -> Iterator[System]:
    directory.mkdir()
    ports = free_ports(WORKERS + 1)
    servers = "".join(f"  server w{port} 127.0.0.1:{port} check\n" for port in ports[1:])
    file = directory / "haproxy.cfg"
    file.write_text(_HAPROXY.format(port=ports[0]) + servers)
    with contextlib.ExitStack() as stack:
        pids = []
        for port in ports[1:]:
            place = directory / str(port)
            place.mkdir()
            command = [sys.executable, "-m", "benchmarks.studies.one_hop.worker"]
            command += [str(port), str(place), json.dumps(config)]
            started = stack.enter_context(process(command, stdout=subprocess.PIPE))
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            pids.append(started.pid)
        proxy = binary()
        assert proxy is not None
        in_front = stack.enter_context(process([proxy, "-db", "-f", str(file)]))
        yield System(f"http://127.0.0.1:{ports[0]}", [*pids, in_front.pid], lambda: pids)


SYSTEMS = {"two_hops": two_hops, "one_hop": one_hop}


def held(system: System, seconds: float) -> float:
    """Of the cheapest program's answers, how many in a thousand took more than half a second."""
    blocking = threading.Thread(target=system.load, args=(BLOCKING, 1, seconds))
    blocking.start()
    taken = system.load("noop", 16, seconds)["latencies_ms"]
    blocking.join()
    return 1e3 * sum(one > 500 for one in taken) / len(taken)


def killed(system: System, seconds: float) -> int:
    """Requests that failed."""
    victim = system.workers()[0]
    timer = threading.Timer(seconds / 2, os.kill, (victim, signal.SIGKILL))
    timer.start()
    found = system.load("noop", 16, seconds)
    timer.join()
    return sum(number for status, number in found["statuses"].items() if status != "200")


def study(rounds: int, seconds: float, directory: Path) -> dict[str, Any]:
    rates: dict[tuple[str, str], list[float]] = {}
    spent: dict[tuple[str, str], list[float]] = {}
    price: dict[str, dict[str, list[float]]] = {name: {"held": [], "killed": []} for name in SYSTEMS}
    with model_server(LATENCIES["lm_50ms"]) as port:
        for turn in range(rounds):
            for name in list(SYSTEMS)[:: 1 if turn % 2 == 0 else -1]:
                with SYSTEMS[name](directory / f"{name}{turn}", settings(port)) as system:
                    for program, connections in LOADS:
                        system.load(program, connections, min(2.0, seconds))
                        before = system.cpu_s()
                        found = system.load(program, connections, seconds)
                        answered = found["statuses"].get("200", 0)
                        load = f"{program} {connections}"
                        rates.setdefault((name, load), []).append(answered / found["seconds"])
                        spent.setdefault((name, load), []).append(
                            (system.cpu_s() - before) / max(1, answered)
                        )
                    price[name]["held"].append(held(system, max(4.0, seconds)))
                    price[name]["killed"].append(killed(system, max(4.0, seconds)))
    return figures(rates, spent, price)


def figures(
    rates: dict[tuple[str, str], list[float]],
    spent: dict[tuple[str, str], list[float]],
    price: dict[str, dict[str, list[float]]],
) -> dict[str, Any]:
    rows = []
    for program, connections in LOADS:
        load = f"{program} {connections}"
        row: dict[str, Any] = {"load": load}
        for name in SYSTEMS:
            row[f"{name}_rps"] = round(statistics.median(rates[name, load]), 1)
            row[f"{name}_cpu_us"] = round(1e6 * statistics.median(spent[name, load]))
        ratio = paired(rates["one_hop", load], rates["two_hops", load])
        row["ratio"] = None if ratio is None else ratio.figures()
        rows.append(row)
        print(
            f"  {load:12s} two hops {row['two_hops_rps']:8.1f}/s and {row['two_hops_cpu_us']:5d} us, "
            f"one hop {row['one_hop_rps']:8.1f}/s and {row['one_hop_cpu_us']:5d} us: {ratio} times as many",
            flush=True,
        )
    told = {
        name: {
            "held_of_1000": round(statistics.median(found["held"]), 2),
            "killed_failed": [int(one) for one in found["killed"]],
        }
        for name, found in price.items()
    }
    for name, one in told.items():
        print(
            f"  {name}: {one['held_of_1000']} of 1,000 others took over 0.5 s beside a blocking program; "
            f"{one['killed_failed']} requests failed as a worker was killed"
        )
    return {"rows": rows, "price": told}


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    rounds, seconds = (1, 1.0) if options.quick else (5, 4.0)
    header("one hop: workers that answer HTTP themselves, beside an ingress process and workers")
    directory = Path(tempfile.mkdtemp(prefix="dsb-", dir="/tmp"))
    began = time.monotonic()
    try:
        result = study(rounds, seconds, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    finish(
        {**result, "rounds": rounds, "minutes": round((time.monotonic() - began) / 60, 1)},
        as_json=options.json,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
