"""A pool's metrics with clients and workers that report to them, on a clock of their own."""

from __future__ import annotations

from dspool.core.metrics.metric_store import MetricsOptions
from dspool.core.metrics.recorder import ClientRecorder, WorkerRecorder
from dspool.messages import PoolStatus, WorkerStatus
from dspool.telemetry.metrics import Metrics

WALL = 1_000_000.0


class Scene:
    """A pool's metrics with clients and workers that flush twice a second, on a clock of their own."""

    def __init__(self, clients: int = 1, workers: int = 2, slots: int = 4, **options) -> None:
        self.now = 100.0
        self.wall_step = 0.0
        options.setdefault("pool_size", workers)
        options.setdefault("slots_per_worker", slots)
        self.options = MetricsOptions(**options)
        self.metrics = self.new_metrics()
        self.clients = [ClientRecorder("default", f"c{n}", now=self.now) for n in range(clients)]
        self.workers = [WorkerRecorder("default", f"w{n}", n, slots, now=self.now) for n in range(workers)]

    def new_metrics(self) -> Metrics:
        return Metrics(
            "default", self.options, clock=lambda: self.now, wall=lambda: WALL + self.wall_step + self.now
        )

    def run(self, outcome="ok", times=1, *, client=0, worker=None, program="qa", **more) -> None:
        """Operations from beginning to end at this moment; on a worker as well if one is named."""
        recorder = self.clients[client]
        for _ in range(times):
            recorder.submitted(program)
            if worker is not None:
                self.workers[worker].started(self.now)
                self.workers[worker].finished(self.now, outcome, more.get("run_s", 0.0))
            recorder.record(program, outcome, more.get("latency_s", 0.2), more.get("wait_s", 0.01),
                            more.get("run_s", 0.0), more.get("usage"), more.get("code"))  # fmt: skip

    def flush(self, clients=True, workers=True) -> None:
        for recorder in (self.clients if clients else []) + (self.workers if workers else []):
            delta = recorder.take_delta(self.now)
            if delta is not None:
                self.metrics.report(delta)

    def pass_time(self, seconds: float, *, each_half_second=None) -> None:
        for half in range(round(seconds * 2)):
            if each_half_second is not None:
                each_half_second()
            self.now += 0.5
            self.flush()
            if half % 2:
                self.metrics.tick()

    def snapshot(self):
        return self.metrics.snapshot()


def counts(scene: Scene) -> dict[str, int]:
    return scene.snapshot().counters.by_outcome


def status(*states: str, desired: int = 2, spares: int = 0) -> PoolStatus:
    workers = tuple(WorkerStatus(f"w{n}", n, state) for n, state in enumerate(states))
    return PoolStatus("default", "ready", True, desired, len(workers), spares, 1, workers)
