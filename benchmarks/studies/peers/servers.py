"""The peers that answer HTTP, each a process of its own with two more that work.

    python -m benchmarks.studies.peers.servers KIND PORT DIRECTORY PORTS

serves `POST /execute` with `{"workload": ..., "inputs": {...}}` until stdin closes or SIGTERM comes. KIND is
`litserve`; or `fastapi`, `serve_default` or `serve_haproxy`, and at its end how programs are called: by `acall`
(nothing or `_acall`), in DSPy's threads (`_asyncify`), or there and with the history that DSPy keeps (`_stock`, which
`benchmarks.http` compares with).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.studies.peers import workloads
from benchmarks.studies.peers.workloads import WORKERS


class Asked(BaseModel):
    """Here and not within the function: FastAPI looks annotations up among the names of the module."""

    workload: str
    inputs: dict[str, Any]


def awaitables(kind: str, ports: dict[str, int]) -> dict[str, Callable[..., Awaitable[Any]]]:
    stock = kind.endswith("_stock")
    programs = workloads.load(ports, history=stock)
    return workloads.awaitables(programs, asyncify=stock or kind.endswith("_asyncify"))


def fastapi_app() -> Any:
    """As DSPy's guide on deployment shows it."""
    from contextlib import asynccontextmanager

    from fastapi import FastAPI

    loaded: dict[str, Any] = {}

    @asynccontextmanager
    async def lifespan(_: Any) -> Any:
        loaded.update(awaitables(os.environ["BENCH_KIND"], json.loads(os.environ["BENCH_PORTS"])))
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/execute")
    async def execute(asked: Asked) -> dict[str, Any]:
        result = await loaded[asked.workload](**asked.inputs)
        return {"outputs": result.toDict()}

    return app


def run_fastapi(kind: str, port: int, ports: dict[str, int]) -> None:
    import uvicorn

    os.environ.update(BENCH_KIND=kind, BENCH_PORTS=json.dumps(ports))
    app = "benchmarks.studies.peers.servers:fastapi_app"
    uvicorn.run(
        app,
        factory=True,
        host="127.0.0.1",
        port=port,
        # As many processes as processors: fastapi.tiangolo.com/deployment/server-workers
        workers=WORKERS,
        # The fast loop and parser by name, so that one that is missing is an error: www.uvicorn.org/settings
        loop="uvloop",
        http="httptools",
        # No log line a request: www.uvicorn.org/settings
        access_log=False,
        log_level="error",
    )


class Served:
    """A Serve deployment as its documentation shows one."""

    def __init__(self, kind: str, ports: dict[str, int]) -> None:
        self._programs = awaitables(kind, ports)

    async def __call__(self, request: Any) -> dict[str, Any]:
        asked = await request.json()
        result = await self._programs[asked["workload"]](**asked["inputs"])
        return {"outputs": result.toDict()}


def run_serve(kind: str, port: int, directory: str, ports: dict[str, int]) -> None:
    """A cluster with the deployment, until stdin closes."""
    if kind.startswith("serve_haproxy"):
        from dspool_serve.ingress.haproxy import environment

        # HAProxy and the throughput mode, which dspool's own service sets as well:
        # docs.ray.io/en/master/kuberay/user-guides/serve-high-throughput.html
        os.environ.update(environment(Path(directory) / "h"))
    # `serve_default` is Serve as it comes; the other is its best configuration.
    import ray
    from ray import serve

    from dspool.runtime.cluster import own_token

    with own_token(Path(directory)):
        ray.init(
            address="local",
            _temp_dir=directory + "/ray",
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            num_cpus=4,
            object_store_memory=128 * 1024 * 1024,
        )
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        quiet = {"log_level": "ERROR", "enable_access_log": False}
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
        deployment = serve.deployment(
            num_replicas=WORKERS,
            max_ongoing_requests=256,
            ray_actor_options={"num_cpus": 0},
            logging_config=quiet,
        )(Served)
        serve.run(deployment.bind(kind, ports), name="peer", route_prefix="/")
        sys.stdin.read()
        serve.shutdown()
        ray.shutdown()


def main() -> None:
    kind, port, directory, ports = sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    if kind.startswith("fastapi"):
        run_fastapi(kind, port, ports)
    elif kind == "litserve":
        from benchmarks.studies.peers import litserve_app

        litserve_app.run(port, ports)
    else:
        run_serve(kind, port, directory, ports)


if __name__ == "__main__":
    main()
