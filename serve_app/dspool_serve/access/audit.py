"""The audit log: who did or tried what that needs an admin. One JSON object a line, in `audit.jsonl` and in the log.

Bodies are never written: they may hold prompts, state or code.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from dspool.core.admission.access import Role
from dspool.errors import ConfigError
from dspool_serve.http.requests import Request
from dspool_serve.http.routing import Route

log = logging.getLogger("dspool.audit")
NAME = "audit.jsonl"
_LONGEST = 300
_READ_BYTES = 2**20


class Audit:
    """Appends to `file`; None writes to the log only.

    Raises:
        ConfigError: the file cannot be written: an admin's deeds would go unrecorded.
    """

    def __init__(self, file: Path | None, *, wall: Callable[[], float] = time.time) -> None:
        self._file = file
        self._wall = wall
        if file is not None:
            try:
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._append(file, b"")
            except OSError as failed:
                raise ConfigError(
                    f"the audit log {file} cannot be written: {failed.strerror}", key="state_dir"
                ) from failed

    def done(self, request: Request, route: Route, status: int, problem: str) -> None:
        """An admin's request ended so."""
        event = "done" if status < 400 else "failed"
        self._record(request, event, "admin", route=route.path, status=status, problem=problem)

    def denied(self, request: Request, role: Role, needs: Role) -> None:
        self._record(request, "denied", role, status=403, problem="not_allowed", needs=needs)

    def login(self, request: Request, role: Role, problem: str = "") -> None:
        """Somebody logged in at the dashboard, or tried to."""
        self._record(
            request, "denied" if problem else "done", role, status=401 if problem else 200, problem=problem
        )

    def newest(self, limit: int) -> list[dict[str, Any]] | None:
        """The newest records, newest first; None if there is no file. Reads no more than the file's last MiB."""
        if self._file is None:
            return None
        try:
            with self._file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _READ_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return []
        found: list[dict[str, Any]] = []
        for line in reversed(lines):
            if len(found) >= limit:
                break
            # The first one may lack its beginning.
            with contextlib.suppress(msgspec.DecodeError):
                found.append(msgspec.json.decode(line, type=dict[str, Any]))
        return found

    def _record(self, request: Request, event: str, role: Role, **facts: Any) -> None:
        scope = request.scope
        record = {
            "at": datetime.datetime.fromtimestamp(self._wall(), datetime.UTC).isoformat(
                timespec="milliseconds"
            ),
            "event": event,
            "principal": request.principal or "local",
            "role": role,
            "method": scope["method"],
            "path": str(scope["path"])[:_LONGEST],
            **{name: value for name, value in facts.items() if value != ""},
            "request_id": request.headers.get(b"x-request-id", b"").decode("latin-1")[:100],
            "client": request.client,
        }
        # JSON escapes line breaks: nobody can write a second record into a path.
        line = msgspec.json.encode(record)
        log.info("audit %s", line.decode(), extra={"audit": record})
        if self._file is not None:
            try:
                self._append(self._file, line + b"\n")
            except OSError as failed:
                log.error("the audit log %s cannot be written: %s", self._file, failed.strerror)

    @staticmethod
    def _append(file: Path, line: bytes) -> None:
        # Opened each time, so that it can be rotated; one write to a file opened for appending is not torn apart.
        descriptor = os.open(
            file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            if line:
                os.write(descriptor, line)
        finally:
            os.close(descriptor)
