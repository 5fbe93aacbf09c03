"""A real Prometheus scrapes a loaded pool, through Ray and through the service, and answers every query we ship."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio
import ray
import uvicorn
import yaml
from harness import PATIENCE_S, QUESTION, full, settings

from dspool import Pool, PoolConfig
from dspool.errors import PoolError
from dspool.telemetry.exposition import REACHABLE
from dspool.testing import LMServer
from dspool_console.alerts import ALERTS, EXAMPLE, FILE, RECORDED
from dspool_console.alerts.watch import AlertWatch
from dspool_console.grafana import DASHBOARDS, POOL, WINDOW
from dspool_serve.api.application import Application
from dspool_serve.ingress.deployment import RayPools

pytestmark = [
    pytest.mark.ray,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is not installed (make debian)"
    ),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """One Prometheus with the example configuration, of which only the job `source` is left."""

    def __init__(self, source: str, target: str, folder: Path) -> None:
        folder.mkdir()
        config = yaml.safe_load(EXAMPLE.read_text())
        (job,) = (job for job in config["scrape_configs"] if job["job_name"] == source)
        if "static_configs" in job:
            job["static_configs"] = [{"targets": [target]}]
        else:
            found = folder / "targets.json"
            found.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [target]}]))
            job["file_sd_configs"] = [{"files": [str(found)]}]
        config["scrape_configs"] = [job]
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(FILE)]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.source = source
        port = free_port()
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10.0, trust_env=False)
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self.log,
            stderr=self.log,
        )

    async def query(self, expr: str) -> list[float]:
        """The values of the answer."""
        return [float(series["value"][1]) for series in await self._ask(expr)]

    async def labels(self, expr: str) -> list[dict[str, str]]:
        """The labels of the answer's series."""
        return [series["metric"] for series in await self._ask(expr)]

    async def _ask(self, expr: str) -> list[Any]:
        """The series of the answer. An error of Prometheus is a failure of the test."""
        response = await self.http.get("/api/v1/query", params={"query": expr})
        if response.status_code == 503:
            raise httpx.TransportError("it has not begun to answer")
        answer = response.json()
        assert answer["status"] == "success", f"{expr}: {answer}"
        return answer["data"]["result"]

    async def data(self, expr: str) -> list[float]:
        """The values that are numbers, as soon as there are any."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                found = [value for value in await self.query(expr) if not math.isnan(value)]
            except httpx.TransportError:
                found = []
            if found or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.3)

    async def close(self) -> None:
        await self.http.aclose()
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


class Scene(NamedTuple):
    pool: Pool
    prometheus: dict[str, Prometheus]
    load: asyncio.Task[None]
    watch: AlertWatch

    async def stop_load(self) -> None:
        self.load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.load


async def keep_busy(pool: Pool, log: Path) -> None:
    """Operations that end well, time out, and are the caller's mistake; 8 at a time."""

    async def one(number: int) -> None:
        with contextlib.suppress(PoolError):
            if number % 10 == 0:
                await pool.execute("noted", timeout_s=0.05, label="x", path=str(log), seconds=0.5)
            elif number % 10 == 1:
                await pool.execute("no-such-program", question="?")
            elif number % 50 == 3:
                await pool.execute("holding", label="x", path=str(log), seconds=0.3)
            elif number % 10 == 2:
                await pool.execute("priced", **QUESTION)
            else:
                await pool.execute("qa", **QUESTION)

    for number in range(1_000_000):
        await asyncio.gather(*(one(number + offset) for offset in range(8)))
        await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("prometheus")
    usual = settings(folder, spares=1, min_pool_size=1, max_pool_size=4)
    usual["programs"]["holding"] = {"import_path": "noted:Holding"}
    usual["programs"]["priced"] = {"spec": {"signature": "context, question -> answer"}, "lm": "priced"}
    with LMServer() as model:
        profile = {"model": "openai/gpt-4o-mini", "endpoint": model.url}
        config = PoolConfig(
            **usual,
            lm_profiles={"priced": profile, "offline": {"model": "offline/extractive", "engine": "offline"}},
            default_lm="offline",
            prices={"priced": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}},
        )
        async with run(config, folder) as scene:
            yield scene


