"""A service in a thread: real HTTP, a real client, a real worker with real DSPy and a real store; operators' routes are
answered by a double. No Ray, so that it starts in a second.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from dspool.client.client import Client, ControlPlane
from dspool.config import PoolConfig
from dspool.core.lifecycle.warmup import WarmupReport
from dspool.messages import Deployment, Membership
from dspool.pool import Pool
from dspool.store.store import SessionStore
from dspool.supervisor.version_history import deployment_of
from dspool.supervisor.warmup import WarmProgress
from dspool.telemetry.log_files import LogPage, LogTail
from dspool.telemetry.metrics import Metrics
from dspool.telemetry.snapshot import PoolLimits, Snapshot
from dspool.worker.worker import Worker
from dspool_console import Console
from dspool_serve.access.security import Security
from dspool_serve.api.application import Application
from dspool_serve.pools import Settings
from tests.unit.http_doubles import FakePool, FixedPools


class LocalPool(FakePool):
    """Operations and sessions are real; workers, size and versions are made up."""

    async def begin(self, config: PoolConfig) -> None:
        self.config = config
        directory = config.state_dir
        self._metrics = Metrics(self.name)
        self._version = 1
        self._store = SessionStore(f"sqlite:///{directory / 'sessions.db'}")
        await self._store.open()
        self._worker = Worker("default-w0-abcdef", 0, config, b"secret", self._store)
        members = (await self._worker.describe(),)
        self._deployed: list[Deployment] = []
        for name, program in config.programs.items():
            await self._take(msgspec.structs.replace(deployment_of(name, program), version=1))

        async def watch(version: int) -> Membership:
            if version >= 1:
                await asyncio.Event().wait()
            return Membership(1, members, programs=dict.fromkeys(config.programs, 1))

        async def report_dead(worker_id: str, why: str) -> None:
            return None

        self._client = Client(config, b"secret", ControlPlane(watch, report_dead))
        await self._client.start()
        if not await self._client.wait_ready(1, 20.0):
            raise TimeoutError("the client did not connect")
        self._pool = Pool("default", self._client, None)  # type: ignore[arg-type]

    async def end(self) -> None:
        await self._client.close()
        await self._worker.stop()
        await self._store.close()

    async def snapshot(self) -> Snapshot:
        config = self._client.config
        of_config = {name: getattr(config, name) for name in PoolLimits.__struct_fields__ if name != "sizing"}
        limits = PoolLimits(**of_config, sizing=False)
        return Snapshot(
            metrics=self._metrics.snapshot(), histograms={}, status=await self.status(), limits=limits
        )

    async def metrics_history(self, duration_s: float = 60.0, **of: Any) -> Any:
        return self._metrics.history(duration_s, **of)

    async def metrics_snapshot(self) -> Any:
        return self._metrics.snapshot()

    async def deploy(self, deployment: Deployment, **options: Any) -> Deployment:
        self._version += 1
        return await self._take(msgspec.structs.replace(deployment, version=self._version))

    async def _take(self, deployment: Deployment) -> Deployment:
        await self._worker.deploy(deployment)
        self._deployed.append(deployment)
        return deployment

    async def deployments(self) -> list[Deployment]:
        return list(self._deployed)

    async def current_versions(self) -> dict[str, int]:
        return {one.program: one.version for one in self._deployed}

    async def run(self, command: Any, **options: Any) -> Any:
        return await self._pool.run(command, **options)

    def stream(self, command: Any, **options: Any) -> Any:
        return self._pool.stream(command, **options)

    async def create_session(self, id: str, **about: Any) -> Any:
        return await self._store.create(self.name, id, **about)

    async def store_status(self) -> Any:
        return await self._store.describe(self.name)

    async def storage_usage(self) -> Any:
        return await self._store.usage(self.name)

    async def session_info(self, id: str) -> Any:
        return await self._store.get(self.name, id)

    async def sessions(self, **asked: Any) -> Any:
        return await self._store.list(self.name, **asked)

    async def count_sessions(self) -> int:
        return await self._store.count(self.name)

    async def logs(
        self,
        *,
        operation: str | None = None,
        worker: str | None = None,
        after: float = 0.0,
        limit: int = 200,
    ) -> LogPage:
        return LogPage([], after, False, True)

    async def worker_log(self, worker_id: str, lines: int = 200) -> LogTail:
        return LogTail([], False, "", True)

    async def warm_progress(self, since: int = 0) -> list[WarmProgress]:
        return []

    async def warmup_report(self) -> WarmupReport:
        return WarmupReport("parallel")

    async def end_session(self, id: str) -> None:
        await self._pool.end_session(id)

    async def claim_key(self, key: str, **about: Any) -> Any:
        return await self._store.claim_key(self.name, key, **about)

    async def settle_key(self, key: str, **about: Any) -> Any:
        return await self._store.settle_key(self.name, key, **about)

    async def drop_key(self, key: str, **about: Any) -> Any:
        return await self._store.drop_key(self.name, key, **about)

    async def events(self, since: int = 0, limit: int = 100, *, timeout_s: float = 0.0) -> Any:
        # Nothing happens here; nobody has to wait for that.
        return await super().events(since, limit)


class LocalService:
    """`with LocalService(directory) as service: service.url`. `keys` are those of the configuration."""

    def __init__(
        self,
        directory: Path,
        security: Security | None = None,
        *,
        operation_timeout_s: float = 10.0,
        **keys: Any,
    ) -> None:
        programs = {"qa": {"spec": {"signature": "context, question -> answer"}}, **keys.pop("programs", {})}
        self._config = PoolConfig(
            operation_timeout_s=operation_timeout_s,
            checkout_timeout_s=operation_timeout_s,
            state_dir=directory,
            telemetry={"sampling": 0},
            enable_metrics=False,
            programs=programs,
            **keys,
        )
        self._security = security
        # Named, or asyncio leaves Nagle on: each answer of two parts would wait 40 ms for an acknowledgement.
        self._socket = socket.socket(proto=socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()  # whoever comes before the server waits in the line
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.pool = LocalPool()
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failed:
            self._failed = failed
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        await self.pool.begin(self._config)
        pools, security = FixedPools(self.pool), self._security or Security()
        settings = Settings(
            operation_timeout_s=self._config.operation_timeout_s,
            body_timeout_s=3.0,
            session_imports=self._config.service.session_imports,
        )
        app = Application(pools, settings, security, Console(pools, security))
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        self._ready.set()
        await self._server.serve(sockets=[self._socket])
        await self.pool.end()

    def __enter__(self) -> LocalService:
        self._thread.start()
        if not self._ready.wait(60) or self._failed is not None:
            raise RuntimeError("the local service did not start") from self._failed
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(15)
