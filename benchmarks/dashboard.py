"""What the operations dashboard costs: its viewers the service, and its page the browser.

A real pool of 2 workers under a steady load (`dspool up`, one ingress process behind HAProxy, everything on this
machine), a week of history, and Chromium:

- first_paint_s: navigation of a browser that knows nothing yet until the overview of one hour stands with its figures.
  first_paint_week_s: the same of seven days. history_s, history_week_s: until the points of the charts are there, too.
- filter_ms: the slowest of some searches of a million kept operations (`filter_operations`; with --quick 100,000), each
  the median of its times over HTTP; filter_each_ms has them all.
- viewers_100_core_pct: CPU time of the processes that a viewer reaches (the ingress, HAProxy, the metrics actor and the
  supervisor) with 100 viewers of the live stream, less the same without. Both are sampled second by second, in turns,
  so that the difference comes with its standard error. The same of all processes of the service, Ray's own with their
  much larger unrest too, is `viewers_100_all_pct`.
- longest_frame_ms: the longest time between two frames while that page of 3,600 points a series updates itself.
- page_kb: all that the first visit transfers.

The week is put into the checkpoint of the metrics actor, which is then killed and goes on from it: no benchmark waits
a week. Without Chromium the three browser figures are null.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import psutil

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from benchmarks import kept_operations
from benchmarks.common import ROOT, arguments, finish, header, spread
from benchmarks.pools import PROGRAM, SPEC
from benchmarks.services import dspool_up
from dspool.core.metrics.metric_store import MetricsOptions
from dspool.core.metrics.recorder import ClientRecorder, WorkerRecorder
from dspool.telemetry.metrics import Metrics

PARTS = ("search", "viewers", "browser")
VIEWERS = 100
RATE = 20.0
"""Operations a second of the steady load: figures move, and the machine is not full."""
HOUR = 3600
WEEK = 7 * 86_400
STEP = 300
CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PAGE = "/dashboard#/default/overview?range="
STANDS = '#main[data-shows="overview"]'
_FRAMES = """seconds => new Promise(done => {
  const gaps = [], until = performance.now() + seconds * 1000;
  let before = performance.now();
  const step = now => {
    gaps.push(now - before);
    before = now;
    now < until ? requestAnimationFrame(step) : done(gaps.slice(2));
  };
  requestAnimationFrame(step);
})"""
_WEIGHT = """() => performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation"))
  .reduce((sum, one) => sum + one.transferSize, 0)"""
_MARKED = """name => performance.getEntriesByName(name)[0]?.startTime"""


def a_week(pool: str) -> bytes:
    """A checkpoint with a week of points in every column, one a second in its last hour, ended just now."""
    now = 0.0
    began = time.time() - WEEK
    metrics = Metrics(pool, MetricsOptions(pool_size=2), clock=lambda: now, wall=lambda: began + now)
    client = ClientRecorder(pool, "hour", now=now)
    worker = WorkerRecorder(pool, f"{pool}-w0-hour", 0, 8, now=now)
    for step in [STEP] * ((WEEK - HOUR) // STEP) + [1] * HOUR:
        second = int(now)
        number = 5 + second // 60 % 7 + second % 3
        for n in range(number):
            took = 0.01 * (1 + (second * 7 + n * 13) % 29)
            client.submitted("answer")
            client.record("answer", "error" if (second + n) % 211 == 0 else "ok", took, took / 5)
            worker.started(now)
            worker.finished(now, "ok", took, {"m": {"input_tokens": 30, "output_tokens": 9}})
        now += step
        metrics.report(client.take_delta(now, queued=second % 5, running=number % 8))  # type: ignore[arg-type]
        metrics.report(worker.take_delta(now, sessions=second % 11, rss_mb=200.0))
        metrics.tick()
    return metrics.checkpoint()


def command_of(process: psutil.Process) -> str:
    """Its command line; empty if it has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def give_history(url: str, directory: Path, family: list[psutil.Process]) -> None:
    """Put a week before what the pool has measured: the metrics actor dies and goes on from our checkpoint."""
    week = a_week("default")
    (actor,) = [one for one in family if "MetricsActor" in command_of(one)]
    (directory / "metrics-default.checkpoint").write_bytes(week)
    actor.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError):
            api = f"{url}/v1/pools/default/metrics/table?range={HOUR}"
            with urlopen(api, timeout=5) as answer:
                if len(json.loads(answer.read())["at"]) >= HOUR - 120:
                    return
        if time.monotonic() > deadline:
            raise RuntimeError("the metrics actor did not take the week over")
        time.sleep(0.5)


