"""What a running pool tells about itself: every event of the table, traces across processes, logs, checkpoints."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import dspy
import pytest
import pytest_asyncio
import ray
from harness import PATIENCE_S, QUESTION, full, kill, owner_of, pid_of, pids, until

from dspool.errors import NotAllowed, PayloadTooLarge, UnknownName, UnknownProgram
from dspool.messages import Change, Deployment, ExecuteProgram
from dspool.telemetry import events as telemetry
from dspool.telemetry.event_log import EventLog, LoggedEvent
from dspool.telemetry.pseudonyms import session_hash
from dspool.telemetry.trace_tree import find_trace, trees

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="session")]


def _listen(actor: Any) -> None:
    """In an actor: keep all its events from now on."""
    from dspool.telemetry import events as telemetry
    from dspool.telemetry.event_log import EventLog

    actor.all_events = telemetry.attach(EventLog("", 10_000))


def _heard(actor: Any) -> list[LoggedEvent]:
    return actor.all_events.after()


def _was_not_forked(worker: Any) -> None:
    for start in ("exec: the preloaded process is gone", "fork: a module starts a thread"):
        worker._start = start
        worker._report_fallback()


def _has_other_source(supervisor: Any) -> None:
    """As if `noted` had been edited since its version was first loaded."""
    handle, *_ = supervisor._handles("ready")
    noted = supervisor._deployments._history.current_of("noted")
    supervisor._deployments._source.report(handle, noted, ["noted"], "edited")


def _saw_another(store: Any) -> None:
    """As a store says before it ends, because another one serves the pool."""
    telemetry.emit("store.replaced", {}, {"pool": store._config.name, "reason": "another one serves it"})


async def arrived(pool: Any, *events: str) -> None:
    """Wait until these events have arrived: a worker that is killed takes the ones it has not sent with it."""
    deadline = time.monotonic() + PATIENCE_S
    while not set(events) <= {event.event for event in (await pool.events(0, 1000)).events}:
        assert time.monotonic() < deadline, f"not all of {events} were told"
        await asyncio.sleep(0.1)


@pytest.fixture
def here():
    log = telemetry.attach(EventLog("", 10_000))
    yield log
    telemetry.detach(log)


async def test_every_event_of_the_table_is_told_by_a_running_pool(start_pool, here, tmp_path):
    def broken(*_: Any) -> None:
        raise RuntimeError

    seen: dict[str, list[Any]] = defaultdict(list)
    telemetry.attach(broken, ["operation.start"])
    pool = await start_pool(
        pool_size=2,
        max_pool_size=3,
        session_ttl_s=15.0,
        telemetry={"log_level": "debug"},
        limits={"max_session_mb": 1},
    )
    await full(pool)
    for actor in (pool.supervisor, pool.metrics):
        await actor.__ray_call__.remote(_listen)

    # Operations, sessions, deployments.
    await pool.execute("qa", **QUESTION)
    with pytest.raises(UnknownProgram):
        await pool.execute("nothing")
    with pytest.raises(PayloadTooLarge):
        await pool.session("large").set_variable("x", "x" * 2**21)
    await pool.session("lost").set_variable("x", 1)
    # One session whose stored state cannot be read, on no worker.
    lease_of = await owner_of(pool, "lost")
    store = pool.store
    await store.ask.remote("release", pool.name, lease_of, ["lost"])
    for worker in pool.workers().values():
        await worker.forget.remote(["lost"])
    lease = await store.ask.remote("acquire", pool.name, "lost", "nobody", create=False)
    await store.ask.remote(
        "commit", pool.name, "lost", "nobody", lease.epoch, [Change("program", "p", {"spec": 5, "kwargs": 5})]
    )
    await store.ask.remote("release", pool.name, "nobody", ["lost"])
    with pytest.raises(Exception):  # noqa: B017, PT011
        await pool.session("lost").get_variable("x")
    # A worker that could not be forked.
    await next(iter(pool.workers().values())).__ray_call__.remote(_was_not_forked)
    await arrived(pool, "session.created", "session.lost", "worker.fallback")
    # Code that blocks its loop, and state that another DSPy saved.
    await pool.deploy(Deployment("holding", 0, import_path="noted:Holding"))
    await pool.execute("holding", label="x", path=str(tmp_path / "log"), seconds=0.4)
    saved = dspy.Predict("context, question -> answer").dump_state()
    versions = {"dependency_versions": {"python": "3.11", "dspy": "2.0", "cloudpickle": "3.0"}}
    spec = {"signature": "context, question -> answer"}
    await pool.deploy(Deployment("saved", 0, spec, {**saved, "metadata": versions}))
    await arrived(pool, "worker.loop_blocked", "program.saved_elsewhere")
    # A death, a move, a resize, a worker that runs other source than the one before.
    await pool.supervisor.__ray_call__.remote(_has_other_source)
    await store.__ray_call__.remote(_saw_another)
    await pool.session("moved").set_variable("x", 1)
    owner = await owner_of(pool, "moved")
    kill(pids(pool)[owner])
    assert (await pool.session("moved").get_variable("x"))["value"] == 1
    await pool.deploy(
        Deployment("qa", 0, {"signature": "context, question -> answer", "module": "ChainOfThought"})
    )
    await pool.resize(3)
    await full(pool, 3)
    # As if nobody had used the sessions for longer than they live.
    with closing(sqlite3.connect(tmp_path / "sessions.db", timeout=PATIENCE_S)) as database:
        database.execute("UPDATE sessions SET last_used_at = 0")
        database.commit()

    def collect(page: Any) -> None:
        for event in page:
            seen[event.event].append(event)

    deadline = time.monotonic() + PATIENCE_S
    gathered: set[str] = set()
    wanted = set(telemetry.EVENTS) - {"pool.terminate"}
    while not wanted <= gathered and time.monotonic() < deadline:
        seen.clear()
        collect(here.after())
        collect((await pool.events(0, 1000)).events)
        for actor in (pool.supervisor, pool.metrics):
            collect(await actor.__ray_call__.remote(_heard))
        gathered = set(seen)
        await asyncio.sleep(0.3)
    await pool.supervisor.shutdown.remote(5.0)
    collect(await pool.supervisor.__ray_call__.remote(_heard))

    assert set(telemetry.EVENTS) - set(seen) == set(), "events that nobody told"
    for name, told in seen.items():
        for event in told:
            assert not telemetry.undeclared(name, event.measurements, event.metadata), event
    moved = next(event for event in seen["session.moved"] if event.metadata["from_worker"] == owner)
    assert moved.metadata["session_hash"] == session_hash("moved", pool.name)
    assert {event.metadata["operation_id"] for event in seen["worker.checkout"]} == {
        event.metadata["operation_id"] for event in seen["worker.checkin"]
    }
    ends = [event.metadata["operation_id"] for event in seen["operation.stop"]]
    assert len(ends) == len(set(ends)) == len(seen["operation.start"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def observed(start_module_pool: Any) -> Any:
    """A pool that tells quickly what happens in it, and traces what its callers trace."""
    return await start_module_pool(
        allowed_imports=("noted", "telling"),
        telemetry={"sampling": 0.0, "log_format": "json"},
        metrics_interval_s=0.2,
        metrics_flush_interval_s=0.1,
    )


async def test_events_of_all_processes_are_in_one_place_and_can_be_followed(observed):
    pool = observed
    page = await pool.events()
    # Each process tells on its own; this waits for what comes after.
    waiting = asyncio.ensure_future(pool.events(page.next, timeout_s=20.0))
    await pool.session("s").set_variable("x", 1)
    deadline = time.monotonic() + PATIENCE_S
    told = [*page.events, *(await waiting).events]
    while not {"pool.init", "session.created"} <= {event.event for event in told}:
        assert time.monotonic() < deadline, told
        told += (await pool.events(told[-1].number if told else page.next, timeout_s=5.0)).events
    created = next(event for event in told if event.event == "session.created")
    assert created.source == created.metadata["worker"] in pids(pool)


async def test_a_pool_without_metrics_keeps_no_events(start_pool):
    pool = await start_pool(pool_size=1, enable_metrics=False)
    with pytest.raises(NotAllowed):
        await pool.events()
    await pool.execute("qa", **QUESTION)


async def trace_of(state_dir: Path, operation_id: str, spans: int) -> list[dict[str, Any]]:
    """The spans of the operation, once there are so many."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = find_trace(state_dir, operation_id)
        except UnknownName:
            found = []
        if len(found) >= spans:
            return found
        assert time.monotonic() < deadline, [span["name"] for span in found]
        await asyncio.sleep(0.1)


GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OWN = "00-9d3b1f60a7c24e5f8b0a6c7d8e9f0a1b-00f067aa0ba902b7-01"
"""A trace with nothing of other tests in it."""


async def test_one_trace_leads_from_the_caller_to_the_model_across_processes(observed):
    pool, state_dir = observed, observed.client.config.state_dir
    result = await pool.run(ExecuteProgram("qa", QUESTION), traceparent=GIVEN)
    untraced = await pool.execute("qa", **QUESTION)
    spans = await trace_of(state_dir, result.operation_id, 7)
    assert {span["trace_id"] for span in spans} == {GIVEN.split("-")[1]}
    (root,) = trees(spans)
    assert root.span["parent_id"] == GIVEN.split("-")[2]
    queue, work = root.below
    (module,) = work.below
    names = [node.span["name"] for node in (root, queue, work, module, *module.below)]
    assert names == [
        "operation execute_program",
        "queue",
        "worker execute_program",
        "module Predict",
        "adapter ChatAdapter.format",
        "chat extractive",
        "adapter ChatAdapter.parse",
    ]
    assert root.span["resource"]["process.pid"] != work.span["resource"]["process.pid"] in pids(pool).values()
    # A worker that loses its processor as it answers ends its span after its caller has the answer.
    assert root.span["start_ns"] <= work.span["start_ns"] <= min(work.span["end_ns"], root.span["end_ns"])
    with pytest.raises(UnknownName):
        find_trace(state_dir, untraced.operation_id)


