"""How long does a service, and a pool, take from nothing; does it start on a busy machine; what does a start leave that
is killed half-way; does it start where people install it?

    python -m benchmarks.start [--json] [--quick] [--only PART,...]
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from benchmarks import confined, installed
from benchmarks.common import ROOT, arguments, finish, header

PARTS = ("idle", "pool", "load", "killed", "wheel", "confined", "size")
MARK = "BENCH_START"
"""Marks every process of one start."""
LIMIT_S = 300.0
BUSY_A_CORE = 25
QUESTION = {"inputs": {"context": "Tea is made of leaves.", "question": "What is tea made of?"}}
POOL = """
import asyncio, json, tempfile, time
from dspool import Pool
async def main(state_dir):
    began = time.monotonic()
    async with Pool.start(state_dir=state_dir) as pool:
        ready = time.monotonic()
        await pool.execute("qa", context="Tea is made of leaves.", question="What is tea made of?")
        print(json.dumps({"start_s": ready - began, "answer_s": time.monotonic() - ready}), flush=True)
with tempfile.TemporaryDirectory() as state_dir:
    asyncio.run(main(state_dir))
"""


class Start(NamedTuple):
    """One start that was tried."""

    ok: bool
    took_s: float
    """From nothing to the first answer."""
    steps: dict[str, float]
    said: str = ""


def up_command(state: Path, python: Path | str = sys.executable) -> list[str]:
    config = state / "pool.yaml"
    config.write_text(json.dumps({"init_timeout_s": LIMIT_S}))
    return [str(python), "-m", "dspool.cli", "up", "--json", "--port", "0",
            "--state-dir", str(state), "--config", str(config)]  # fmt: skip


@contextmanager
def running(command: Sequence[str], mark: str = "", **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command; ended by SIGTERM, then with all that it started."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**environ, MARK: mark}, **options,
    )  # fmt: skip
    try:
        yield process
    finally:
        family = []
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        for one in psutil.wait_procs(family, timeout=10)[1]:
            one.kill()
        process.wait()


def started(command: Sequence[str], **options: Any) -> Start:
    """Start the service and ask it once."""
    began, said = time.monotonic(), []
    with running(command, **options) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "ready":
                answer = httpx.post(
                    f"{event['url']}/v1/pools/default/programs/qa/execute",
                    json=QUESTION,
                    trust_env=False,
                    timeout=60,
                )
                took_s = time.monotonic() - began
                steps = {one["step"]: one["took_s"] for one in event.get("timings", ())}
                return Start(answer.status_code == 200, took_s, steps, answer.text)
    return Start(False, time.monotonic() - began, {}, "".join(said[-5:]))


def medians(starts: Sequence[Start]) -> dict[str, float]:
    names = {name: None for start in starts for name in start.steps}
    return {name: round(statistics.median(s.steps.get(name, 0.0) for s in starts), 2) for name in names}


def idle(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="dsp-b-", dir="/tmp") as directory:
        starts = []
        for number in range(count):
            state = Path(directory, str(number))
            state.mkdir()
            starts.append(started(up_command(state)))
    bad = [start.said for start in starts if not start.ok]
    up_s = round(statistics.median(start.took_s for start in starts), 2)
    return {"up_s": up_s, "steps": medians(starts), **({"up_failed": bad} if bad else {})}


def pool(count: int) -> dict[str, Any]:
    found = []
    for _ in range(count):
        done = subprocess.run(
            [sys.executable, "-c", POOL], capture_output=True, text=True, timeout=LIMIT_S, check=True
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    steps = {key: round(statistics.median(one[key] for one in found), 3) for key in found[0]}
    return {"pool_start_s": round(steps["start_s"], 2), "pool_steps": steps}


def load(count: int, busy: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="dsp-b-", dir="/tmp") as directory, ExitStack() as stack:
        for _ in range(busy):
            spinning = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
            stack.callback(spinning.wait)
            stack.callback(spinning.kill)
        starts = []
        for number in range(count):
            state = Path(directory, str(number))
            state.mkdir()
            starts.append(started(up_command(state)))
    bad = [start.said for start in starts if not start.ok]
    return {"up_under_load_ok": sum(start.ok for start in starts), **({"load_failed": bad} if bad else {})}


def killed(count: int, longest_s: float) -> dict[str, Any]:
    """Starts that are told to end at random moments; `killed_starts_clean` left nothing."""
    clean, left = 0, []
    for number in range(count):
        with tempfile.TemporaryDirectory(prefix="dsp-b-", dir="/tmp") as directory:
            mark, state = f"{os.getpid()}-{number}", Path(directory)
            before = leftovers()
            moment_s = random.uniform(0.0, longest_s)
            with running(up_command(state), mark) as process:
                time.sleep(moment_s)
                process.send_signal(random.choice((signal.SIGINT, signal.SIGTERM)))
                process.wait(120)
            remains = [*processes_of(mark), *sorted(leftovers() - before)]
            remains += ["run.json"] if (state / "run.json").exists() else []
        clean += not remains
        left += [f"after {moment_s:.2f} s: {one}" for one in remains]
    return {"killed_starts_clean": clean, **({"left": left} if left else {})}


def leftovers() -> set[str]:
    """Directories of services that nobody uses: others may run on this machine."""
    used = []
    for process in psutil.process_iter():
        try:
            used += process.cmdline()
        except psutil.Error:
            continue
    found = {str(path) for path in Path("/tmp").glob("dspool-????????")}
    return {path for path in found if not any(path in part for part in used)}


def processes_of(mark: str) -> list[str]:
    """What still runs with `mark` in its environment, 10 s at most after its end."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return [str(one) for one in psutil.wait_procs(found, timeout=10)[1]]


