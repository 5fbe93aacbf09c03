"""What dspool costs and gives beside what else one would serve a DSPy program with; one run, the systems in turn.

    python -m benchmarks.peers [--json] [--quick | --full] [--only SYSTEM,...]

Every system runs the same programs (`peer_systems/programs.py`) on the same engines, in two processes that work,
driven by one process that sends. The peers use DSPy as it comes; `benchmarks.throughput` also has an ActorPool with
dspool's own faster adapter. A closed loop has so many callers that each wait for their answer; in an open loop
operations come at a fixed rate and latency counts from when each was due. What a system cannot do is a row without
figures that says why. All systems stand idle beside the one that is measured: what that costs is measured first.
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
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import psutil

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks.common import ROOT, arguments, finish, header, percentile
from benchmarks.http import START_S, dspool_up, process
from benchmarks.peer_systems.facts import ABILITIES
from benchmarks.peer_systems.programs import (
    LATENCIES,
    SESSIONS,
    SIGNATURE,
    SLOW_EVERY,
    WORKLOADS,
    dspool_settings,
    inputs_of,
)
from dspool_serve.haproxy import free_ports

HANDLES = {
    "ray": ("dspool", "actor_pool", "serve_handle"),
    "process_pool": ("process_pool",),
    "taskiq": ("taskiq_redis",),
}
SERVERS = ("serve_default", "serve_haproxy", "fastapi_asyncify", "fastapi_acall", "litserve")
OPEN_CONNECTIONS = 512


class Cell(NamedTuple):
    workload: str
    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.workload}, " + (
            f"{self.concurrency} callers" if self.rate is None else f"{self.rate:g}/s"
        )


QUICK = [Cell("cheapest", 16), Cell("sessions", 16), Cell("cheapest", rate=50)]
USUAL = [
    Cell("noop", 32),
    Cell("cheapest", 1),
    Cell("cheapest", 32),
    Cell("cheapest", 128),
    Cell("lm_5ms", 32),
    Cell("lm_50ms", 64),
    Cell("cpu_5ms", 8),
    Cell("none_slow", 32),
    Cell("one_slow", 32),
    Cell("sessions", 32),
    Cell("cheapest", rate=200),
]
FULL = [
    *(Cell(workload, concurrency) for workload in WORKLOADS for concurrency in (1, 8, 32, 128, 256)),
    *(
        Cell(workload, rate=rate)
        for workload in ("cheapest", "lm_50ms", "one_slow")
        for rate in (100, 200, 500)
    ),
]


class Handles:
    """A process that calls systems from Python."""

    def __init__(self, started: subprocess.Popen[str]) -> None:
        assert started.stdin is not None
        assert started.stdout is not None
        self._say, self._hear = started.stdin, started.stdout

    def ready(self) -> list[str]:
        return list(self._answer()["ready"])

    def measure(self, system: str, cell: Cell, seconds: float) -> dict[str, Any]:
        self._say.write(json.dumps({"system": system, **cell._asdict(), "seconds": seconds}) + "\n")
        self._say.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        for line in self._hear:
            with contextlib.suppress(ValueError):  # libraries print, too
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError("a driver of peers ended; see above")


class Server:
    """A system that answers HTTP: where, and with which body for which workload."""

    def __init__(self, url: str, *, pool: bool) -> None:
        self._url, self._pool = url, pool

    def _asked(self, workload: str, number: int) -> str:
        inputs = inputs_of(workload, number)
        return json.dumps({"inputs": inputs} if self._pool else {"workload": workload, "inputs": inputs})

    def _place(self, workload: str) -> str:
        if not self._pool:
            return f"{self._url}/execute"
        if workload == "sessions":
            return f"{self._url}/v1/pools/default/sessions/{{session}}/programs/p/execute"
        return f"{self._url}/v1/pools/default/programs/{workload}/execute"

    def ready(self) -> None:
        until = time.monotonic() + START_S
        while True:
            try:
                self._post("POST", self._place("cheapest"), self._asked("cheapest", 0))
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
        if self._pool:
            spec = json.dumps({"spec": {"signature": SIGNATURE}})
            for number in range(SESSIONS):
                self._post("PUT", f"{self._url}/v1/pools/default/sessions/s{number}/programs/p", spec)

    def _post(self, method: str, url: str, body: str) -> None:
        asked = Request(url, body.encode(), {"content-type": "application/json"}, method=method)
        with urlopen(asked, timeout=30) as answer:
            answer.read()

    def measure(self, system: str, cell: Cell, seconds: float) -> dict[str, Any]:
        workload = cell.workload
        if workload == "sessions" and not self._pool:
            return {"note": ABILITIES[system]["sessions"]}
        command = [sys.executable, "-m", "benchmarks.http_load", self._place(workload)]
        command += ["--body", self._asked(workload, 0), "--seconds", str(seconds)]
        command += ["--connections", str(cell.concurrency or OPEN_CONNECTIONS)]
        if cell.rate is not None:
            command += ["--rate", str(cell.rate)]
        if workload == "sessions":
            command += ["--sessions", str(SESSIONS)]
        if workload == "one_slow":
            command += ["--every", str(SLOW_EVERY), "--instead", self._asked(workload, SLOW_EVERY - 1)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=seconds + 300)
        found = json.loads(ended.stdout)
        done = found["statuses"].get("200", 0)
        return {
            "done": done,
            "failed": sum(found["statuses"].values()) - done,
            "seconds": found["seconds"],
            # The connections of an open loop last no longer than the run: nothing to leave out.
            "latencies_ms": found["latencies_ms"],
        }


def start(directory: Path, wanted: set[str], running: contextlib.ExitStack) -> dict[tuple[str, str], Any]:
    """All systems, started side by side; by name and interface."""
    ports = dict(zip(LATENCIES, free_ports(len(LATENCIES)), strict=True))
    for name, port in ports.items():
        model = [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-m", "dspool.testing.lm_server"]
        model += ["--port", str(port)]
        running.enter_context(process([*model, "--latency", str(LATENCIES[name])], stdout=subprocess.DEVNULL))
    found: dict[tuple[str, str], Any] = {}
    drivers = {}
    for kind, names in HANDLES.items():
        if wanted & set(names):
            command = [sys.executable, "-m", "benchmarks.peer_systems.handles", kind]
            command += [str(directory / kind), json.dumps(ports)]
            drivers[kind] = running.enter_context(process(command, stdout=subprocess.PIPE))
    servers = {}
    for kind in [kind for kind in SERVERS if kind in wanted]:
        port = free_ports(1)[0]
        (directory / kind).mkdir()
        command = [sys.executable, "-m", "benchmarks.peer_systems.servers", kind, str(port)]
        running.enter_context(process([*command, str(directory / kind), json.dumps(ports)]))
        servers[kind] = Server(f"http://127.0.0.1:{port}", pool=False)
    if "dspool_http" in wanted:
        address, _ = running.enter_context(dspool_up(directory / "d", dspool_settings(ports)))
        found["dspool", "http"] = Server(address, pool=True)
        found["dspool", "http"].ready()
    for kind, started in drivers.items():
        handles = Handles(started)
        for name in handles.ready():
            if name in wanted:
                found[name, "queue" if kind == "taskiq" else "handle"] = handles
    for kind, server in servers.items():
        server.ready()
        found[kind, "http"] = server
    return found


def idle_cores(seconds: float = 3.0) -> float:
    """Cores that all systems use together while nobody asks anything."""
    mine = psutil.Process().children(recursive=True)

    def used() -> float:
        total = 0.0
        for one in mine:
            with contextlib.suppress(psutil.Error):
                total += sum(one.cpu_times()[:2])
        return total

    before = used()
    time.sleep(seconds)
    return round((used() - before) / seconds, 3)


def compare(
    systems: dict[tuple[str, str], Any], cells: list[Cell], seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """Each round goes through all cells, and in each cell through all systems, each time from another first one."""
    seen: dict[tuple[Cell, str, str], list[dict[str, Any]]] = {}
    names = list(systems)
    for turn in range(rounds):
        for cell in cells:
            for name, interface in names[turn % len(names) :] + names[: turn % len(names)]:
                taken = systems[name, interface].measure(name, cell, seconds)
                seen.setdefault((cell, name, interface), []).append(taken)
        print(f"  round {turn + 1} of {rounds}", flush=True)
    return [row(cell, *system, seen[cell, *system]) for cell in cells for system in names]


def row(cell: Cell, system: str, interface: str, taken: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "system": system,
        "interface": interface,
        "workload": cell.workload,
        "concurrency": cell.concurrency,
        "rate": cell.rate,
        "ops_per_s": None,
        "p50_ms": None,
        "p99_ms": None,
    }
    if "note" in taken[0]:
        return {**found, "note": taken[0]["note"]}
    rates = [one["done"] / one["seconds"] for one in taken]
    latencies = [latency for one in taken for latency in one["latencies_ms"]]
    found["ops_per_s"] = round(statistics.median(rates), 1)
    found["lowest_ops_per_s"], found["highest_ops_per_s"] = round(min(rates), 1), round(max(rates), 1)
    if latencies:
        found["p50_ms"] = round(percentile(latencies, 0.50), 2)
        found["p99_ms"] = round(percentile(latencies, 0.99), 2)
    found["operations"] = sum(one["done"] for one in taken)
    found["failed"] = sum(one["failed"] for one in taken)
    return found


def cannot(systems: dict[tuple[str, str], Any]) -> list[dict[str, Any]]:
    """What becomes of each system when a worker dies or another size is wanted: told, not timed, here."""
    empty = {"concurrency": None, "rate": None, "ops_per_s": None, "p50_ms": None, "p99_ms": None}
    return [
        {"system": name, "interface": interface, "workload": what, **empty, "note": ABILITIES[name][what]}
        for what in ("recovery", "resize")
        for name, interface in systems
    ]


def show(cells: list[Cell], rows: list[dict[str, Any]]) -> list[str]:
    """Print one table a cell; sentences about where a peer wins."""
    wins = []
    for cell in cells:
        here = [one for one in rows if (one["workload"], one["concurrency"], one["rate"]) == cell]
        print(f"\n  {cell}")
        for one in sorted(here, key=lambda one: -(one["ops_per_s"] or 0.0)):
            name = f"{one['system']} ({one['interface']})"
            if one["ops_per_s"] is None:
                print(f"    {name:28s} {one['note']}")
                continue
            failed = f", {one['failed']} failed" if one["failed"] else ""
            print(
                f"    {name:28s} {one['ops_per_s']:9,.1f}/s ({one['lowest_ops_per_s']:,.0f}-"
                f"{one['highest_ops_per_s']:,.0f})  p50 {one['p50_ms']} ms  p99 {one['p99_ms']} ms{failed}"
            )
        for interface in ("handle", "http"):
            wins += lost_to(cell, interface, here)
    print("\n  Where a peer wins:" if wins else "\n  No peer wins anywhere.")
    for sentence in wins:
        print(f"    {sentence}")
    return wins


def lost_to(cell: Cell, interface: str, here: list[dict[str, Any]]) -> list[str]:
    """In throughput of a closed loop, in p99 of an open one; against peers of the same kind of interface."""
    ours = [one for one in here if one["system"] == "dspool" and one["interface"] == interface]
    peers = [
        one
        for one in here
        if one["system"] != "dspool"
        and (one["interface"] == "http") == (interface == "http")
        and one["ops_per_s"] is not None
    ]
    if not ours or ours[0]["ops_per_s"] is None:
        return []
    mine = ours[0]
    if cell.rate is None:
        better = [one for one in peers if one["ops_per_s"] > mine["ops_per_s"]]
        what, unit = "ops_per_s", "/s"
    else:
        better = [one for one in peers if one["p99_ms"] and one["p99_ms"] < mine["p99_ms"]]
        what, unit = "p99_ms", " ms (p99)"
    return [
        f"{cell}, {interface}: {one['system']} {one[what]:,}{unit}, dspool {mine[what]:,}{unit}"
        for one in better
    ]


def fast_beside_slow(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How much longer the p99 of fast operations is when one in a hundred takes half a second, by system."""
    p99 = {(row["workload"], row["system"], row["interface"]): row["p99_ms"] for row in rows}
    return {
        f"{system} ({interface})": round(slow / p99["none_slow", system, interface], 2)
        for (workload, system, interface), slow in p99.items()
        if workload == "one_slow" and slow and p99.get(("none_slow", system, interface))
    }


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--full", action="store_true", help="all workloads at all concurrencies")
    parser.add_argument("--only", help="systems, separated by commas (dspool_http is dspool over HTTP)")
    options = parser.parse_args()
    names = {name for group in HANDLES.values() for name in group} | set(SERVERS) | {"dspool_http"}
    wanted = set(options.only.split(",")) if options.only else names
    if wanted - names:
        parser.error(f"no system {', '.join(sorted(wanted - names))}; there are {', '.join(sorted(names))}")
    missing = []
    if shutil.which("redis-server") is None and "taskiq_redis" in wanted:
        missing = ["taskiq_redis: redis-server is not installed (`make debian`)"]
        wanted.discard("taskiq_redis")
    cells, seconds, rounds = (QUICK, 0.4, 1) if options.quick else (USUAL, 1.0, 3)
    if options.full:
        cells, seconds, rounds = FULL, 1.5, 3
    header("peers: one run, the same programs, two working processes each, in turn")
    for sentence in missing:
        print(f"  left out: {sentence}")
    # As Ctrl-C: what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="dpb-", dir="/tmp"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        with contextlib.ExitStack() as running:
            systems = start(directory, wanted, running)
            idle = idle_cores(0.5 if options.quick else 3.0)
            print(f"  {len(systems)} systems stand; idle they use {idle} cores together", flush=True)
            rows = compare(systems, cells, seconds, rounds) + cannot(systems)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    wins = show(cells, rows)
    for one in rows:
        if one["workload"] in ("recovery", "resize"):
            print(f"    {one['workload']:9s}{one['system']} ({one['interface']}): {one['note']}")
    slowed = fast_beside_slow(rows)
    for name, ratio in slowed.items():
        print(f"    p99 of fast ones with one slow in a hundred, over without: {name} {ratio}")
    finish(
        {
            "rows": rows,
            "fast_p99_beside_slow": slowed,
            "peer_wins": wins,
            "left_out": missing,
            "idle_cores": idle,
            "seconds_a_cell": seconds,
            "rounds": rounds,
        },
        as_json=options.json,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
