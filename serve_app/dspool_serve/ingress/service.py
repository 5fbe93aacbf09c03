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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from dspool.causes import met
from dspool.config import PoolConfig
from dspool.core.lifecycle.config_changes import ingress_mark
from dspool.core.lifecycle.start_steps import StepTiming
from dspool.core.wording import counted
from dspool.errors import ConfigError, Conflict, PoolError, WorkerStartFailed
from dspool.runtime.forkserver import to_load
from dspool.runtime.forkserver.node_parent import node_settings, own_variables, running_parent
from dspool_serve.ingress import haproxy, ray_dashboard
from dspool_serve.ingress import starting as steps
from dspool_serve.ingress.answering import wait_until_it_answers
from dspool_serve.ingress.applications import deploy, undeploy
from dspool_serve.ingress.clearing import application_name, clear, shutdown_serve, take_stock
from dspool_serve.ingress.held_pools import HeldPools
from dspool_serve.ingress.processes import (
    SERVING,
    STOP_GRACE_S,
    descendants,
    end_processes,
    haproxy_processes,
    short_directory,
)
from dspool_serve.ingress.service_record import Phase, Registration, ServiceRecord, of_this_process
from dspool_serve.ingress.spreading import Spread, serve_options, spread_here
from dspool_serve.ingress.starting import Report, Starting