def wheel() -> dict[str, Any]:
    """The service from the wheel, in an environment with nothing else, outside the checkout."""
    with tempfile.TemporaryDirectory(prefix="dsp-b-", dir="/tmp") as directory:
        python = installed.install(installed.build_wheel(Path(directory)), Path(directory, "env"))
        state = Path(directory, "state")
        state.mkdir()
        start = started(up_command(state, python), cwd=directory)
    return {"wheel_serves": start.ok, **({} if start.ok else {"wheel_failed": start.said})}


def confined_start() -> dict[str, Any]:
    """The service where a careful container runs it."""
    if confined.flags() is None:
        return {"confined_serves": False, "confined_failed": "this system allows no namespaces"}
    with tempfile.TemporaryDirectory(prefix="dsp-b-", dir="/tmp") as directory:
        python = installed.install(installed.build_wheel(Path(directory)), Path(directory, "env"))
        state, place = Path(directory, "state"), Path(directory, "root")
        for one in (state, place):
            one.mkdir(mode=0o777)
            one.chmod(0o777)
        inner = [str(python), "-m", "dspool.cli", "up", "--json", "--port", "0", "--state-dir", "/state"]
        # The environment of the tests has the packages; those of the new one are links to them.
        keep = [Path(directory, "env"), Path(sys.prefix).resolve()]
        start = started(confined.command(inner, state=state, place=place, keep=keep), cwd=ROOT)
    return {"confined_serves": start.ok, **({} if start.ok else {"confined_failed": start.said})}


def size() -> dict[str, Any]:
    """What the wheel and all that it asks for take up, without compiled modules."""
    with tempfile.TemporaryDirectory(prefix="dsp-b-", dir="/tmp") as directory:
        asked = installed.requirements(installed.build_wheel(Path(directory)))
    found = installed.size_mb({**installed.needed(asked), "dspool": metadata.distribution("dspool")})
    return {"environment_mb": round(sum(found.values()))}


def main() -> int:
    options = arguments(__doc__ or "", PARTS).parse_args()
    header("Starts")
    quick, cores = options.quick, os.cpu_count() or 1
    result: dict[str, Any] = {"failed_parts": {}}
    parts = {
        "idle": lambda: idle(1 if quick else 5),
        "pool": lambda: pool(1 if quick else 5),
        "load": lambda: load(*((1, cores) if quick else (10, BUSY_A_CORE * cores))),
        "killed": lambda: killed(2 if quick else 50, 8.0),
        "wheel": wheel,
        "confined": confined_start,
        "size": size,
    }
    for part in options.only:
        try:
            seen = parts[part]()
        except Exception as failed:
            seen = {}
            result["failed_parts"][part] = f"{type(failed).__name__}: {failed}"[:500]
        print(f"  {part}: {seen or result['failed_parts'][part]}", flush=True)
        result |= seen
    finish(result, as_json=options.json)
    return 1 if result["failed_parts"] else 0


if __name__ == "__main__":
    sys.exit(main())
