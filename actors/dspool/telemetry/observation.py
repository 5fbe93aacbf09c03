"""The metrics and events of a pool in one process, and how they survive it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from dspool import private_files
from dspool.config import PoolConfig
from dspool.core.metrics.recorder import Delta
from dspool.errors import InvalidRequest
from dspool.messages import PoolStatus
from dspool.telemetry.event_log import FORWARDED, EventBatch, EventLog, EventPage
from dspool.telemetry.events import attach, detach
from dspool.telemetry.metrics import Metrics

CHECKPOINT_EVERY_S = 30.0
MAX_PAGE = 1000
MAX_POLL_S = 30.0

log = logging.getLogger("dspool.metrics")


class Observation:
    """The content of the metrics actor. One event loop owns it."""

    def __init__(self, config: PoolConfig, metrics: Metrics, *, event_limit: int = 2000) -> None:
        self.metrics = metrics
        self.log = EventLog(config.name, event_limit)
        self._file = checkpoint_file(config)
        self._change = asyncio.Event()
        attach(self.log, FORWARDED)

    def close(self) -> None:
        detach(self.log)

    def report(self, message: Delta | PoolStatus | EventBatch) -> None:
        """Take a message of a client, worker or supervisor."""
        if isinstance(message, EventBatch):
            self.log.take(message)
            change, self._change = self._change, asyncio.Event()
            change.set()
        else:
            self.metrics.report(message)

    async def events(self, since: int = 0, limit: int = 100, timeout_s: float = 0.0) -> EventPage:
        """Events after number `since`; waits up to `timeout_s` for one if there is none. `since` 0: the newest.

        Raises:
            InvalidRequest: `limit` or `timeout_s` is out of range.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit must be from 1 to {MAX_PAGE}, got {limit}", field="limit")
        if not 0 <= timeout_s <= MAX_POLL_S:
            raise InvalidRequest(
                f"timeout_s must be from 0 to {MAX_POLL_S:g}, got {timeout_s}", field="timeout_s"
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while timeout_s and self.log.newest <= max(since, self.log.began):
                    await self._change.wait()
        return self.log.page(since, limit)

    # --- across restarts ---

    async def keep(self) -> None:
        """Write a checkpoint every 30 s, until cancelled."""
        while True:
            await asyncio.sleep(CHECKPOINT_EVERY_S)
            await self.save()

    async def save(self) -> None:
        """Write a checkpoint. Logs a failure: without one, only history dies with this process."""
        data = self.metrics.checkpoint()
        try:
            await asyncio.to_thread(_write, self._file, data)
        except OSError as failed:
            log.warning("the metrics checkpoint was not written: %s", failed.strerror)

    def restore(self, *, history_only: bool = False) -> bool:
        """Go on from the checkpoint of an earlier life, as `Metrics.restore`; false if there is no usable one."""
        try:
            self.metrics.restore(self._file.read_bytes(), history_only=history_only)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as unusable:
            log.warning("metrics begin anew: %s", unusable)
            return False
        return True


def checkpoint_file(config: PoolConfig) -> Path:
    return config.state_dir / f"metrics-{config.name}.checkpoint"


def _write(file: Path, data: bytes) -> None:
    private_files.make_directory(file.parent)
    private_files.replace(file, data)