NAMESPACE = "dspool"
OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Operations do not travel through Ray's object store; Ray's default would reserve 30 % of the memory."""


class Service:
    """One `dspool up`. `start`, then `stop`; `kill` when there is no time for that. The first pool says how it serves.

    On a cluster that it joins it takes over the service of a `dspool up` that died, or clears what is left of it.
    """

    def __init__(
        self,
        config: PoolConfig,
        *,
        more: Sequence[PoolConfig] = (),
        address: str | None = None,
        ray_dashboard: bool = False,
    ) -> None:
        self.config = config
        self._configs = (config, *more)
        self.changed: Callable[[], None] = lambda: None
        """Called when there is something new that would have to be cleared if this process died now."""
        self.took_over = False
        self.flags: dict[str, Any] = {}
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
        self._pools = HeldPools()
        self._registration = Registration(self._new_record)
        self._serve_host = config.service.host
        """Where Serve listens, its replicas and its fallback proxy included: behind our HAProxy on loopback."""
        self.owns_serve = False
        self._spread: Spread
        self._serving = False
        self._started: list[psutil.Process] = []
        self._held = haproxy.HeldPorts()
        self._client_header: str | None = None
        self._variables, self._serve_variables = dict[str, str](), dict[str, str]()
        self._surroundings = contextlib.ExitStack()

    def timings(self) -> list[StepTiming]:
        """The steps of the start, in the order in which they began; the first is what was before it."""
        before_s = max(0.0, self._began_at - psutil.Process().create_time())
        later = [StepTiming(one.step, before_s + one.began_s, one.took_s) for one in self.starting.timings()]
        return [StepTiming("imports", 0.0, before_s), *later]

    @property
    def pools(self) -> list[Any]:
        return list(self._pools)

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
            path = self.config.state_dir / steps.LOG_NAME
            raise steps.with_log(failed, starting.failed, self.temp_dir, path) from failed.__cause__
        self._started = descendants()
        report("ready", f"serving pool {self.pool_name} at {self.url} after {time.monotonic() - began:.1f} s")

    async def _start(self, starting: Starting, report: Report) -> None:
        report("ray", f"joining Ray at {self._address}" if self.joined else "starting a local Ray")
        await starting.run(steps.RAY, lambda: steps.in_thread(self._start_ray), self._end_ray)
        left = await take_stock(report, [one.name for one in self._configs]) if self.joined else None
        if left is not None:
            await starting.run(steps.POOL, lambda: self._take_over(left, report))
        else:
            await self._start_all(starting, report)
        names, limit_s = self._registration.pools(), self.config.init_timeout_s
        await starting.run(steps.ANSWER, lambda: wait_until_it_answers(self.url, names, limit_s))
        self._write("serving")

    async def _start_all(self, starting: Starting, report: Report) -> None:
        self._write("starting")
        for one in self._configs:
            report("pool", f"warming {counted(one.pool_size, 'worker')} of pool {one.name}")
        # Both take seconds and neither needs the other. The pools join the Ray of this process.
        warming = asyncio.ensure_future(
            starting.run(steps.POOL, lambda: self._pools.start(self._configs, report))
        )
        opening = asyncio.ensure_future(
            starting.run(steps.SERVE, lambda: steps.in_thread(self._start_serve), self._end_serve)
        )
        for outcome in await asyncio.gather(warming, opening, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        report("http", "opening the HTTP service")
        await starting.run(steps.HTTP, self._deploy, self._end_application)

    async def _take_over(self, left: ServiceRecord, report: Report) -> None:
        """Go on with a service whose `dspool up` died: nothing of it is started anew."""
        self.url, self.owns_serve, self._client_header = left.url, left.owns_serve, left.client_header
        self._variables, self._serving, self.took_over = dict(left.variables), True, True
        self._registration.take_over(left)
        self.changed()
        report("ray", f"taking over the service at {self.url} (its `dspool up`, pid {left.pid}, ended)")
        await self._pools.take_over(left.pools)

    def _new_record(self) -> ServiceRecord:
        return of_this_process(
            tuple(one.name for one in self._configs),
            application_name(self.pool_name),
            url=self.url,
            owns_serve=self.owns_serve,
            client_header=self._client_header,
            variables=self._variables,
            serve_variables=self._serve_variables,
            ingress=ingress_mark(self._configs) if self._serving else "",
            flags=self.flags,
        )

    def _write(self, phase: Phase) -> None:
        self._registration.write(phase)
        self.changed()

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
        await asyncio.to_thread(undeploy, application_name(self.pool_name))
        self._serving = False

    def _start_ray(self) -> None:
        # Serve reads its switches when it is imported: variables first.
        if self._address is None:
            self.temp_dir = Path(tempfile.mkdtemp(prefix="dspool-", dir=short_directory()))
            self.changed()
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
            self._held.hold_for_haproxy(service.host, service.port)
            variables |= {"RAY_USAGE_STATS_ENABLED": "0"}
            variables |= node_settings(os.environ, dashboard=self._ray_dashboard)
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
            self._variables = variables = haproxy.joined_environment(os.environ)
        os.environ.update(variables)
        self._serve_variables = {name: value for name, value in variables.items() if "SERVE" in name}
        # Compiled modules are what makes the next worker start fast.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        parent = None
        if self.temp_dir is not None:
            # First of all: it loads while Ray starts.
            loading, variables = to_load(self.config), own_variables(self.temp_dir)
            parent = self._surroundings.enter_context(
                running_parent(self.temp_dir, loading, SERVING, variables=variables)
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
                raise met("no_cluster", address=self._address, why=steps.said_by(failed)).error() from failed
        self.ray_address = str(ray.get_runtime_context().gcs_address)
        self.changed()
        self._started = descendants()

    def _start_serve(self) -> None:
        import ray
        from ray import serve
        from ray.serve.config import HTTPOptions, ProxyLocation

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        except ValueError:
            self.owns_serve = True
            self._write("starting")
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
        from dspool_serve.ingress.deployment import build_app

        self._serving = True
        names = [one.name for one in self._configs]
        app = build_app(self.config, names=names, client_header=self._client_header, spread=self._spread)
        await deploy(app, application_name(self.pool_name))

    async def stop(self, report: Report) -> None:
        """Let running operations finish, then take down what `start` started, last first."""
        import ray

        self._started = descendants() or self._started
        if ray.is_initialized():
            await self._quietly(self._end_all(report), report)
        await self._end_ray()
        report("stopped", "stopped")

    async def _end_all(self, report: Report) -> None:
        names: tuple[str, ...] = ()
        with contextlib.suppress(Exception):  # the cluster is on its way out
            if names := await asyncio.to_thread(self._registration.pools):
                await asyncio.to_thread(self._write, "stopping")
        if self._serving:
            report("drain", "taking no more requests; running operations finish")
            await self._quietly(self._end_application(), report)
        if self._pools or names:
            report("pool", "stopping the workers")
            await self._quietly(self._pools.stop(names), report)
        if self.owns_serve:
            await self._quietly(self._end_serve(), report)
        await self._quietly(asyncio.to_thread(self._registration.remove), report)

    async def _quietly(self, step: Any, report: Report) -> None:
        """One failing step of taking down must not keep the others from running."""
        try:
            await step
        except (PoolError, RuntimeError, OSError, TimeoutError) as failed:
            report("warning", f"while stopping: {failed}")
        except Exception as failed:
            # Ray's errors share no base class with ours.
            report("warning", f"while stopping: {type(failed).__name__}")

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
