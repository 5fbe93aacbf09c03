"""LitServe with an asynchronous API. In a module of its own: its workers are spawned and import it by name.
Annotations are not postponed here: LitServe reads that of `decode_request` as it is."""

from typing import Any

import litserve

from benchmarks.studies.peers import workloads


class Api(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, ports: dict[str, int]) -> None:
        super().__init__(api_path="/execute", enable_async=True)
        self._ports = ports

    def setup(self, device: Any) -> None:
        self.programs = workloads.awaitables(workloads.load(self._ports), asyncify=False)

    async def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    async def predict(self, asked: dict[str, Any]) -> Any:
        return (await self.programs[asked["workload"]](**asked["inputs"])).toDict()

    async def encode_response(self, output: Any) -> dict[str, Any]:
        return {"outputs": output}


def run(port: int, ports: dict[str, int]) -> None:
    # Requests and answers by ZeroMQ and not by a queue of multiprocessing, and several workers:
    # lightning.ai/docs/litserve/api-reference/litserver
    server = litserve.LitServer(
        Api(ports),
        accelerator="cpu",
        workers_per_device=workloads.WORKERS,
        timeout=60,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=port,
        generate_client_file=False,
        log_level="error",
        # www.uvicorn.org/settings
        access_log=False,
        loop="uvloop",
        http="httptools",
    )