@contextlib.contextmanager
def beside(url: str, *arguments: str) -> Iterator[dict[str, int]]:
    """`benchmarks.dashboard_load` meanwhile; what it saw is in the dictionary afterwards."""
    seen: dict[str, int] = {}
    command = [sys.executable, "-m", "benchmarks.dashboard_load", url, *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as load:
        try:
            yield seen
        finally:
            told, _ = load.communicate(timeout=30)
            seen.update(json.loads(told))


def cpu_s(family: list[psutil.Process]) -> float:
    total = 0.0
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def family_of(pid: int) -> list[psutil.Process]:
    """All processes of the service: `dspool up` and all that came of it, HAProxy too."""
    up = psutil.Process(pid)
    return [up, *up.children(recursive=True)]


def reached(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those that do something for a viewer: a stream is told by the ingress, through HAProxy, what two actors say."""
    names = ("ServeReplica:", "haproxy", "MetricsActor", "SupervisorActor")
    found = [one for one in family if any(name in " ".join(one.cmdline()) for name in names)]
    if len(found) < len(names):
        raise RuntimeError(f"of {names} only these run: {[one.cmdline() for one in found]}")
    return found


class Shares(NamedTuple):
    """Percent of one core, second by second."""

    near: list[float]
    """Of the processes that a viewer reaches."""
    all: list[float]


def watch(pid: int, seconds: int, into: Shares) -> None:
    family = family_of(pid)
    near = reached(family)
    before = time.perf_counter(), cpu_s(near), cpu_s(family)
    for _ in range(seconds):
        time.sleep(1.0)
        now = time.perf_counter(), cpu_s(near), cpu_s(family)
        took = now[0] - before[0]
        into.near.append(100 * (now[1] - before[1]) / took)
        into.all.append(100 * (now[2] - before[2]) / took)
        before = now


def difference(more: list[float], less: list[float]) -> tuple[float, float]:
    """Of the means, and its standard error."""
    error = statistics.variance(more) / len(more) + statistics.variance(less) / len(less)
    return statistics.mean(more) - statistics.mean(less), error**0.5


def viewers(url: str, pid: int, rounds: int, seconds: int) -> dict[str, Any]:
    """What 100 viewers cost: without them, with them, and so on, ending without them."""
    without, having = Shares([], []), Shares([], [])
    for number in range(rounds):
        watch(pid, seconds, without)
        with beside(url, "--viewers", str(VIEWERS)) as seen:
            # Connections and the first frame.
            time.sleep(2.0)
            watch(pid, seconds, having)
        told = seen.get("frames", 0) / VIEWERS
        if seen.get("viewers") != VIEWERS or seen.get("broken") or told < seconds:
            raise RuntimeError(f"{VIEWERS} viewers should each have had a frame a second: {seen}")
        # The end of 100 connections is work too, but not that of being looked at.
        time.sleep(1.0)
        if number == rounds - 1:
            watch(pid, seconds, without)
    cost, error = difference(having.near, without.near)
    of_all, error_of_all = difference(having.all, without.all)
    print(f"  100 viewers: {cost:.2f} % of one core (standard error {error:.2f})", flush=True)
    print(f"    of all processes {of_all:.2f} (standard error {error_of_all:.2f})", flush=True)
    if cost < 2 * error:
        print(
            "    that is less than this machine's unrest: all that can be said is that it is small",
            flush=True,
        )
    return {
        "viewers_100_core_pct": round(cost, 2),
        "viewers_100_error_pct": round(error, 2),
        "viewers_100_within_noise": cost < 2 * error,
        "viewers_100_all_pct": round(of_all, 2),
        "viewers_100_all_error_pct": round(error_of_all, 2),
    }


def browse(url: str, range_s: int, visits: int, seconds: float) -> dict[str, Any]:
    """First paints, the gaps between frames and the weight of the page, in a real Chromium."""
    from playwright.sync_api import sync_playwright

    paints, histories, gaps, weights = [], [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            for visit in range(visits):
                # A context of its own: nothing is kept of the visit before.
                with browser.new_context(viewport={"width": 1400, "height": 1000}) as context:
                    page = context.new_page()
                    complaints: list[Any] = []
                    page.on("console", lambda said, kept=complaints: kept.append(said))
                    page.goto(f"{url}{PAGE}{range_s}")
                    page.wait_for_selector(STANDS)
                    page.wait_for_function(_MARKED, arg="history")
                    for name, times in (("useful", paints), ("history", histories)):
                        times.append(page.evaluate(_MARKED, name) / 1000)
                    page.wait_for_timeout(2000)
                    weights.append(page.evaluate(_WEIGHT) / 1024)
                    if seconds and visit == visits - 1:
                        gaps = page.evaluate(_FRAMES, seconds)
                    if wrong := [said.text for said in complaints if said.type == "error"]:
                        raise RuntimeError(f"the page complained: {wrong}")
        finally:
            browser.close()
    print(f"  first paint of {range_s} s: {spread([1000 * paint for paint in paints])} ms")
    print(f"    its charts have their points after {spread([1000 * one for one in histories])} ms")
    painted = {
        "first_paint_s": round(statistics.median(paints), 3),
        "history_s": round(statistics.median(histories), 3),
        "page_kb": round(max(weights), 1),
    }
    if not gaps:
        return painted
    late = sum(gap > 50 for gap in gaps)
    print(f"  frames: {len(gaps)} in {seconds:g} s, longest {max(gaps):.1f} ms, {late} over 50 ms")
    return {
        **painted,
        "longest_frame_ms": round(max(gaps), 1),
        "frames": len(gaps),
        "frames_over_50_ms": late,
    }


def main() -> int:
    options = arguments(__doc__ or "", PARTS).parse_args()
    rounds, seconds, visits, watched = (1, 4, 2, 3.0) if options.quick else (5, 20, 7, 60.0)
    kept, times = (100_000, 3) if options.quick else (1_000_000, 7)
    header("dashboard: 2 workers, one ingress process, steady load, service and browser on the same machine")
    directory = Path(tempfile.mkdtemp(prefix="dsb-", dir="/tmp"))
    settings = {"pool_size": 2, "programs": {PROGRAM: {"spec": SPEC, "idempotent": True}}}
    try:
        if "search" in options.only:
            kept_operations.fill(directory / "d", kept)
        with dspool_up(directory / "d", settings) as (url, pid):
            each = kept_operations.searched_ms(url, times) if "search" in options.only else {}
            give_history(url, directory / "d", family_of(pid))
            with beside(url, "--rate", str(RATE)) as load:
                time.sleep(2.0)
                cost = viewers(url, pid, rounds, seconds) if "viewers" in options.only else {}
                browser: dict[str, Any] = {"first_paint_s": None, "longest_frame_ms": None, "page_kb": None}
                if "browser" in options.only and Path(CHROMIUM).exists():
                    browser = browse(url, HOUR, visits, watched)
                    week = browse(url, WEEK, visits, 0.0)
                    browser["first_paint_week_s"] = week["first_paint_s"]
                    browser["history_week_s"] = week["history_s"]
                    browser["page_kb"] = max(browser["page_kb"], week["page_kb"])
                elif "browser" in options.only:
                    print(f"  no {CHROMIUM}: nothing about the page", flush=True)
            if load.get("failed") or load.get("broken"):
                raise RuntimeError(f"operations failed: {load}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    figures = {
        "first_paint_s": browser.pop("first_paint_s"),
        "viewers_100_core_pct": cost.pop("viewers_100_core_pct", None),
        "longest_frame_ms": browser.pop("longest_frame_ms"),
        "page_kb": browser.pop("page_kb"),
        **browser,
        "history_points": HOUR,
        "history_days": WEEK // 86_400,
        "filter_ms": max(each.values(), default=None),
        "filter_operations": kept if each else None,
        "filter_each_ms": each,
        **cost,
    }
    finish(figures, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
