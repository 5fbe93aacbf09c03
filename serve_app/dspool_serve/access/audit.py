"""The audit log: who changed what, or tried to, with an admin's right. One JSON object a line, in `audit.jsonl` and in
the log. Who only looks is not in it, but for an admin who looks into another's session.

Bodies are never written: they may hold prompts, state or code. Whatever else somebody sends is cut short and written in
ASCII, so that no reader of lines sees more of them than there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Final, NamedTuple

from dspool.core.admission.access import Role
from dspool.core.admission.attempts import holder_of
from dspool.core.admission.denials import OTHERS, Denials
from dspool.core.lifecycle.canary import ROLLED_BACK
from dspool.errors import ConfigError, PoolError
from dspool_serve.access.audit_file import AuditFile
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.problems import kind_of
from dspool_serve.http.requests import Request
from dspool_serve.http.routing import Route

log = logging.getLogger("dspool.audit")
NAME: Final = "audit.jsonl"
MAX_BYTES: Final = 16 * 2**20
FILES: Final = 5
WAITING: Final = 1000
"""Records that wait to be written."""
_AT_ONCE: Final = 200
_WRITTEN_S: Final = 2.0
"""How long an answer waits for its record: a disk that stands still must not keep an admin from acting."""
_LOOK_S: Final = 1.0
_LONGEST: Final = 300

Record = dict[str, Any]


class _Entry(NamedTuple):
    record: Record | None
    """None: to be told when all before it is written."""
    written: Callable[[], None] | None = None


class Audit:
    """Appends to `file`; None writes to the log only. A thread writes, so that no event loop waits for a disk.

    What an admin does is written one by one. Denials and logins, which anybody can cause, are summed: the first of a
    kind is written, then how often it came in the next minute. When records come faster than they can be written, they
    are dropped and counted.

    Raises:
        ConfigError: the file cannot be written: an admin's deeds would go unrecorded.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        max_bytes: int = MAX_BYTES,
        files: int = FILES,
        waiting: int = WAITING,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._clock = wall, clock
        self._waiting: queue.Queue[_Entry] = queue.Queue(waiting)
        self._denials = Denials()
        self._denied: dict[Hashable, Record] = {}
        self._lock = threading.Lock()
        """Over the denials, which the thread looks at too."""
        self._thread: threading.Thread | None = None
        self.dropped = 0
        """Records that were not written, since this process began."""
        self._told_dropped = 0
        try:
            self._file = None if file is None else AuditFile(file, max_bytes=max_bytes, files=files)
        except OSError as failed:
            raise ConfigError(
                f"the audit log {file} cannot be written: {failed.strerror}", key="state_dir"
            ) from failed

    # --- what is written down ---

    async def done(self, request: Request, route: Route, status: int) -> None:
        """An admin's request was done; returns when that is written."""
        self._put(self._ended(request, route, status, None))
        await self.written()

    async def failed(self, request: Request, route: Route, failure: PoolError) -> None:
        """An admin's request failed; returns when that is written."""
        self._put(self._ended(request, route, kind_of(failure.code).status, failure))
        await self.written()

    def ended(self, request: Request, route: Route, stream: EventStream) -> None:
        """A stream of an admin came to its end, whichever that is."""
        failure = stream.failure
        status = stream.status if failure is None else kind_of(failure.code).status
        self._put(self._ended(request, route, status, failure))

    def denied(
        self, request: Request, route: Route, problem: str, *, role: Role | None = None, **facts: Any
    ) -> None:
        """Somebody tried what they may not do."""
        status = kind_of(problem).status
        record = self._record(request, "denied", role, status=status, problem=problem, **facts)
        if self._is_first((route.method, problem), route.path, record):
            self._put(record)

    async def login(self, request: Request, role: Role, status: int = 200) -> None:
        """Somebody logged in at the dashboard or out: summed as denials are, for any token may do that without end."""
        record = self._record(request, "done" if status < 400 else "failed", role, status=status)
        if self._is_first(("login", record["event"]), record["path"], record):
            self._put(record)
        await self.written()

    def _is_first(self, kind: tuple[str, ...], route: str, record: Record) -> bool:
        """Whether `record` is the first of its kind from its principal and address in this window."""
        key = (record["principal"], route, *kind, holder_of(record.get("client", "")))
        with self._lock:
            # The thread goes on while there are any.
            if not self._denials.add(key, now=self._clock()):
                return False
            # What is the same for all of the kind.
            same = {name: value for name, value in record.items() if name not in ("path", "request_id")}
            self._denied[key] = same | {"route": route}
        return True

    def newest(self, limit: int) -> list[Record] | None:
        """The newest records, newest first; None if there is no file. It reads files."""
        return None if self._file is None else self._file.newest(limit)

    async def written(self) -> None:
        """Wait until all so far is written, for a while."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def settle() -> None:
            if not done.done():
                done.set_result(None)

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle)

        self._put(None, tell)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done, _WRITTEN_S)

    def close(self) -> None:
        """Write what waits and what was summed."""
        if self._thread is None:
            return
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._waiting.put(_Entry(None, written.set), timeout=_WRITTEN_S)
            written.wait(_WRITTEN_S)
        self._write([*self._sums(self._clock() + self._denials.window_s)])

    # --- records ---

    def _ended(self, request: Request, route: Route, status: int, failure: PoolError | None) -> Record:
        facts: dict[str, Any] = {"route": route.path, "status": status}
        event = "done" if failure is None and status < 400 else "failed"
        if failure is not None:
            facts["problem"] = failure.code
            if failure.details.get(ROLLED_BACK):
                # The pool did what it is there for, and says why in figures of its own.
                event = "rolled_back"
                facts["reason"] = str(failure.details.get("reason", ""))[:_LONGEST]
        return self._record(request, event, "admin", **facts)

    def _record(self, request: Request, event: str, role: Role | None, **facts: Any) -> Record:
        scope = request.scope
        record = {
            "at": self._now(),
            "event": event,
            "principal": request.principal or ("local" if role == "admin" else ""),
            "role": role,
            "method": scope["method"],
            "path": str(scope["path"])[:_LONGEST],
            **facts,
            "request_id": request.headers.get(b"x-request-id", b"").decode("latin-1")[:100],
            "client": request.client[:100],
        }
        return {
            name: value for name, value in record.items() if value not in ("", None) or name == "principal"
        }

    def _now(self) -> str:
        now = datetime.datetime.fromtimestamp(self._wall(), datetime.UTC)
        return now.isoformat(timespec="milliseconds")

    def _sums(self, now: float) -> list[Record]:
        with self._lock:
            due = self._denials.due(now=now)
            kinds = {one.key: self._denied.pop(one.key, {"event": "denied"}) for one in due}
            # What was not repeated is not due.
            for key in [key for key in self._denied if key not in self._denials]:
                del self._denied[key]
        return [
            kinds[one.key]
            | {"at": self._now(), "times": one.times, "seconds": self._denials.window_s}
            | ({"others": True} if one.key is OTHERS else {})
            for one in due
        ]

    # --- the thread ---

    def _put(self, record: Record | None, written: Callable[[], None] | None = None) -> None:
        try:
            self._waiting.put_nowait(_Entry(record, written))
        except queue.Full:
            self.dropped += record is not None
            if written is not None:
                written()
        self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dspool-audit", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._idle():
            entries: list[_Entry] = []
            with contextlib.suppress(queue.Empty):
                entries.append(self._waiting.get(timeout=_LOOK_S))
                while len(entries) < _AT_ONCE:
                    entries.append(self._waiting.get_nowait())
            records = [entry.record for entry in entries if entry.record is not None]
            self._write([*records, *self._sums(self._clock())])
            for entry in entries:
                if entry.written is not None:
                    entry.written()

    def _idle(self) -> bool:
        """Whether the thread ends, for nothing is left to do; the next record begins another one."""
        with self._lock:
            if len(self._denials) or not self._waiting.empty():
                return False
            self._thread = None
            return True

    def _write(self, records: list[Record]) -> None:
        if dropped := self.dropped - self._told_dropped:
            self._told_dropped += dropped
            records.append({"at": self._now(), "event": "dropped", "times": dropped})
        if not records:
            return
        lines = [json.dumps(record) for record in records]
        for line, record in zip(lines, records, strict=True):
            log.info("audit %s", line, extra={"audit": record})
        if self._file is None:
            return
        try:
            self._file.append("".join(f"{line}\n" for line in lines).encode())
        except OSError as failed:
            self.dropped += len(records)
            log.error("the audit log %s cannot be written: %s", self._file.path, failed.strerror)


__all__ = ["NAME", "Audit"]
