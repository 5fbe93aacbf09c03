"""The service that `dspool up` runs and ends, without Ray, and one that ended without a word."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from dspool.cli.run_file import ServiceRun
from dspool.core.lifecycle.start_steps import StepTiming

DEAD = ServiceRun(pid=2**22 - 1, pid_started=1.0, pool="default", temp_dir="/tmp/dspool-gone")


class FakeService:
    """Starts at once and tells itself to stop, as Ctrl-C would."""

    fail: Exception | None = None
    hang = False
    dashboard: str | None = None
    first: tuple[int, ...] = ()
    """Signals that it sends before."""
    log: list[str] = []  # noqa: RUF012

    def __init__(self, config, *, address=None, ray_dashboard=False):
        self.config = config
        self.url = self.ray_address = ""
        self.ray_dashboard_url = self.dashboard
        self.temp_dir = Path("/tmp/dspool-fake")
        self.ray_token_path = self.temp_dir / "ray_token"
        self.tls_cert = None
        self.owns_serve = self.took_over = False
        self.pools = []

    async def start(self, report):
        report("ray", "starting a local Ray")
        if self.fail is not None:
            raise self.fail
        for number in self.first:
            os.kill(os.getpid(), number)
            for _ in range(5):  # turns in which its handler would run
                await asyncio.sleep(0)
            self.log.append(number)
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        if self.hang:
            await asyncio.Event().wait()
        self.url = f"http://{self.config.service.host}:{self.config.service.port}"
        self.ray_address = "127.0.0.1:6379"

    async def stop(self, report):
        self.log.append("stopped")
        report("stopped", "stopped")

    def timings(self):
        return [StepTiming("ray", 0.0, 1.5), StepTiming("pool", 1.5, 0.5)]

    def kill(self):
        self.log.append("killed")
