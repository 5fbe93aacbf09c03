"""The peers of `benchmarks.http`, each a process of its own: the same DSPy program behind other HTTP stacks.

`python -m benchmarks.http_peers fastapi|serve_default|serve_haproxy PORT DIRECTORY`
serves `POST /execute` until stdin closes
(fastapi: until SIGTERM).
"""

import os
import sys
from pathlib import Path
from typing import Any

WORKERS = 2
SIGNATURE = "question -> answer"


def program() -> Any:
    """What DSPy's own guide on deployment shows, on the engine that workers of dspool use as well."""
    import dspy

    from dspool.programs.models.lm import LMs

    lm = LMs({}, None).get(None)
    dspy.configure(lm=lm, async_max_workers=8)
    return dspy.asyncify(dspy.Predict(SIGNATURE))


def fastapi_app() -> Any:
    from contextlib import asynccontextmanager

    from fastapi import FastAPI
    from pydantic import BaseModel

    class Question(BaseModel):
        question: str

    loaded: dict[str, Any] = {}

    @asynccontextmanager
    async def lifespan(_: Any) -> Any:
        loaded["program"] = program()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/execute")
    async def execute(asked: Question) -> dict[str, Any]:
        result = await loaded["program"](question=asked.question)
        return {"outputs": result.toDict()}

    return app


def run_fastapi(port: int, app: str = "benchmarks.http_peers:fastapi_app") -> None:
    import uvicorn

    uvicorn.run(
        app,
        factory=True,
        host="127.0.0.1",
        port=port,
        workers=WORKERS,
        log_level="error",
    )


class Served:
    """A Serve deployment as its documentation shows one."""

    def __init__(self) -> None:
        self._program = program()

    async def __call__(self, request: Any) -> dict[str, Any]:
        asked = await request.json()
        result = await self._program(question=asked["question"])
        return {"outputs": result.toDict()}


def serve_until_told(port: int, directory: str, served: Any, *given: Any, haproxy: bool) -> None:
    """A cluster with the deployment of `served(*given)` at port `port`, until stdin closes."""
    if haproxy:
        from dspool_serve.ingress.haproxy import environment

        os.environ.update(environment(Path(directory) / "h"))
    import logging

    import ray
    from ray import serve

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
    )(served)
    serve.run(deployment.bind(*given), name="peer", route_prefix="/")
    sys.stdin.read()
    serve.shutdown()


def main() -> None:
    kind, port, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if kind == "fastapi":
        run_fastapi(port)  # until SIGTERM
        return
    serve_until_told(port, directory, Served, haproxy=kind == "serve_haproxy")


if __name__ == "__main__":
    main()
