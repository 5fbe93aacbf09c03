"""`--log-format json`: everything as JSON lines on the standard output, for what collects the logs of containers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import msgspec

from dspool.cli.output import Output
from dspool.errors import PoolError
from dspool.telemetry.log_files import MAX_LINES, LogLine, LogPage

EVERY_S: Final = 1.0
LOGGER: Final = "dspool.up"
"""Of the lines that the command itself has to say."""


class JsonLog(Output):
    """Each line is one object with `at` (wall-clock seconds), `level`, `logger` and `text`, as `dspool logs --json`."""

    def progress(self, step: str, text: str) -> None:
        self._said("WARNING" if step in ("warning", "error") else "INFO", text, step=step)

    def ready(self, facts: dict[str, Any]) -> None:
        self._said("INFO", f"serving at {facts['url']}", step="ready", **facts)

    def error(self, failed: PoolError) -> None:
        self._said("ERROR", failed.message, step="error", error=failed.to_wire())

    def take(self, line: LogLine) -> None:
        print(json.dumps(msgspec.to_builtins(line)), file=self._stdout, flush=True)

    def _said(self, level: str, text: str, **more: Any) -> None:
        line = {"at": round(time.time(), 3), "level": level, "logger": LOGGER, "text": text, **more}
        print(json.dumps(line), file=self._stdout, flush=True)


class PoolWithLogs(Protocol):
    """A pool, as far as it is asked here."""

    async def logs(self, *, after: float, limit: int) -> LogPage: ...


async def follow(
    pool: PoolWithLogs,
    take: Callable[[LogLine], None],
    *,
    since: float,
    pause: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(EVERY_S),
) -> None:
    """Give `take` each line that `pool` logs after `since`, once.

    A pool that does not answer is asked again: its log waits in its files.
    """
    after, seen = since, frozenset[LogLine]()
    while True:
        try:
            page = await pool.logs(after=after, limit=MAX_LINES)
        except PoolError:
            page = LogPage([], after, False, True)
        for line in page.lines:
            if line not in seen:
                take(line)
        after = max(after, page.next)
        seen = frozenset(line for line in (*seen, *page.lines) if line.at >= after)
        if not page.truncated:
            await pause()


__all__ = ["EVERY_S", "JsonLog", "follow"]
