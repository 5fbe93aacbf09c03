"""A whole running service: Ray, a pool and its HTTP ingress, started in order and taken down in order.

`dspool up` is a thin shell around `Service`. Nothing is found or ended by its name: it stops what it started.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from dspool.config import PoolConfig
from dspool.core.lifecycle.start_steps import StepTiming
from dspool.core.wording import counted
from dspool.errors import ConfigError, Conflict, PoolError, WorkerStartFailed
from dspool.runtime.forkserver import to_load
from dspool.runtime.forkserver.node_parent import own_variables, running_parent
from dspool_serve.ingress import haproxy, ray_dashboard
from dspool_serve.ingress import starting as steps
from dspool_serve.ingress.clearing import application_name, clear, shutdown_serve
from dspool_serve.ingress.processes import (
    SERVING,
    STOP_GRACE_S,
    descendants,
    end_processes,
    haproxy_processes,
    short_directory,
)
from dspool_serve.ingress.spreading import Spread, serve_options, spread_here
from dspool_serve.ingress.starting import Report, Starting

NAMESPACE = "dspool"
OBJECT_STORE_BYTES = 128 * 1024 * 1024
_LOOK_S = 0.1
"""Operations do not travel through Ray's object store; Ray's default would reserve 30 % of the memory."""


class Service:
    """One `dspool up`. `start`, then `stop`; `kill` when there is no time for that."""

    def __init__(
        self, config: PoolConfig, *, address: str | None = None, ray_dashboard: bool = False
    ) -> None:
        self.config = config
        self.pool_name = config.name
        self.url = ""
        self.starting: Starting
        """The steps of the start, once it has begun."""
        self.ray_address = ""
        self.ray_dashboard_url: str | None = None
        self.temp_dir: Path | None = None
        """Ours and removed at the end; None on a joined cluster."""
        self.ray_token_path: Path | None = None
        """The file with our Ray's token; None on a joined cluster."""
        self._address = address
        self._ray_dashboard = ray_dashboard
        self.pool: Any = None
        self._serve_host = config.service.host
        """Where Serve listens, its replicas and its fallback proxy included: behind our HAProxy on loopback."""
        self.owns_serve = False
        self._spread: Spread
        self._serving = False
        self._started: list[psutil.Process] = []
        self._held = haproxy.HeldPorts()
        self._client_header: str | None = None
        self._surroundings = contextlib.ExitStack()

    def timings(self) -> list[StepTiming]:
        """The steps of the start, in the order in which they began; the first is what was before it."""
        before_s = max(0.0, self._began_at - psutil.Process().create_time())
        later = [StepTiming(one.step, before_s + one.began_s, one.took_s) for one in self.starting.timings()]
        return [StepTiming("imports", 0.0, before_s), *later]

    @property
    def joined(self) -> bool:
        return self._address is not None

    @property
    def tls_cert(self) -> str | None:
        certificate = self.config.service.tls_cert
        return None if certificate is None else str(certificate.absolute())

    def _tls(self) -> tuple[Path, Path] | None:
        service = self.config.service
        return (service.tls_cert, service.tls_key) if service.tls_cert and service.tls_key else None

    async def start(self, report: Report) -> None:
        """Start everything and wait until it answers.

        Raises:
            PoolError: what could not be started. `stop` takes down what was.
        """
        began = time.monotonic()
        self._began_at = time.time()
        self.starting = starting = Starting(self.config.init_timeout_s, report)
        try:
            async with starting.telling():
                await self._start(starting, report)
        except WorkerStartFailed as failed:
            raise self._with_log(failed) from failed.__cause__
        self._started = descendants()
        report("ready", f"serving pool {self.pool_name} at {self.url} after {time.monotonic() - began:.1f} s")

    def _with_log(self, failed: WorkerStartFailed) -> WorkerStartFailed:
        """The error, which also says where the logs of the processes are that take part in the start."""
        step, path = self.starting.failed, self.config.state_dir / steps.LOG_NAME
        if step is None or self.temp_dir is None:
            return failed
        with contextlib.suppress(OSError):
            if steps.keep_logs(self.temp_dir / "ray" / "session_latest", path, step):
                details = {**failed.details, "step": step.name, "log": str(path)}
                return type(failed)(f"{failed.message}; the ends of Ray's logs are in {path}", **details)
        return failed

    async def _start(self, starting: Starting, report: Report) -> None:
        report("ray", f"joining Ray at {self._address}" if self.joined else "starting a local Ray")
        await starting.run(steps.RAY, lambda: steps.in_thread(self._start_ray), self._end_ray)
        report("pool", f"warming {counted(self.config.pool_size, 'worker')} of pool {self.pool_name}")
        from dspool.pool import Pool

        # The pool joins the Ray of this process.
        pool = Pool.start(self.config, on_delay=lambda why: report("warning", why))
        # Both take seconds and neither needs the other.
        warming = asyncio.ensure_future(starting.run(steps.POOL, pool.__aenter__))
        opening = asyncio.ensure_future(
            starting.run(steps.SERVE, lambda: steps.in_thread(self._start_serve), self._end_serve)
        )
        outcomes = await asyncio.gather(warming, opening, return_exceptions=True)
        if not isinstance(outcomes[0], BaseException):
            self.pool = pool
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        report("http", "opening the HTTP service")
        await starting.run(steps.HTTP, self._deploy, self._end_application)
        await starting.run(steps.ANSWER, self._wait_until_it_answers)

    async def _end_ray(self) -> None:
        """Everything of Ray, and what was prepared for it; also what a start that failed half-way left."""
        import ray

        # Ray would write into our directory when this process ends.
        await asyncio.to_thread(ray.shutdown)
        self._surroundings.close()
        await asyncio.to_thread(self._sweep)
        self._held.release()

    async def _end_serve(self) -> None:
        # Ray prints that the controller it was told to kill was killed; nobody needs to read that.
        nowhere = io.StringIO()
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            await asyncio.to_thread(shutdown_serve, self.joined)

    async def _end_application(self) -> None:
        await asyncio.to_thread(self._undeploy)

    def _start_ray(self) -> None:
        # Serve reads its switches when it is imported: variables first.
        if self._address is None:
            self.temp_dir = Path(tempfile.mkdtemp(prefix="dspool-", dir=short_directory()))
            service = self.config.service
            self._client_header = haproxy.new_client_header()
            if haproxy.moves_address():
                self._serve_host = "127.0.0.1"
            else:
                haproxy.refuse_limits(service, "limits of connections need the HAProxy that Ray Serve brings")
            variables = haproxy.environment(
                self.temp_dir / "h",
                self._held,
                request_s=service.body_timeout_s,
                tls=self._tls(),
                client_header=self._client_header,
                host=service.host,
                limits=haproxy.limits(service),
            )
            self._hold_door()
            variables |= {"RAY_USAGE_STATS_ENABLED": "0"}
            # Not at nice 15, as Ray has it: see `runtime.cluster.own_cluster`.
            variables |= {"RAY_worker_niceness": "0"}
            variables |= steps.start_limits(self.config.init_timeout_s, os.environ)
            if self._ray_dashboard and self._tls() is None:
                variables |= ray_dashboard.environment(service.host, service.port)
        else:
            if self._tls() is not None:
                raise ConfigError(
                    "TLS is for a Ray that `dspool up` starts itself: a joined cluster's Serve runs its own "
                    "HAProxy; put a reverse proxy with TLS in front",
                    key="service.tls_cert",
                )
            haproxy.refuse_limits(self.config.service, "a joined cluster's Serve runs its own HAProxy")
            # Another's cluster: its Serve, if we start it, keeps its files where Serve wants them on its own node.
            variables = haproxy.joined_environment(os.environ)
        os.environ.update(variables)
        # Compiled modules are what makes the next worker start fast.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        parent = None
        if self.temp_dir is not None:
            # First of all: it loads while Ray starts.
            parent = self._surroundings.enter_context(
                running_parent(
                    self.temp_dir, to_load(self.config), SERVING, variables=own_variables(self.temp_dir)
                )
            )
        import ray

        from dspool.runtime.cluster import on_loopback, own_token, reaching
        from dspool.runtime.node import own_node
        from dspool.runtime.session_logs import kept_short

        options: dict[str, Any] = {
            "namespace": NAMESPACE,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        }
        if self.temp_dir is not None:
            # A Ray without authentication runs anybody's code (CVE-2023-48022).
            self.ray_token_path = self._surroundings.enter_context(own_token(self.temp_dir))
            self._surroundings.enter_context(on_loopback())
            self._surroundings.enter_context(kept_short(self.temp_dir))
            with own_node(parent, patience_s=self.config.init_timeout_s):
                started = ray.init(
                    address="local",
                    _temp_dir=str(self.temp_dir) + "/ray",
                    include_dashboard=self._ray_dashboard,
                    object_store_memory=OBJECT_STORE_BYTES,
                    **options,
                )
            self.ray_dashboard_url = started.dashboard_url or None
        else:
            try:
                with reaching(self._address or "auto"):
                    joined = ray.init(address=self._address, runtime_env={"env_vars": variables}, **options)
                    self.ray_dashboard_url = joined.dashboard_url or None
            except (ConnectionError, ValueError, RuntimeError) as failed:
                raise WorkerStartFailed(
                    f"cannot join Ray at {self._address}: {failed}; is it running, and is its token at hand?"
                ) from failed
        self.ray_address = str(ray.get_runtime_context().gcs_address)
        self._started = descendants()

    def _hold_door(self) -> None:
        """Keep our own port from others: it is opened seconds from now. HAProxy opens a held port; Serve does not."""
        service = self.config.service
        if haproxy.binary() is None:
            return
        try:
            self._held.hold(service.host, service.port)
        except OSError as failed:
            raise Conflict(
                f"port {service.port} on {service.host} is in use; choose another with --port "
                "(--port 0 takes a free one)",
                port=service.port,
            ) from failed

    def _start_serve(self) -> None:
        import ray
        from ray import serve
        from ray.serve.config import HTTPOptions, ProxyLocation

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        except ValueError:
            self.owns_serve = True
        service = self.config.service
        self._spread = spread_here(self.config)
        try:
            serve.start(
                proxy_location=ProxyLocation(self._spread.location),
                http_options=HTTPOptions(host=self._serve_host, port=service.port),
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
        except ray.exceptions.RayTaskError as failed:
            # Its text is a traceback; what HAProxy said is in the cause.
            why = str(failed.cause).strip()[-500:] or type(failed.cause).__name__
            raise WorkerStartFailed(f"Ray Serve could not open its HTTP door: {why}") from failed
        options = serve_options()
        if not self.owns_serve and (options.host, options.port) != (service.host, service.port):
            raise Conflict(
                f"Ray Serve already runs in this cluster, on {options.host}:{options.port}; "
                f"use --host {options.host} --port {options.port}"
            )
        host = f"[{service.host}]" if ":" in service.host else service.host
        self.url = f"{'https' if self.tls_cert else 'http'}://{host}:{service.port}"

    async def _deploy(self) -> None:
        """Returns when the application runs. Serve itself would wait for that without an end."""
        from ray import serve

        await steps.in_thread(self._begin_application)
        name = application_name(self.pool_name)
        while (application := (await asyncio.to_thread(serve.status)).applications[name]).status != "RUNNING":
            if application.status == "DEPLOY_FAILED":
                raise RuntimeError(application.message)
            await asyncio.sleep(_LOOK_S)

    def _begin_application(self) -> None:
        from ray import serve

        from dspool_serve.ingress.deployment import build_app

        self._serving = True
        app = build_app(self.config, client_header=self._client_header, spread=self._spread)
        target = serve.RunTarget(app, name=application_name(self.pool_name))
        serve.run_many([target], wait_for_applications_running=False)

    async def _wait_until_it_answers(self) -> None:
        """Until the proxy knows the routes: at first it answers 404 or 503 for ones that exist."""
        deadline = time.monotonic() + self.config.init_timeout_s
        wanted = ["/healthz", "/readyz", f"/v1/pools/{self.pool_name}"]
        last = "no answer"
        # Our own door, seen from inside: what is checked is that it answers, not who it says it is.
        async with httpx.AsyncClient(base_url=self.url, timeout=5.0, trust_env=False, verify=False) as http:
            while wanted:
                with contextlib.suppress(httpx.TransportError):
                    answer = await http.get(wanted[0])
                    # With tokens, a route that knows it needs one is a route.
                    if answer.status_code in (200, 401):
                        wanted.pop(0)
                        continue
                    last = f"{answer.status_code} {answer.text[:200]}"
                if time.monotonic() > deadline:
                    raise WorkerStartFailed(
                        f"{self.url}{wanted[0]} did not answer 200 within {self.config.init_timeout_s:g} s; "
                        f"last: {last}"
                    )
                await asyncio.sleep(0.05)

    async def stop(self, report: Report) -> None:
        """Let running operations finish, then take down what `start` started, last first."""
        import ray

        self._started = descendants() or self._started
        if ray.is_initialized():
            if self._serving:
                report("drain", "taking no more requests; running operations finish")
                await self._quietly(self._end_application(), report)
            if self.pool is not None:
                report("pool", "stopping the workers")
                await self._quietly(self.pool.__aexit__(None, None, None), report)
            if self.owns_serve:
                await self._quietly(self._end_serve(), report)
        await self._end_ray()
        report("stopped", "stopped")

    async def _quietly(self, step: Any, report: Report) -> None:
        """One failing step of taking down must not keep the others from running."""
        try:
            await step
        except (PoolError, RuntimeError, OSError, TimeoutError) as failed:
            report("warning", f"while stopping: {failed}")
        except Exception as failed:
            # Ray's errors share no base class with ours.
            report("warning", f"while stopping: {type(failed).__name__}")

    def _undeploy(self) -> None:
        from ray import serve

        serve.delete(application_name(self.pool_name))
        self._serving = False

    def kill(self) -> None:
        """End at once everything that this process started. On a joined cluster the detached actors stay."""
        if not self.joined:
            for process in reversed(descendants() or self._started):
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
        self._sweep(grace_s=0.0)

    def _sweep(self, grace_s: float = STOP_GRACE_S) -> None:
        """End, by pid, what outlived its parent, and remove our directory.

        psutil compares start times: a pid that now belongs to somebody else is left alone.
        """
        left: list[psutil.Process] = []
        if not self.joined:
            left += [process for process in self._started if process.is_running()]
        if self.temp_dir is not None:
            left += haproxy_processes(self.temp_dir)
        end_processes(left, grace_s)
        if self.temp_dir is not None:
            shutil.rmtree(self.temp_dir, ignore_errors=True)


__all__ = ["Service", "clear"]