async def test_a_retried_operation_shows_each_attempt(observed, log):
    pool = observed
    await full(pool)
    asked = ExecuteProgram("noted", log.inputs("a", 1.0))
    running = asyncio.ensure_future(pool.run(asked, traceparent=OWN))
    pid = (await until(log.entries))[0].pid
    kill(pid)
    result = await running
    spans = await trace_of(pool.client.config.state_dir, result.operation_id, 3)
    root = next(span for span in spans if span["name"] == "operation execute_program")
    assert root["attributes"]["dspool.attempts"] == 2
    assert root["attributes"]["dspool.workers"].split(",")[1] == result.worker
    assert root["attributes"]["dspool.worker"] == result.worker


async def test_a_log_line_of_a_worker_says_what_it_belongs_to(observed):
    pool = observed
    await full(pool)
    await pool.session("ada").create_program("n", import_path="telling:Logging")
    asked = ExecuteProgram("n", {"text": "hello"})
    result = await pool.run(asked, session="ada", traceparent=GIVEN)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]

    def line() -> str | None:
        for file in logs.glob(f"worker-*-{pids(pool)[result.worker]}.err"):
            for text in file.read_text().splitlines():
                if "hello from a program" in text:
                    return text
        return None

    told = json.loads(await until(line))
    assert told["pool"] == pool.name
    assert told["worker"] == result.worker
    assert told["operation_id"] == result.operation_id
    assert told["session_hash"] == session_hash("ada", pool.name)
    assert told["trace_id"] == GIVEN.split("-")[1]


async def test_history_survives_the_metrics_actor(observed):
    pool = observed
    for _ in range(20):
        await pool.execute("qa", **QUESTION)
    ended = pool.client.totals["ok"]

    async def counted() -> int:
        return (await pool.metrics_snapshot()).counters.by_outcome["ok"]

    deadline = time.monotonic() + PATIENCE_S
    while await counted() < ended:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    points = len((await pool.metrics_history(60)).points)
    await pool.metrics.checkpoint.remote()
    kill(await pid_of(pool.metrics))
    after = None
    while after is None or len(after.points) < points:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
        try:
            after = await pool.metrics_history(600)
        except Exception:
            continue
    assert await counted() == ended
