"""`dspool up --detach`: a service in the background, which outlives the terminal that started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from dspool import private_files
from dspool.cli.output import EXIT_FAILED, Output
from dspool.cli.run_file import RunFile, ServiceRun

LOG: Final = "_DSPOOL_LOG"
"""The variable by which the service in the background knows where its output goes."""
LOG_NAME: Final = "up.log"
FLAG: Final = "--detach"
_LOOK_S: Final = 0.05


def run_detached(arguments: Sequence[str], run_file: RunFile, out: Output) -> int:
    """Start `dspool` with `arguments` in the background and wait until it serves; returns the exit code.

    Its progress is shown as it comes. Who gives up waiting (Ctrl-C) ends the start; a terminal that closes does not.
    """
    private_files.make_directory(run_file.state_dir)
    log = run_file.state_dir / LOG_NAME
    command = [one for one in arguments if one != FLAG]
    if "--json" not in command and "--log-format" not in " ".join(command):
        command.append("--json")
    descriptor = private_files.open_descriptor(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(descriptor, "wb") as output:
        # A session of its own: neither Ctrl-C nor the end of this terminal reaches it.
        child = subprocess.Popen(
            [sys.executable, "-m", "dspool.cli", *command],
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
        return EXIT_FAILED


def _follow(
    child: subprocess.Popen[bytes], written: TextIO, run_file: RunFile, log: Path, out: Output
) -> int:
    while True:
        ended = child.poll()
        run = run_file.read()
        for said in _said(written):
            if said.get("event") == "progress":
                out.progress(said["step"], said["text"])
            elif ended is not None:
                print(_error(said), file=sys.stderr, flush=True)
        if ended is not None:
            return ended or EXIT_FAILED
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


def _said(written: TextIO) -> Iterator[dict[str, Any]]:
    """The whole lines that came since the last look."""
    while line := written.readline():
        try:
            said = json.loads(line)
        except ValueError:
            said = {"text": line.rstrip()}
        yield said if isinstance(said, dict) else {"text": line.rstrip()}


def _error(said: dict[str, Any]) -> str:
    message = said.get("message") or said.get("text") or json.dumps(said)
    return f"Error: {message}" if said.get("event") == "error" else str(message)


__all__ = ["FLAG", "LOG", "run_detached"]
