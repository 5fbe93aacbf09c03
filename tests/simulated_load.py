"""A made-up pool: workers that are none, a load that rises and falls, and what came of it."""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from dspool.config import PoolConfig
from dspool.core.admission.silences import Silences
from dspool.core.lifecycle.warmup import StepRun
from dspool.core.metrics.metric_store import MetricsOptions
from dspool.errors import (
    ModelUnreachable,
    ProgramError,
)
from dspool.messages import (
    Deployment,
    EndedWorker,
    PoolStatus,
    SessionInfo,
    WorkerStatus,
)
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress
from dspool.telemetry.event_log import EventBatch, EventLog, OutgoingEvent
from dspool.telemetry.metrics import Metrics
from dspool.telemetry.operation_store import OperationStore

HOSTILE = '<img src=x onerror="window.hacked=1">\'"&{{static}}'
STEPS = ("import_modules", "load_programs", "probe")
MODEL_AWAY = ModelUnreachable(
    "away", model="openai/gpt-4o-mini", provider="openai", profile="fast", reason="timeout"
)
LEAKING = 2
"""The number of the worker whose memory has grown."""
RAISED = ProgramError("raised", exception="KeyError", at="shop.answers:42")


class SimulatedLoad:
    """A pool whose load rises and falls: its workers, what it measured, and what happened to it."""

    def __init__(
        self,
        name: str = "default",
        *,
        workers: int = 4,
        seed: int = 1,
        history_s: int = 3600,
        state_dir: Path | None = None,
        ray_dashboard: str | None = None,
        pretty: bool = False,
    ) -> None:
        """`pretty`: for pictures, with names as people give them, and a size that follows what was decided."""
        self.name = name
        self.pretty = pretty
        self.odd = "classify" if pretty else HOSTILE
        self.ray_dashboard = ray_dashboard
        # Goes with the pool.
        self._directory = None if state_dir else tempfile.TemporaryDirectory(prefix="dsd-")
        self.dice = random.Random(seed)
        self.config = PoolConfig(
            name=name,
            pool_size=workers,
            min_pool_size=1,
            max_pool_size=max(8, 2 * workers),
            max_overflow=2,
            spares=1,
            enable_optimizer=True,
            state_dir=state_dir or Path(self._directory.name),
        )
        self.away = False
        self.tracing = None
        self.ended_by_token: dict[str, dict[str, float]] = {}
        self.silenced: Silences = {}
        self.paused = False
        self.desired = workers
        self.ended: list[str] = []
        self.gone: tuple[EndedWorker, ...] = ()
        self.cancelled: set[str] = set()
        self._shift = -float(history_s)
        """History is made up in the past."""
        self.metrics = Metrics(
            name,
            MetricsOptions(max_wait_s=self.config.max_wait_s, pool_size=workers),
            clock=lambda: time.monotonic() + self._shift,
            wall=lambda: time.time() + self._shift,
        )
        self.operations = OperationStore(None, max_rows=100_000)
        self.log = EventLog(name, wall=lambda: time.time() + self._shift)
        self.rows: dict[str, WorkerStatus] = {}
        self._seq = 0
        self._totals = [0] * 6
        self._next_ordinal = 0
        self._sent = 0
        self._progress: list[WarmProgress] = []
        self._runs: dict[str, list[StepRun]] = {}
        self._decisions: list[DecisionRecord] = []
        self.made: list[Deployment] = []
        self.deployed: list[Rollout] = []
        """What somebody asked for since the demo began; until then there are roll-outs that go on for ever."""
        self.versions = {"qa": 3, "summarize": 1, self.odd[:40]: 1}
        began = time.time()
        self.known = {
            f"user-{n}": SessionInfo(
                f"user-{n}", None, 1, began - 900, began - n, ("answerer",), n % 3, f"person{n % 7}"
            )
            for n in range(240)
        }
        if not pretty:
            self.known[HOSTILE] = SessionInfo(HOSTILE, None, 1, began - 500, began, (HOSTILE[:30],), 2, None)
        for _ in range(workers + 1):
            self._start_worker()
        for second in range(history_s):
            self._shift = float(second - history_s)
            self._second(whole=False)
            if second % 600 == 300:
                self._resized(self.desired, self.desired + 2, "backlog needs more workers")
            if second % 600 == 450:
                larger = self.desired if pretty else self.desired + 2
                self._resized(larger, larger - 2, "utilization needs fewer workers")
        self._shift = 0.0
        self.happen("program.deployed", {"duration_s": 2.0, "workers": workers}, program="qa", version=3)
        self.happen(
            "worker.terminate",
            {"age_s": 60.0, "operations": 12.0},
            worker=f"{name}-w2-0c41d7" if pretty else HOSTILE,
            ordinal=2,
            reason="ActorDiedError: killed by SIGKILL",
        )
        at, successor = time.time(), next(iter(self.rows))
        killed, drained = f"{name}-w2-0c41d7", f"{name}-w3-5be0aa"
        over = (successor, "spare", 0.077)
        self.gone = (
            EndedWorker(killed, 2, at - 3700, at - 60, "killed by SIGKILL", False, 812, 3, 190.0, *over),
            EndedWorker(drained, 3, at - 3700, at - 900, "drained by hand", True, 4021, 0, 188.0),
        )  # fmt: skip
        self._made_at = time.time()
        self._running: asyncio.Task[None] | None = None

    # --- what goes on ---

    def start(self) -> None:
        self._running = asyncio.get_running_loop().create_task(self._go_on())

    def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()

    async def _go_on(self) -> None:
        # Making up the other pools took a while.
        for ago in range(int(time.time() - self._made_at), 0, -1):
            self._shift = -float(ago)
            self._second(whole=False)
        self._shift = 0.0
        while True:
            self._second(whole=True)
            await asyncio.sleep(1.0)

    def runs_badly(self, program: str) -> bool:
        """Whether its current version came from a module called `broken`."""
        current = self.versions.get(program)
        return any(
            one.program == program and one.version == current and (one.import_path or "").startswith("broken")
            for one in self.made
        )

    def load(self) -> float:
        """Share of the slots in use."""
        now = time.time() + self._shift
        return 0.5 + 0.3 * math.sin(now / 240) + 0.1 * math.sin(now / 17) + 0.05 * self.dice.random()

    def _second(self, *, whole: bool) -> None:
        from dspool.core.metrics.error_groups import ErrorCounts
        from dspool.core.metrics.recorder import ClientDelta, WorkerDelta
        from dspool.core.metrics.tally import Tally

        self._seq += 1
        load, slots = self.load(), self.config.slots_per_worker
        serving = [row for row in self.rows.values() if row.state == "ready"]
        each = len(serving) * slots * load * 4
        programs, errors = {}, ErrorCounts()
        for program, share in (("qa", 0.7), ("summarize", 0.29), (self.odd[:40], 0.01)):
            tally = Tally()
            number = 0 if self.paused else int(each * share)
            failed = int(number * 0.002 + (self.dice.random() < 0.05))
            if self.runs_badly(program):
                failed = number // 2
            tally.arrivals = number
            tally.outcomes[0], tally.outcomes[1] = max(0, number - failed), failed
            if failed:
                error = MODEL_AWAY if self.dice.random() < 0.7 else RAISED
                tally.errors[error.code] = failed
                version, worker = self.versions.get(program, 1), serving[0].id if serving else None
                for _ in range(failed):
                    errors.add(program, error, version=version, worker=worker, operation="op-demo")
            for _ in range(min(number, 12)):
                tally.latency.record(0.2 * self.dice.lognormvariate(0, 0.5))
                tally.wait.record(0.01 * load * self.dice.random())
            tally.input_tokens, tally.output_tokens = 30 * number, 12 * number
            for index, count in enumerate(tally.outcomes):
                self._totals[index] += count
            programs[program] = tally
        queued = int(max(0.0, load - 0.8) * 40)
        running = int(len(serving) * slots * load)
        delta = ClientDelta(
            self.name,
            "client-demo",
            self._seq,
            1.0,
            programs,
            list(self._totals),
            0,
            queued,
            running,
            0.01,
            running,
            errors=errors.take(),
        )
        self.metrics.report(delta)
        shown = serving if whole else serving[:4]
        for row in shown:
            busy = min(float(slots), slots * load * (0.8 + 0.4 * self.dice.random()))
            tally = Tally()
            tally.outcomes[0] = int(busy * 4)
            tally.latency.record(0.2)
            count = int(busy)
            self.metrics.report(
                WorkerDelta(
                    self.name, row.id, self._seq, 1.0, row.ordinal, slots, busy, tally, count, count,
                    row.sessions, row.rss_mb,
                )
            )  # fmt: skip
            if whole:
                self.rows[row.id] = msgspec.structs.replace(
                    row, running=count, operations=row.operations + int(busy * 4), checked_at=time.time()
                )
        if whole or self._seq % 5 == 0:
            self.metrics.report(self._status())
        self.metrics.tick()
        if whole and self.dice.random() < 0.2:
            self.happen("session.moved", {"duration_s": 0.02, "items": 3}, session_hash="a1b2c3d4e5f60718",
                        worker=shown[0].id, from_worker=shown[-1].id, reason="rebalanced")  # fmt: skip
        if self._seq % 30 == 0:
            self._decided(load)

    def _decided(self, load: float) -> None:
        at = time.time() + self._shift
        numbers = {"load": round(load * 32, 3), "queued": 0.0, "need_utilization": 3.2, "need_headroom": 18.0}
        self._decisions.append(
            DecisionRecord(at, self.desired, 0, self.desired, "hold", f"utilization needs {self.desired} workers",
                           numbers, times=30, since=at - 30)
        )  # fmt: skip
        self._decisions = self._decisions[-500:]

    def _resized(self, before: int, after: int, reason: str) -> None:
        at = time.time() + self._shift
        action = "grow" if after > before else "shrink"
        self.happen("pool.resize", {"from": before, "to": after, "overflow": 0}, reason=reason, action=action)
        self._decisions.append(DecisionRecord(at, after, 0, before, action, reason, {"load": 12.0}, since=at))
        if self.pretty:
            self._bring_to(after)

    def happen(self, event: str, measurements: dict[str, float], **about: Any) -> None:
        self._sent += 1
        sent = OutgoingEvent(time.time() + self._shift, event, measurements, {"pool": self.name, **about})
        self.log.take(EventBatch(self.name, "supervisor", self._sent, [sent]))

    def _start_worker(self) -> None:
        ordinal, self._next_ordinal = self._next_ordinal, self._next_ordinal + 1
        id = f"{self.name}-w{ordinal}-{self.dice.getrandbits(24):06x}"
        ready = sum(row.state == "ready" for row in self.rows.values())
        strange = ordinal == 1 and not self.pretty
        leaks = ordinal == LEAKING
        node = HOSTILE if strange else "node-1"
        self.rows[id] = WorkerStatus(
            id, ordinal, "ready" if ready < self.desired else "spare", 1000 + ordinal, node, sessions=ordinal % 9,
            slots=self.config.slots_per_worker, started_at=time.time() - 4000 + ordinal, operations=ordinal * 10,
            rss_mb=1600.0 if leaks else 180.0 + ordinal % 30, own_mb=1450.0 if leaks else 60.0, fresh_mb=55.0,
            reason=HOSTILE if strange else "", start="fork", checked_at=time.time(),
        )  # fmt: skip
        self._runs[id] = [
            StepRun(id, index, step, 0.1 + 0.2 * self.dice.random()) for index, step in enumerate(STEPS)
        ]

    def _status(self) -> PoolStatus:
        ready = sum(row.state == "ready" for row in self.rows.values())
        state = "paused" if self.paused else "ready"
        return PoolStatus(
            self.name, state, True, self.desired, ready, len(self.rows) - ready, 1, tuple(self.rows.values()),
            dict(self.versions), "", 1, ended=self.gone,
        )  # fmt: skip

    def _here(self) -> None:
        if self.away:
            from dspool.errors import WorkerLost

            raise WorkerLost("the metrics actor is away")
