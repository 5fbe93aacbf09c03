"""A pool that did something, as the exporters see it."""

from __future__ import annotations

from dspool.config import PoolConfig
from dspool.core.metrics.metric_store import MetricsOptions
from dspool.core.metrics.recorder import ClientRecorder, WorkerRecorder
from dspool.messages import PoolStatus, WorkerStatus
from dspool.telemetry.metrics import Metrics
from dspool.telemetry.snapshot import PoolLimits, Snapshot


class Measured:
    """A pool with one client and two workers, on a clock of its own; `snapshot()` is what it exports."""

    def __init__(self, pool: str = "default", **config) -> None:
        self.now = 100.0
        self.pool = pool
        self.config = PoolConfig(**{"name": pool, "pool_size": 2, "max_pool_size": 6, "spares": 1, **config})
        self.metrics = Metrics(pool, MetricsOptions(), clock=lambda: self.now, wall=lambda: 1e9 + self.now)
        self.client = ClientRecorder(pool, "c", now=self.now)
        self.workers = [WorkerRecorder(pool, f"{pool}-w{n}-abc", n, 4, now=self.now) for n in range(2)]
        self.told = True

    def run(self, times=1, *, program="qa", outcome="ok", seconds=0.2, wait=0.004, code=None, usage=None):
        for _ in range(times):
            self.client.submitted(program)
            worker = self.workers[0]
            worker.started(self.now)
            worker.finished(self.now + seconds, outcome, seconds, code=code)
            self.client.record(program, outcome, seconds + wait, wait, seconds, usage, code)
        return self

    def snapshot(self, *, state="ready", failures=0, starts=("", "")) -> Snapshot:
        self.now += 1.0
        delta = self.client.take_delta(self.now, queued=3, running=1, oldest_wait_s=0.5)
        for found in (
            delta,
            *(worker.take_delta(self.now, sessions=2, rss_mb=10.0) for worker in self.workers),
        ):
            if found is not None:
                self.metrics.report(found)
        if self.told:
            workers = tuple(
                WorkerStatus(worker.reporter, worker.ordinal, "ready", start=start)
                for worker, start in zip(self.workers, starts, strict=True)
            )
            self.metrics.report(
                PoolStatus(self.pool, state, state == "ready", 2, 2, 1, 1, workers, failures=failures)
            )
        self.metrics.tick()
        return Snapshot(
            metrics=self.metrics.snapshot(),
            histograms=self.metrics.histograms(),
            status=self.metrics.status(),
            limits=PoolLimits.of(self.config),
            blocked_s={"qa": 1.5},
        )
