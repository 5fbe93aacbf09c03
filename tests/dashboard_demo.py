"""A service with made-up pools, for looking at the dashboard and for its browser tests: no Ray, no workers.

`python -m tests.dashboard_demo --port 8899 --workers 500 [--pretty] [--tokens] [--no-pools]`
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from starlette.types import ASGIApp

from dspool.core.admission.access import new_token
from dspool.core.metrics.operation_records import EndedOperation
from dspool.corrections import uvicorn_connections
from dspool.telemetry.pseudonyms import principal_hash, sealed, session_hash
from dspool.tokens import TokenSource
from dspool_console import Console
from dspool_serve.access.audit import Audit
from dspool_serve.access.security import Security
from dspool_serve.api.application import Application
from dspool_serve.http.root_path import UnderRoot
from dspool_serve.pools import Settings
from tests.simulated_pool import SimulatedPool


def write_traces(pool: SimulatedPool, number: int = 300) -> None:
    """Spans as traced operations leave them, and the records of these operations."""
    keep_operations(pool, number)
    directory = pool.config.state_dir / "traces"
    directory.mkdir(parents=True, exist_ok=True)
    dice = random.Random(7)
    with (directory / "client-1.jsonl").open("w") as file:
        for n in range(number):
            start = time.time_ns() - (number - n) * 10**9
            took = int(2e8 * dice.lognormvariate(0, 0.6))
            trace, failed = f"{dice.getrandbits(128):032x}", n % 23 == 0
            about = {"dspool.pool": pool.name, "dspool.operation.id": f"op-{n}", "dspool.program": "qa"}
            names = (
                "operation execute_program",
                "queue",
                "worker execute_program",
                "module Predict",
                "chat offline/qa",
            )
            parent = None
            for depth, name in enumerate(names):
                span = {
                    "trace_id": trace,
                    "span_id": f"{n:08x}{depth:08x}",
                    "parent_id": parent,
                    "name": name,
                    "kind": "internal",
                    "start_ns": start + depth * took // 20,
                    "end_ns": start
                    + (took // 20 * (depth + 1) if name == "queue" else took - depth * took // 40),
                    "ok": not failed,
                    "attributes": about
                    | {"dspool.worker": next(iter(pool.rows)), "dspool.outcome": "error" if failed else "ok"}
                    | ({"error.type": "model_error", "dspool.program": pool.odd[:40]} if failed else {})
                    | (
                        {"dspool.wait_s": 0.01, "dspool.run_s": took / 1e9, "dspool.attempts": 1}
                        if not depth
                        else {}
                    ),
                    "resource": {"dspool.pool": pool.name, "service.instance.id": "client-1"},
                }
                file.write(json.dumps(span) + "\n")
                if name != "queue":
                    parent = span["span_id"]


def keep_operations(pool: SimulatedPool, number: int) -> None:
    """Records of `number` operations, one a second until now: programs, failures, sessions, callers."""
    dice = random.Random(7)
    now = time.time()
    workers = list(pool.rows)
    records = []
    for n in range(number):
        start = now - (number - n)
        took = int(2e8 * dice.lognormvariate(0, 0.6)) / 1e9
        trace, failed = f"{dice.getrandbits(128):032x}", n % 23 == 0
        session = f"user-{n % 5}" if n % 3 == 0 else None
        principal = ("ada", "eve")[n % 2]
        records.append(
            EndedOperation(
                f"op-{n}", start + took, took, 0.01, took - 0.01,
                "execute_program",
                None if session else pool.odd[:40] if failed else "qa",
                0 if session else 3 - n % 2,
                "error" if failed else "ok",
                "program_error" if failed else None,
                "KeyError" if failed else None,
                "shop.answers:41" if failed else None,
                workers[n % len(workers)], 1, trace if n % 4 == 0 else None,
                session and session_hash(session, pool.name),
                session and sealed(session, pool.name),
                principal_hash(principal, pool.name),
                sealed(principal, pool.name),
            )
        )  # fmt: skip
    pool.operations.write(records, now)


class SimulatedPools:
    def __init__(self, *pools: SimulatedPool) -> None:
        self._pools = {pool.name: pool for pool in pools}

    async def open(self) -> None:
        for pool in self._pools.values():
            pool.start()

    async def close(self) -> None:
        for pool in self._pools.values():
            pool.stop()

    def names(self) -> list[str]:
        return list(self._pools)

    def get(self, name: str) -> Any:
        from dspool.errors import UnknownPool

        if name not in self._pools:
            raise UnknownPool(f"there is no pool {name!r}")
        return self._pools[name]


def tokens_for(**roles: str) -> tuple[dict[str, str], TokenSource]:
    """Token texts by name, and a source that knows them."""
    made = {
        name: new_token(name, role, secrets.token_urlsafe(32), secrets.token_hex(4))  # type: ignore[arg-type]
        for name, role in roles.items()
    }
    lines = msgspec.json.encode([token for _, token in made.values()]).decode()
    return {name: text for name, (text, _) in made.items()}, TokenSource(None, lines)


def application(
    *pools: SimulatedPool, tokens: TokenSource | None = None, audit: Path | None = None, **settings: Any
) -> Application:
    held, security = SimulatedPools(*pools), Security(tokens, audit=Audit(audit))
    return Application(held, Settings(**settings), security, Console(held, security))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8899)
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument(
        "--history-s", type=int, default=3600, help="seconds of history to make up; each costs a little time"
    )
    parser.add_argument("--pretty", action="store_true", help="no hostile names: for pictures")
    parser.add_argument("--tokens", action="store_true")
    parser.add_argument("--root-path", default="", help="the path below which a proxy offers it")
    parser.add_argument("--no-pools", action="store_true")
    asked = parser.parse_args()
    # As Ctrl-C: what was made is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="dsd-") as directory:
        serve(asked, Path(directory))


def serve(asked: argparse.Namespace, directory: Path) -> None:
    import uvicorn

    pools = []
    if not asked.no_pools:
        pools = [
            SimulatedPool(
                name,
                workers=workers,
                seed=seed,
                history_s=asked.history_s,
                state_dir=directory / name,
                pretty=asked.pretty,
            )
            for seed, (name, workers) in enumerate((("default", asked.workers), ("other", 3)), 1)
        ]
        for pool in pools:
            write_traces(pool)
    source = None
    if asked.tokens:
        texts, source = tokens_for(root="admin", eve="reader")
        print(json.dumps(texts), flush=True)
    audit = directory / "audit.jsonl"
    # As the service has it: a viewer that leaves ends its stream, and so does a service that stops.
    uvicorn_connections.install()
    app: ASGIApp = application(*pools, tokens=source, audit=audit, root_path=asked.root_path)
    if asked.root_path:
        app = UnderRoot(app, asked.root_path)
    print(f"http://127.0.0.1:{asked.port}/dashboard", flush=True)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=asked.port,
        log_level="critical",
        lifespan="on",
    )


if __name__ == "__main__":
    main()
