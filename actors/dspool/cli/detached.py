"""`dspool up --detach`: a service in the background, which outlives the terminal that started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from dspool import private_files
from dspool.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, Output
from dspool.cli.run_file import RunFile, ServiceRun
from dspool.errors import PoolError

LOG: Final = "_DSPOOL_LOG"
"""The variable by which the service in the background knows where its output goes."""
LOG_NAME: Final = "up.log"
FLAG: Final = "--detach"
_LOOK_S: Final = 0.05
_LAST_LINES: Final = 100
"""What is shown of what a start that failed has said."""


def run_detached(arguments: Sequence[str], run_file: RunFile, out: Output) -> int:
    """Start `dspool` with `arguments` in the background and wait until it serves; returns the exit code.

    Its progress is shown as it comes. Who gives up waiting (Ctrl-C) ends the start; a terminal that closes does not.
    """
    private_files.make_directory(run_file.state_dir)
    log = run_file.state_dir / LOG_NAME
    command = [one for one in arguments if one != FLAG]
    if not out.as_json:
        command.append("--json")
    descriptor = private_files.open_descriptor(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(descriptor, "wb") as output:
        # A session of its own: neither Ctrl-C nor the end of this terminal reaches it.
        child = subprocess.Popen(
            # `-m` alone would find programs in the current directory where the workers do not.
            [sys.executable, "-P", "-m", "dspool.cli", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, LOG: str(log.absolute())},
        )
    try:
        with log.open(encoding="utf-8", errors="replace") as written:
            return _follow(child, written, run_file, log, out)
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.wait()
        return EXIT_INTERRUPTED


def _follow(
    child: subprocess.Popen[bytes], written: TextIO, run_file: RunFile, log: Path, out: Output
) -> int:
    last: deque[str] = deque(maxlen=_LAST_LINES)
    while True:
        ended = child.poll()
        run = run_file.read()
        for line in _lines(written, to_the_end=ended is not None):
            said = _object(line)
            if said.get("event") == "progress":
                out.progress(said["step"], said["text"])
            else:
                last.append(line)
        if ended is not None:
            _show_failure(last, ended, log, out)
            return ended if ended > 0 else EXIT_FAILED
        if run is not None and run.pid == child.pid and run.phase == "serving":
            facts = {"event": "ready", "detached": True, **_facts(run, run_file, log)}
            out.result(
                facts,
                f"pool {run.pool} serves at {run.url} in the background (pid {run.pid}); "
                f"`dspool down` stops it; its output goes to {log}",
            )
            return 0
        time.sleep(_LOOK_S)


def _facts(run: ServiceRun, run_file: RunFile, log: Path) -> dict[str, Any]:
    return {
        "url": run.url,
        "pool": run.pool,
        "pid": run.pid,
        "ray_address": run.ray_address,
        "state_dir": str(run_file.state_dir),
        "log": str(log),
    }


def _lines(written: TextIO, *, to_the_end: bool) -> Iterator[str]:
    """The whole lines that came since the last look; `to_the_end` what is left of one too."""
    at = written.tell()
    while line := written.readline():
        if not line.endswith("\n") and not to_the_end:
            written.seek(at)
            return
        yield line.rstrip()
        at = written.tell()


def _object(line: str) -> dict[str, Any]:
    """Empty if it is none."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _show_failure(last: Iterable[str], ended: int, log: Path, out: Output) -> None:
    """What the service said last. With JSON that is one line: its error, or how it ended."""
    how = f"exit code {ended}" if ended >= 0 else signal.Signals(-ended).name
    error = PoolError(f"the service ended before it served ({how})").to_wire()
    for line in last:
        said = _object(line)
        # With `--log-format json` it lies in a line of the log.
        found = said if said.get("event") == "error" else said.get("error")
        if isinstance(found, dict) and "message" in found:
            error = found
        elif not out.as_json and said.get("event") != "ready":
            print(line, file=sys.stderr)
    if out.as_json:
        print(json.dumps({"event": "error", **error, "log": str(log)}), file=sys.stderr, flush=True)
    else:
        out.error(PoolError(f"{error['message']} (its output is in {log})"))


__all__ = ["FLAG", "LOG", "run_detached"]
