"""What people get: whether the wheel serves by itself, whether it does where a container runs it, and how large it is.

`benchmarks.start` shows the figures.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from benchmarks import confined
from benchmarks.common import ROOT
from benchmarks.installed import UNUSED, build_wheel, install, needed, requirements, size_mb

START_S = 300
QUESTION = {"context": "Ray was started at Berkeley.", "question": "Where was Ray started?"}
_PATIENCE = {
    "DSPOOL_INIT_TIMEOUT_S": str(START_S),
    "RAY_raylet_start_wait_time_s": str(START_S),
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(START_S),
}
"""A busy machine is slow."""


class Running(NamedTuple):
    url: str
    process: psutil.Process
    """`dspool up`; confined, process 1 of its own."""
    said: list[dict[str, Any]]
    """The lines of its JSON log until it was ready."""


@contextlib.contextmanager
def serving(python: Path, directory: Path, *flags: str, confine: bool) -> Iterator[Running]:
    """`dspool up` of an environment, with files below `directory`; ended by SIGTERM. Raises if its end is not clean."""
    state, place, log = directory / "state", directory / "root", directory / "stderr.log"
    state.mkdir(mode=0o700)
    place.mkdir()
    command = [str(python), "-O", "-m", "dspool.cli", "up", "--log-format", "json", "--port", "0", *flags]
    if confine:
        keep = [python.parents[1], Path(sysconfig.get_path("purelib"))]
        command += ["--state-dir", "/state"]
        command = confined.command(command, state=state, place=place, keep=keep, environ=_PATIENCE)
        environ = dict(os.environ)
    else:
        command += ["--state-dir", str(state)]
        # Neither this checkout nor the settings of whoever runs this.
        environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | _PATIENCE
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command,
            cwd=ROOT if confine else directory,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as started,
    ):
        assert started.stdout is not None
        said = []
        for line in started.stdout:
            said.append(json.loads(line))
            if said[-1].get("step") in ("ready", "error") and "url" in said[-1]:
                break
        else:
            raise RuntimeError(f"it did not start: {said[-1:]} {log.read_text()[-2000:]}")
        process = psutil.Process(started.pid)
        if confine:
            (process,) = process.children()
        try:
            yield Running(said[-1]["url"], process, said)
        finally:
            process.send_signal(signal.SIGTERM)
            said += [json.loads(line) for line in started.stdout]
            code = started.wait()
    if code != 0:
        raise RuntimeError(f"it ended with {code}: {said[-1:]} {log.read_text()[-2000:]}")


def _answers(running: Running) -> bool:
    with httpx.Client(base_url=running.url, timeout=60, trust_env=False) as http:
        answer = http.post("/v1/pools/default/programs/qa/execute", json={"inputs": QUESTION})
    return answer.status_code == 200 and answer.json()["outputs"]["answer"] == "Berkeley"


def _serves(*, confine: bool) -> bool:
    with tempfile.TemporaryDirectory(prefix="mÿ dir ") as place:
        directory = Path(place)
        python = install(build_wheel(directory / "wheel"), directory / "environment", without=UNUSED)
        with serving(python, directory, confine=confine) as running:
            return _answers(running)


def wheel_serves() -> bool:
    """Whether the wheel answers a question from an environment of its own, outside a checkout, with `python -O`."""
    return _serves(confine=False)


def confined_serves() -> bool:
    """Whether it does on a read-only root, as process 1 of a user whom nobody knows, with 64 MB of shared memory."""
    return _serves(confine=True)


def environment_mb() -> dict[str, float]:
    """MB of files: of all that the wheel asks for (`whole`), and of what the container has of it (`container`)."""
    with tempfile.TemporaryDirectory() as place:
        asked = requirements(build_wheel(Path(place)))
    whole, container = (sum(size_mb(needed(asked, without)).values()) for without in ((), UNUSED))
    return {"whole": round(whole, 1), "container": round(container, 1)}


__all__ = ["Running", "confined_serves", "environment_mb", "serving", "wheel_serves"]
