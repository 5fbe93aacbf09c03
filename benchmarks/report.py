"""Run benchmarks and write what they found: `benchmarks/report.json`, and `benchmarks/report.html` to look at.

    python -m benchmarks.report [--quick] [--keep] [NAME ...]

Each is run as its own program; what counts is its last line, one JSON object. One that fails is in the report as
failed, and makes this fail at the end. `--keep` keeps what the last report holds of those that are not run now.
The page needs nothing from elsewhere: tables and drawings are in it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from threading import Timer
from typing import Any

from benchmarks.common import ROOT, about
from benchmarks.report_page import page

NAMES = (
    "targets",
    "throughput",
    "programs",
    "peers",
    "scaling",
    "http",
    "model_call",
    "recovery",
    "cluster",
    "start",
    "startup",
    "telemetry",
    "sizing",
    "dashboard",
    "abuse",
    "soak",
    "chaos",
    "structure",
)
HERE = ROOT / "benchmarks"
LIMIT_S = 7200.0
"""For one benchmark; the longest, `peers`, takes about an hour."""
GRACE_S = 60.0


def run(name: str, quick: bool, more: Sequence[str] = (), *, show: bool = True) -> dict[str, Any]:
    """What one benchmark said: its JSON, all that it printed, how long it took. `show` says it here as well."""
    given = [*(["--quick"] if quick else []), *more]
    command = [sys.executable, "-u", "-m", f"benchmarks.{name}", "--json", *given]
    began = time.time()
    if show:
        print(f"== benchmarks.{name}", flush=True)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        late = Timer(LIMIT_S, end, [running])
        late.start()
        lines = []
        for line in running.stdout:
            lines.append(line.rstrip("\n"))
            if show and not line.startswith("{"):
                print(line, end="", flush=True)
        code = running.wait()
        late.cancel()
    entry: dict[str, Any] = {
        "name": name,
        "command": " ".join([f"python -m benchmarks.{name}", *given]),
    }
    entry |= {
        "seconds": round(time.time() - began, 1),
        "quick": quick,
        **about(),
        "cpu_load": os.getloadavg()[2],
    }
    try:
        entry["figures"] = json.loads(lines.pop())
        entry["ok"] = code == 0 and isinstance(entry["figures"], dict)
    except (IndexError, ValueError):
        entry["figures"], entry["ok"] = {}, False
    entry["printed"] = lines
    return entry


def end(running: subprocess.Popen[str]) -> None:
    """As Ctrl-C, so that what it started is ended; jobs in the background of a script are deaf to that."""
    running.send_signal(signal.SIGINT)
    try:
        running.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        running.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=escape(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all without any")
    parser.add_argument("--quick", action="store_true", help="short runs that prove that all work")
    parser.add_argument("--keep", action="store_true", help="keep what the last report holds of the others")
    parser.add_argument("--into", type=Path, default=HERE, help="the folder to write to")
    options = parser.parse_args()
    chosen = options.names or list(NAMES)
    if unknown := set(chosen) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    written = options.into / "report.json"
    entries: dict[str, Any] = {}
    if options.keep and written.exists():
        entries = json.loads(written.read_text())["benchmarks"]
    for name in chosen:
        entries[name] = run(name, options.quick)
        report = {**about(), "benchmarks": {one: entries[one] for one in NAMES if one in entries}}
        # After each: what was measured is not lost with what comes next.
        written.write_text(json.dumps(report, indent=1) + "\n")
        (options.into / "report.html").write_text(page(report))
    failed = [name for name in chosen if not entries[name]["ok"]]
    print(f"report: {options.into / 'report.html'}" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