@contextlib.asynccontextmanager
async def run(config: PoolConfig, folder: Path) -> AsyncIterator[Scene]:
    async with Pool.start(config) as pool:
        await full(pool)
        port = free_port()
        app = Application(RayPools([pool.name]))
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        serving = asyncio.create_task(server.serve())
        load = asyncio.create_task(keep_busy(pool, folder / "noted"))
        watch = AlertWatch(pool.name, pool.snapshot)
        watching = asyncio.create_task(watch.run(every_s=1.0))
        (node,) = ray.nodes()
        targets = {
            "dspool": f"127.0.0.1:{port}",
            "ray": f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}",
        }
        started = {name: Prometheus(name, target, folder / name) for name, target in targets.items()}
        scene = Scene(pool, started, load, watch)
        try:
            yield scene
        finally:
            for prometheus in started.values():
                await prometheus.close()
            watching.cancel()
            await scene.stop_load()
            server.should_exit = True
            await serving


@pytest.fixture(params=["dspool", "ray"])
def prometheus(scene: Scene, request: pytest.FixtureRequest) -> Prometheus:
    return scene.prometheus[request.param]


def in_prometheus(expr: str) -> str:
    return expr.replace(POOL, ".+").replace(WINDOW, "15s")


async def test_every_dashboard_query_returns_data(prometheus: Prometheus):
    exprs = {
        f"{dashboard.uid}: {panel.title}: {legend}": in_prometheus(expr)
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for legend, expr in panel.queries
    }
    assert len(exprs) > 60
    empty = [name for name, expr in exprs.items() if not await prometheus.data(expr)]
    assert not empty


async def test_every_recorded_and_alert_query_returns_data_and_none_an_error(prometheus: Prometheus):
    missing = []
    for name, expr in [(rule.name, rule.name) for rule in RECORDED] + [
        (alert.name, alert.value) for alert in ALERTS
    ]:
        # Whether a metrics actor answers can only be told by who asks it: the service.
        if not (REACHABLE in expr and prometheus.source == "ray") and not await prometheus.data(expr):
            missing.append(name)
    assert not missing
    for alert in ALERTS:
        await prometheus.query(alert.expr)
        for metric in set(re.findall(r"(?<![:\w])dspool_\w+", alert.expr)) - {REACHABLE}:
            assert await prometheus.data(metric), f"{alert.name}: {metric}"


async def test_prometheus_evaluates_all_rules_without_error(prometheus: Prometheus):
    await prometheus.data(RECORDED[0].name)
    groups = (await prometheus.http.get("/api/v1/rules")).json()["data"]["groups"]
    rules: list[dict[str, Any]] = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(RECORDED) + len(ALERTS)
    assert {rule["health"] for rule in rules} == {"ok"}, rules


async def test_the_error_alert_sees_the_timeouts_of_the_load(prometheus: Prometheus):
    (ratio,) = await prometheus.data("pool:dspool_error_ratio:rate5m")
    assert 0.02 < ratio < 0.5  # one in nine of the served ones, less while the others ran first


async def test_the_service_says_of_each_alert_what_prometheus_says(scene: Scene, prometheus: Prometheus):
    expr = f'ALERTS{{pool="{scene.pool.name}"}}'
    deadline = time.monotonic() + PATIENCE_S
    while True:
        theirs = {(labels["alertname"], labels["alertstate"]) for labels in await prometheus.labels(expr)}
        ours = {
            (alert.name, alert.state) for alert in scene.watch.alerts if alert.state in ("pending", "firing")
        }
        if (ours == theirs and ("DspoolErrorRate", "pending") in ours) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    assert ours == theirs
    assert ("DspoolErrorRate", "pending") in ours


async def test_in_the_end_prometheus_counts_what_the_caller_counted(scene: Scene):
    """Last: it ends the load."""
    await scene.stop_load()
    await asyncio.sleep(1.0)
    ended = {name: number for name, number in scene.pool.client.totals.items() if number}
    assert ended["ok"] > 20
    pool = f'pool="{scene.pool.name}"'  # other tests' pools were on the same cluster
    timed = sum(number for outcome, number in ended.items() if outcome in ("ok", "error", "timeout"))
    for source, prometheus in scene.prometheus.items():
        deadline = time.monotonic() + PATIENCE_S
        while True:
            seen = {
                outcome: sum(
                    await prometheus.query(f'dspool_operations_total{{{pool}, outcome="{outcome}"}}')
                )
                for outcome in ended
            }
            count = sum(await prometheus.query(f"dspool_operation_duration_seconds_count{{{pool}}}"))
            enough = count == timed and (all(seen.values()) if source == "ray" else seen == ended)
            if enough or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        if source == "ray":
            # Ray's processes report a counter's differences, and one that its agent has no time to take is not sent
            # again; what is a level there, as the parts of a histogram, is.
            assert all(0 < seen[outcome] <= number for outcome, number in ended.items()), (seen, ended)
        else:
            assert seen == ended, source
        assert count == timed, source
