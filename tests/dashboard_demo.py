"""A service with made-up pools, for looking at the dashboard and for its browser tests: no Ray, no workers.

`python -m tests.dashboard_demo --port 8899 --workers 500 [--pretty] [--tokens] [--no-pools]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec

from dspool.config import PoolConfig
from dspool.core.admission.access import new_token
from dspool.core.admission.silences import AlertSilence, Silences, changed
from dspool.core.lifecycle.versions import check_known
from dspool.core.lifecycle.warmup import StepRun, WarmupReport, report
from dspool.core.metrics.metric_store import MetricsOptions
from dspool.core.metrics.operation_records import EndedOperation, FoundOperations, OperationQuery
from dspool.corrections import uvicorn_connections
from dspool.errors import (
    Conflict,
    InvalidRequest,
    ModelUnreachable,
    NotAllowed,
    ProgramError,
    StoreFailed,
    UnknownName,
    UnknownSession,
    UnknownWorker,
)
from dspool.messages import (
    Deployment,
    EndedWorker,
    GetProgramInfo,
    PoolStatus,
    Result,
    SessionInfo,
    StreamEvent,
    VersionNumbers,
    WorkerStatus,
)
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress
from dspool.telemetry.event_log import EventBatch, EventLog, EventPage, OutgoingEvent
from dspool.telemetry.log_files import LogLine, LogPage, LogTail
from dspool.telemetry.metrics import Metrics
from dspool.telemetry.operation_store import OperationStore
from dspool.telemetry.pseudonyms import principal_hash, sealed, session_hash
from dspool.telemetry.snapshot import PoolLimits, Snapshot
from dspool.tokens import TokenSource
from dspool_console import Console
from dspool_serve.access.audit import Audit
from dspool_serve.access.security import Security
from dspool_serve.api.application import Application
from dspool_serve.pools import Settings

HOSTILE = '<img src=x onerror="window.hacked=1">\'"&{{static}}'
TRIED = {
    "module": "Answer",
    "inputs": {
        "type": "object",
        "properties": {
            "question": {"type": "string", "description": "what the customer wants to know"},
            "tone": {"enum": ["friendly", "formal"]},
            "order": {"$ref": "#/$defs/Order"},
            "photo": {
                "anyOf": [
                    {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"},
                    {"type": "null"},
                ],
                "description": "a picture of the parcel",
            },
            "limit": {"type": "integer"},
        },
        "required": ["question", "tone", "order"],
        "$defs": {
            "Order": {
                "type": "object",
                "required": ["number", "lines"],
                "properties": {
                    "number": {"type": "integer"},
                    "lines": {"type": "array", "items": {"type": "string"}},
                },
            }
        },
    },
}
"""What workers say of each program."""
STEPS = ("import_modules", "load_programs", "probe")
MODEL_AWAY = ModelUnreachable(
    "away", model="openai/gpt-4o-mini", provider="openai", profile="fast", reason="timeout"
)
LEAKING = 2
"""The number of the worker whose memory has grown."""
RAISED = ProgramError("raised", exception="KeyError", at="shop.answers:42")


class SimulatedPool:
    """A `ClusterPool` whose load rises and falls; everything that is asked of it is done at once."""

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

    # --- what operators ask ---

    async def status(self) -> PoolStatus:
        return self._status()

    async def resize(self, size: int) -> int:
        if not self.config.min_pool_size <= size <= self.config.max_pool_size:
            raise InvalidRequest(
                f"size must be {self.config.min_pool_size}..{self.config.max_pool_size}, got {size}"
            )
        self._resized(self.desired, size, "by hand")
        self._bring_to(size)
        return size

    def _bring_to(self, size: int) -> None:
        self.desired = size
        ready = [row for row in self.rows.values() if row.state == "ready"]
        for row in ready[size:]:
            del self.rows[row.id]
        while sum(row.state == "ready" for row in self.rows.values()) < size:
            self._start_worker()

    async def pause(self) -> None:
        self.paused = True

    async def resume(self) -> None:
        self.paused = False

    async def drain(self, worker_id: str, *, wait_s: float | None = None) -> bool:
        if worker_id not in self.rows:
            raise UnknownWorker(f"there is no worker {worker_id!r}")
        del self.rows[worker_id]
        self.happen(
            "worker.terminate", {"age_s": 9.0, "operations": 5.0}, worker=worker_id, reason="drained by hand"
        )
        self._start_worker()
        return True

    restart = drain

    async def cancel(self, operation_id: str) -> str:
        if operation_id in self.cancelled:
            raise UnknownName("it has ended")
        self.cancelled.add(operation_id)
        return next(iter(self.rows))

    def room(self) -> int:
        return sys.maxsize

    async def end_login(self, token: str, login: str, until: float) -> dict[str, dict[str, float]]:
        self.ended_by_token.setdefault(token, {})[login] = until
        return await self.ended_logins()

    async def ended_logins(self) -> dict[str, dict[str, float]]:
        return {token: dict(logins) for token, logins in self.ended_by_token.items()}

    async def silence_alert(self, alert: str, silence: AlertSilence | None) -> Silences:
        self.silenced = changed(self.silenced, alert, silence, now=time.time())
        return self.silenced

    async def silences(self) -> Silences:
        return self.silenced

    async def take_allowance(self, token: str, limits: Any, wanted: int) -> Any:
        raise StoreFailed("nobody counts for all here")

    async def deployments(self) -> list[Deployment]:
        return self.made + [
            Deployment(program, version, spec={"signature": "question -> answer"})
            for program in ("qa", "summarize", self.odd[:40])
            for version in range(1, 4)
        ]

    async def current_versions(self) -> dict[str, int]:
        return dict(self.versions)

    async def run(self, command: Any, **options: Any) -> Result:
        assert isinstance(command, GetProgramInfo)
        return Result("look", "demo-w0-abcdef", {"program": command.program, **TRIED})

    async def stream(self, command: Any, **options: Any) -> AsyncGenerator[StreamEvent | Result]:
        yield StreamEvent("status", "", "Calling tool search")
        await asyncio.sleep(0.3)
        for word in ("The", " order", " 4711", " left", " the", " house", " on", " Tuesday."):
            yield StreamEvent("token", "answer", word)
            await asyncio.sleep(0.05)
        outputs = {
            "answer": "The order 4711 left the house on Tuesday.",
            "sources": ["orders/4711", "parcels/88"],
        }
        usage = {"openai/gpt-4o-mini": {"prompt_tokens": 812, "completion_tokens": 64, "total_tokens": 876}}
        yield Result("9f3c52e81a77-12", "demo-w0-abcdef", {"outputs": outputs}, 3, 0.002, 1.31, usage)

    async def rollback(self, program: str, version: int | None = None, *, by: str = "") -> Deployment:
        version = version or max(1, self.versions[program] - 1)
        back = Rollout(
            program=program, version=version, previous=self.versions[program], phase="done", kind="rollback", by=by,
            began_at=time.time(), ended_at=time.time(), workers_done=4, workers_total=4,
        )  # fmt: skip
        self.deployed.append(back)
        self.versions[program] = version
        self.happen("program.deployed", {"duration_s": 1.0, "workers": 4}, program=program, version=version)
        return Deployment(program, version, spec={})

    async def end_session(self, id: str) -> None:
        if id not in self.known:
            raise UnknownSession(f"there is no session {id!r}")
        del self.known[id]
        self.ended.append(id)

    # --- what pages ask ---

    def signing_key(self) -> bytes:
        return b"k" * 32

    async def live_update(self, after: float | None = None, *, workers: bool = False) -> Any:
        self._here()
        return self.metrics.live_update(after, workers=workers)

    async def table(
        self,
        duration_s: float,
        *,
        program: str | None = None,
        ordinal: int | None = None,
        worker: str | None = None,
        resolution_s: float = 0.0,
    ) -> Any:
        self._here()
        asked = {"program": program, "ordinal": ordinal, "worker": worker}
        return self.metrics.table(duration_s, **asked, resolution_s=resolution_s)

    async def errors(self) -> Any:
        self._here()
        return self.metrics.errors()

    async def find_operations(self, query: OperationQuery) -> FoundOperations:
        self._here()
        found, cursor = self.operations.find(query.checked())
        return FoundOperations(found, cursor, self.operations.kept, self.operations.oldest_at(), 0)

    async def snapshot(self) -> Snapshot:
        self._here()
        return Snapshot(
            metrics=self.metrics.snapshot(),
            histograms=self.metrics.histograms(),
            status=self._status(),
            limits=PoolLimits.of(self.config),
        )

    async def events(self, since: int = 0, limit: int = 100, *, timeout_s: float = 0.0) -> EventPage:
        self._here()
        return self.log.page(since, limit)

    async def worker_operations(self, worker_id: str) -> list[dict[str, Any]]:
        row = self.rows.get(worker_id)
        if row is None:
            raise UnknownWorker(f"there is no worker {worker_id!r}")
        return [
            {
                "operation_id": f"op-{row.ordinal}-{slot}",
                "command": "execute_program",
                "program": ("qa", "summarize", self.odd[:40])[slot % 3],
                "session": None if slot % 2 else f"user-{slot}",
                "held_s": round(self.dice.random() * (20 if slot == 0 else 1), 3),
            }
            for slot in range(row.running)
        ]

    async def worker_memory(self, worker_id: str) -> dict[str, float]:
        row = self.rows.get(worker_id)
        if row is None:
            raise UnknownWorker(f"there is no worker {worker_id!r}")
        return {"rss_mb": row.rss_mb, "pss_mb": row.rss_mb * 0.4, "uss_mb": row.rss_mb * 0.25}

    async def logs(
        self,
        *,
        operation: str | None = None,
        worker: str | None = None,
        after: float = 0.0,
        limit: int = 200,
    ) -> LogPage:
        about = "qa v3" if self.pretty else HOSTILE
        text = f"2026-01-01T00:00:00.000+00:00 INFO    dspool.worker: {about} ready [pool={self.name}]"
        lines = [
            LogLine(1.0 + number, "info", "dspool.worker", worker or "w0", operation, text)
            for number in range(min(limit, 40))
        ]
        return LogPage(lines, after, False, True)

    async def worker_log(self, worker_id: str, lines: int = 200) -> LogTail:
        about = "qa v3" if self.pretty else HOSTILE
        line = f"2026-01-01T00:00:00.000+00:00 INFO    dspool.worker: {about} ready [pool={self.name}]"
        return LogTail([line] * min(lines, 40), False, "worker-demo.err", True)

    async def worker_actor_id(self, worker_id: str) -> str:
        return "ab" * 16

    async def worker_warm_runs(self, worker_id: str) -> list[StepRun]:
        return self._runs.get(worker_id, [])

    async def decisions(self, limit: int = 50) -> list[DecisionRecord]:
        return self._decisions[-limit:][::-1]

    async def warmup_report(self) -> WarmupReport:
        runs = [run for row in self._runs.values() for run in row]
        return report("staged", runs, expected_steps=len(STEPS))

    async def warm_progress(self, since: int = 0) -> list[WarmProgress]:
        return [one for one in self._progress if one.sequence > since]

    async def stream_warm(self, strategy: Any = None) -> AsyncGenerator[WarmProgress | WarmupReport]:
        if self._progress and self._progress[-1].kind != "end":
            raise Conflict("a warm-up is running; wait for its end")
        last = self._progress[-1].sequence if self._progress else 0
        # Goes on if nobody listens.
        self._warming = asyncio.get_running_loop().create_task(self._warm())
        while not self._warming.done() or self._progress[-1].sequence > last:
            await asyncio.sleep(0.01)
            for moment in await self.warm_progress(last):
                last = moment.sequence
                yield moment
        yield await self.warmup_report()

    async def _warm(self) -> None:
        ids = list(self.rows)[:20]
        self._tell("begin", total=len(ids))
        for number, id in enumerate(ids):
            self._tell("stage", index=number, total=1)
            for index, step in enumerate(STEPS):
                await asyncio.sleep(0.1)
                self._tell("step", worker_id=id, step=step, index=index, total=len(STEPS))
        self._tell("end")

    def _tell(self, kind: Any, **about: Any) -> None:
        self._progress.append(WarmProgress(len(self._progress) + 1, kind, **about))

    async def deploy(self, deployment: Deployment, **options: Any) -> Deployment:
        *_, done = [moment async for moment in self.stream_deploy(deployment, **options)]
        return done

    async def stream_deploy(
        self, wanted: Deployment, *, canary_s: float | None = None, new: bool | None = None
    ) -> AsyncGenerator[Rollout | Deployment]:
        if new is False:
            check_known(wanted.program, self.versions)
        if wanted.import_path == "forbidden:Program":
            raise NotAllowed("import_path 'forbidden:Program' is not within allowed_imports")
        previous = self.versions.get(wanted.program)
        rollout = Rollout(
            program=wanted.program, version=max((one.version for one in self.made), default=3) + 1,
            previous=previous, phase="loading", began_at=time.time(), by=wanted.by, workers_total=4,
        )  # fmt: skip
        self.deployed.append(rollout)
        yield msgspec.structs.replace(rollout)
        # Under the canary it does well enough.
        rollout.phase, rollout.canary, rollout.watched_s = "canary", next(iter(self.rows)), 2.0
        rollout.old, rollout.new = VersionNumbers(600, 2, 0.021), VersionNumbers(200, 1, 0.019)
        yield msgspec.structs.replace(rollout)
        made = msgspec.structs.replace(wanted, version=rollout.version)
        self.made.append(made)
        self.versions[wanted.program] = rollout.version
        rollout.phase, rollout.workers_done, rollout.ended_at = "done", 4, time.time()
        self.happen(
            "program.deployed",
            {"duration_s": 1.0, "workers": 4},
            program=wanted.program,
            version=rollout.version,
        )
        yield msgspec.structs.replace(rollout)
        yield made

    async def rollouts(self) -> list[Rollout]:
        if self.deployed:
            return [msgspec.structs.replace(one) for one in reversed(self.deployed)]
        began = time.time() - time.time() % 60
        share = (time.time() - began) / 60
        number = int(share * 200)
        running = Rollout(
            program="qa", version=4, previous=3, phase="canary" if share < 0.5 else "rolling out", began_at=began,
            canary=next(iter(self.rows)), canary_s=10.0, old=VersionNumbers(number * 3, 2, 0.021),
            new=VersionNumbers(number, 0, 0.019), reason="", workers_done=int(max(0.0, share - 0.5) * 2 * 4),
            workers_total=4,
        )  # fmt: skip
        last = Rollout(
            program="summarize", version=2, previous=1, phase="rolled back", began_at=began - 500,
            ended_at=began - 480, canary=next(iter(self.rows)), canary_s=10.0, old=VersionNumbers(100, 1, 0.02),
            new=VersionNumbers(20, 12, 0.03), reason="error rate 60.0%, before 1.0%",
        )  # fmt: skip
        return [running, last]

    async def sessions(
        self, *, limit: int = 100, after: str | None = None, owner: str | None = None, containing: str = ""
    ) -> tuple[list[SessionInfo], str | None]:
        ids = list(self.rows)
        rows = [
            msgspec.structs.replace(info, owner=ids[index % len(ids)])
            for index, info in enumerate(sorted(self.known.values(), key=lambda info: info.id))
        ]
        found = [
            info
            for info in rows
            if (after is None or info.id > after)
            and (owner is None or info.owner == owner)
            and (not containing or containing in f"{info.id}\0{info.owner}\0{info.principal or ''}")
        ]
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    async def count_sessions(self) -> int:
        return len(self.known)

    async def close(self) -> None:
        self.stop()


def write_traces(pool: SimulatedPool, number: int = 300) -> None:
    """Spans as traced operations leave them, and the records of these operations."""
    keep_operations(pool, number)
    directory = pool.config.state_dir / "traces"
    directory.mkdir(parents=True, exist_ok=True)
    dice = random.Random(7)
    with (directory / "client-1.jsonl").open("w") as file:
        for n in range(number):
            start = time.time_ns() - (number - n) * 10**9
            took = int(2e8 * dice.lognormvariate(0, 0.6))
            trace, failed = f"{dice.getrandbits(128):032x}", n % 23 == 0
            about = {"dspool.pool": pool.name, "dspool.operation.id": f"op-{n}", "dspool.program": "qa"}
            names = (
                "operation execute_program",
                "queue",
                "worker execute_program",
                "module Predict",
                "chat offline/qa",
            )
            parent = None
            for depth, name in enumerate(names):
                span = {
                    "trace_id": trace,
                    "span_id": f"{n:08x}{depth:08x}",
                    "parent_id": parent,
                    "name": name,
                    "kind": "internal",
                    "start_ns": start + depth * took // 20,
                    "end_ns": start
                    + (took // 20 * (depth + 1) if name == "queue" else took - depth * took // 40),
                    "ok": not failed,
                    "attributes": about
                    | {"dspool.worker": next(iter(pool.rows)), "dspool.outcome": "error" if failed else "ok"}
                    | ({"error.type": "model_error", "dspool.program": pool.odd[:40]} if failed else {})
                    | (
                        {"dspool.wait_s": 0.01, "dspool.run_s": took / 1e9, "dspool.attempts": 1}
                        if not depth
                        else {}
                    ),
                    "resource": {"dspool.pool": pool.name, "service.instance.id": "client-1"},
                }
                file.write(json.dumps(span) + "\n")
                if name != "queue":
                    parent = span["span_id"]


def keep_operations(pool: SimulatedPool, number: int) -> None:
    """Records of `number` operations, one a second until now: programs, failures, sessions, callers."""
    dice = random.Random(7)
    now = time.time()
    workers = list(pool.rows)
    records = []
    for n in range(number):
        start = now - (number - n)
        took = int(2e8 * dice.lognormvariate(0, 0.6)) / 1e9
        trace, failed = f"{dice.getrandbits(128):032x}", n % 23 == 0
        session = f"user-{n % 5}" if n % 3 == 0 else None
        principal = ("ada", "eve")[n % 2]
        records.append(
            EndedOperation(
                f"op-{n}", start + took, took, 0.01, took - 0.01,
                "execute_program",
                None if session else pool.odd[:40] if failed else "qa",
                0 if session else 3 - n % 2,
                "error" if failed else "ok",
                "program_error" if failed else None,
                "KeyError" if failed else None,
                "shop.answers:41" if failed else None,
                workers[n % len(workers)], 1, trace if n % 4 == 0 else None,
                session and session_hash(session, pool.name),
                session and sealed(session, pool.name),
                principal_hash(principal, pool.name),
                sealed(principal, pool.name),
            )
        )  # fmt: skip
    pool.operations.write(records, now)


class SimulatedPools:
    def __init__(self, *pools: SimulatedPool) -> None:
        self._pools = {pool.name: pool for pool in pools}

    async def open(self) -> None:
        for pool in self._pools.values():
            pool.start()

    async def close(self) -> None:
        for pool in self._pools.values():
            pool.stop()

    def names(self) -> list[str]:
        return list(self._pools)

    def get(self, name: str) -> Any:
        from dspool.errors import UnknownPool

        if name not in self._pools:
            raise UnknownPool(f"there is no pool {name!r}")
        return self._pools[name]


def tokens_for(**roles: str) -> tuple[dict[str, str], TokenSource]:
    """Token texts by name, and a source that knows them."""
    made = {
        name: new_token(name, role, secrets.token_urlsafe(32), secrets.token_hex(4))  # type: ignore[arg-type]
        for name, role in roles.items()
    }
    lines = msgspec.json.encode([token for _, token in made.values()]).decode()
    return {name: text for name, (text, _) in made.items()}, TokenSource(None, lines)


def application(
    *pools: SimulatedPool, tokens: TokenSource | None = None, audit: Path | None = None, **settings: Any
) -> Application:
    held, security = SimulatedPools(*pools), Security(tokens, audit=Audit(audit))
    return Application(held, Settings(**settings), security, Console(held, security))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8899)
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument(
        "--history-s", type=int, default=3600, help="seconds of history to make up; each costs a little time"
    )
    parser.add_argument("--pretty", action="store_true", help="no hostile names: for pictures")
    parser.add_argument("--tokens", action="store_true")
    parser.add_argument("--no-pools", action="store_true")
    asked = parser.parse_args()
    # As Ctrl-C: what was made is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="dsd-") as directory:
        serve(asked, Path(directory))


def serve(asked: argparse.Namespace, directory: Path) -> None:
    import uvicorn

    pools = []
    if not asked.no_pools:
        pools = [
            SimulatedPool(
                name,
                workers=workers,
                seed=seed,
                history_s=asked.history_s,
                state_dir=directory / name,
                pretty=asked.pretty,
            )
            for seed, (name, workers) in enumerate((("default", asked.workers), ("other", 3)), 1)
        ]
        for pool in pools:
            write_traces(pool)
    source = None
    if asked.tokens:
        texts, source = tokens_for(root="admin", eve="reader")
        print(json.dumps(texts), flush=True)
    audit = directory / "audit.jsonl"
    # As the service has it: a viewer that leaves ends its stream, and so does a service that stops.
    uvicorn_connections.install()
    app = application(*pools, tokens=source, audit=audit)
    print(f"http://127.0.0.1:{asked.port}/dashboard", flush=True)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=asked.port,
        log_level="critical",
        lifespan="on",
    )


if __name__ == "__main__":
    main()
