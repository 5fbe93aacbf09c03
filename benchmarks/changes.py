"""Whether requests fail while a running service is changed: a load over kept connections, and changes until it ends.

One machine, a Ray of its own, the cheapest program. `apply` replaces all workers (slots) and all HTTP processes (queue)
by `dspool apply`, one after the other; `rolling` replaces both by `dspool restart --rolling`; `upgrade` replaces all
processes of the pool by those of another installation of the same version, and back, by `dspool upgrade`.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import http_load
from benchmarks.common import ROOT
from benchmarks.services import START_S, dspool_up
from tests.installations import Installed

REQUESTS, QUICK_REQUESTS = 100_000, 5_000
LIMIT_S = 900.0
_CONNECTIONS = 16
_SETTINGS: dict[str, Any] = {
    "init_timeout_s": START_S,
    "pool_size": 2,
    "max_pool_size": 4,
    "enable_optimizer": False,
}
_BODY = json.dumps({"inputs": {"context": "Rome is big.", "question": "What is big?"}, "timeout_s": 30})


def _apply(directory: Path, installed: list[Installed]) -> Callable[[], str]:
    values = itertools.cycle([{"slots_per_worker": 4}, {"max_queue": 500}, {}])

    def change() -> str:
        (directory / "pool.yaml").write_text(json.dumps({**_SETTINGS, **next(values)}))
        return _dspool(directory, "apply", "-f", str(directory / "pool.yaml"))

    return change


def _rolling(directory: Path, installed: list[Installed]) -> Callable[[], str]:
    return lambda: _dspool(directory, "restart", "--rolling")


def _upgrade(directory: Path, installed: list[Installed]) -> Callable[[], str]:
    turn = itertools.cycle(reversed(installed))

    def change() -> str:
        done = next(turn).dspool("upgrade", "--state-dir", str(directory), "--json")
        if done.returncode:
            raise RuntimeError(f"dspool upgrade: {(done.stderr or done.stdout)[-500:]}")
        return done.stdout

    return change


KINDS = {"apply": _apply, "rolling": _rolling, "upgrade": _upgrade}


def failed(kind: str, requests: int) -> dict[str, Any]:
    """At least `requests` and one whole change: how many `failed`, answers by status, and the `changes` meanwhile."""
    with tempfile.TemporaryDirectory(prefix="dspb-") as place:
        state = Path(place) / "state"
        # What is upgraded is of the first of them.
        two = [
            Installed(Path(place) / f"installed{number}") for number in range(2 if kind == "upgrade" else 0)
        ]
        python = str(two[0].python) if two else sys.executable
        with dspool_up(state, _SETTINGS, python) as (url, _):
            statuses, changes = _loaded(url, KINDS[kind](state, two), requests)
    return {
        "requests": statuses.total(),
        "failed": statuses.total() - statuses["200"],
        "statuses": dict(statuses),
        "changes": changes,
    }


def _loaded(url: str, change: Callable[[], str], requests: int) -> tuple[Counter[str], int]:
    """Answers by status, and how many changes there were meanwhile."""
    statuses: Counter[str] = Counter()
    over, changes = threading.Event(), 0

    def change_on() -> None:
        nonlocal changes
        while not over.is_set():
            change()
            changes += 1

    with ThreadPoolExecutor(1) as beside:
        changing = beside.submit(change_on)
        try:
            # In parts, as a client that starts now and then has new connections.
            while (statuses.total() < requests or not changes) and not changing.done():
                statuses.update(_load(url, requests // 4))
        finally:
            over.set()
        changing.result()
    return statuses, changes


def _load(url: str, requests: int) -> dict[str, int]:
    statuses: dict[str, int] = http_load.measure(
        f"{url}/v1/pools/default/programs/qa/execute",
        _BODY,
        connections=_CONNECTIONS,
        seconds=LIMIT_S,
        limit_s=LIMIT_S,
        requests=requests,
    )["statuses"]
    return statuses


def _dspool(directory: Path, *words: str) -> str:
    command = [sys.executable, "-m", "dspool.cli", *words, "--state-dir", str(directory), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"dspool {words[0]}: {(done.stderr or done.stdout)[-500:]}")
    return done.stdout


__all__ = ["KINDS", "QUICK_REQUESTS", "REQUESTS", "failed"]
