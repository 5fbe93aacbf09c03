"""A made-up pool as the service asks it: what operators change, and what the pages of the dashboard show."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from dspool.core.admission.silences import AlertSilence, Silences, changed
from dspool.core.lifecycle.versions import check_known
from dspool.core.lifecycle.warmup import StepRun, WarmupReport, report
from dspool.core.metrics.operation_records import FoundOperations, OperationQuery
from dspool.errors import (
    Conflict,
    InvalidRequest,
    NotAllowed,
    StoreFailed,
    UnknownName,
    UnknownSession,
    UnknownWorker,
)
from dspool.messages import (
    Deployment,
    GetProgramInfo,
    PoolStatus,
    Result,
    SessionInfo,
    StreamEvent,
    VersionNumbers,
)
from dspool.supervisor.canary import Rollout
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.warmup import WarmProgress
from dspool.telemetry.event_log import EventPage
from dspool.telemetry.log_files import LogLine, LogPage, LogTail
from dspool.telemetry.snapshot import PoolLimits, Snapshot
from tests.simulated_load import HOSTILE, STEPS, SimulatedLoad

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


class SimulatedPool(SimulatedLoad):
    """A `ClusterPool` whose load rises and falls; everything that is asked of it is done at once."""

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

    def reached(self) -> int:
        return 1

    def seen(self, why: str) -> PoolStatus:
        return PoolStatus(self.name, "unknown", False, 0, 0, 0, 0, reason=why)

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
