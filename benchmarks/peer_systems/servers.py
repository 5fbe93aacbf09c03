"""The peers that answer HTTP, each a process of its own with two more that work.

    python -m benchmarks.peer_systems.servers KIND PORT DIRECTORY PORTS

serves `POST /execute` with `{"workload": ..., "inputs": {...}}` until stdin closes or SIGTERM comes.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from pydantic import BaseModel

from benchmarks.http_peers import run_fastapi, serve_until_told
from benchmarks.peer_systems import programs


class Asked(BaseModel):
    """Here and not within the function: FastAPI looks annotations up among the names of the module."""

    workload: str
    inputs: dict[str, Any]


def fastapi_app() -> Any:
    """DSPy's guide on deployment (asyncify), or the same with `acall`."""
    from contextlib import asynccontextmanager

    from fastapi import FastAPI

    loaded: dict[str, Any] = {}

    @asynccontextmanager
    async def lifespan(_: Any) -> Any:
        ports = json.loads(os.environ["BENCH_PORTS"])
        asyncify = os.environ["BENCH_KIND"] == "fastapi_asyncify"
        loaded.update(programs.awaitables(programs.load(ports), asyncify=asyncify))
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/execute")
    async def execute(asked: Asked) -> dict[str, Any]:
        result = await loaded[asked.workload](**asked.inputs)
        return {"outputs": result.toDict()}

    return app


class Served:
    """A Serve deployment as its documentation shows one, the program called by `acall`."""

    def __init__(self, ports: dict[str, int]) -> None:
        self._programs = programs.awaitables(programs.load(ports), asyncify=False)

    async def __call__(self, request: Any) -> dict[str, Any]:
        asked = await request.json()
        result = await self._programs[asked["workload"]](**asked["inputs"])
        return {"outputs": result.toDict()}


def main() -> None:
    kind, port, directory, ports = sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    if kind.startswith("fastapi"):
        os.environ.update(BENCH_KIND=kind, BENCH_PORTS=json.dumps(ports))
        run_fastapi(port, "benchmarks.peer_systems.servers:fastapi_app")
    elif kind == "litserve":
        from benchmarks.peer_systems import litserve_app

        litserve_app.run(port, ports)
    else:
        serve_until_told(port, directory, Served, ports, haproxy=kind == "serve_haproxy")


if __name__ == "__main__":
    main()
