"""What fills up has a bound: the table in docs/how-to/operate.md, its rows filled, and no file that it forgets."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dspool.cli.run_file import RunFile, this_process
from dspool.config import PoolConfig
from dspool.core.dispatch.session_queues import SessionQueues
from dspool.core.metrics.operation_records import OperationQuery
from dspool.messages import Deployment
from dspool.messages.programs import VERSIONS_KEPT
from dspool.runtime.session_logs import shorten
from dspool.store import schema
from dspool.store.store import SessionStore
from dspool.supervisor.canary import MAX_ROLLOUTS, Rollouts
from dspool.supervisor.sizing import MAX_DECISIONS, DecisionRecord, Sizing
from dspool.supervisor.version_history import VersionHistory
from dspool.supervisor.warmup import MAX_MOMENTS, MAX_RUNS, Warmer
from dspool.telemetry.event_log import MAX_BUFFERED, MAX_SENDERS, EventBatch, EventBuffer, EventLog
from dspool.telemetry.metrics import Metrics
from dspool.telemetry.observation import Observation
from dspool.telemetry.operation_keeper import OperationKeeper, operations_file
from dspool.telemetry.trace_export import FileExporter
from dspool.telemetry.tracing import LONGEST_ATTRIBUTE, Tracing
from dspool.testing.doubles import FakeStore
from dspool_console.alerts.watch import CHANGES_KEPT, AlertWatch
from dspool_console.dashboard import hub, traces
from dspool_serve.access.audit import NAME as AUDIT_NAME
from dspool_serve.access.audit import Audit
from dspool_serve.fresh import Fresh
from tests.unit.http_doubles import until

TABLE = Path(__file__).parents[2] / "docs/how-to/operate.md"
ENDED = 2**22 + 7
"""No process has this id."""


def rows() -> list[list[str]]:
    text = TABLE.read_text().partition("\n## What grows\n")[2]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return lines[2:]


# --- the table itself ---


def test_each_row_has_a_bound_and_tests_that_exist():
    assert len(rows()) > 20
    for what, bound, *_, tests in rows():
        named = re.findall(r"`(tests/\S+?\.py)::(\w+)`", tests)
        assert bound, what
        assert named or tests.strip() == "no test yet", what
        for file, name in named:
            assert re.search(rf"^(async )?def {name}\(", (TABLE.parents[2] / file).read_text(), re.M), (
                file,
                name,
            )


async def test_every_file_below_the_state_directory_is_in_the_table(tmp_path):
    config = PoolConfig(state_dir=tmp_path / "state", telemetry={"sampling": 1.0})
    RunFile(config.state_dir).claim(this_process("default"))
    RunFile(config.state_dir).write(this_process("default"))
    Audit(config.state_dir / AUDIT_NAME)
    store = SessionStore(f"sqlite:///{config.state_dir / 'sessions.db'}")
    await store.open()
    await store.create("default", "s")
    observation = Observation(config, Metrics("default"))
    await observation.save()
    observation.close()
    kept = OperationKeeper.of(config, operations_file(config))
    await kept.find(OperationQuery())
    tracing = Tracing(config, "client")
    tracing.end(tracing.start("x", {}))
    tracing.close()
    (config.state_dir / "run.new").touch()  # as of a process that was killed just then
    named = re.findall(r"`([^`]+)`", "\n".join(row[0] for row in rows() if "state_dir" in row[0]))
    files = [path.relative_to(config.state_dir) for path in config.state_dir.rglob("*") if path.is_file()]
    await store.close()
    await kept.close()
    assert len(files) >= 8
    assert [str(file) for file in files if not any(fnmatch.fnmatch(file, name) for name in named)] == []


# --- files ---


async def test_of_each_program_the_newest_versions_and_the_current_one_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("dspool.store.records.VERSIONS_KEPT", 3)
    store = SessionStore(f"sqlite:///{tmp_path / 'sessions.db'}")
    await store.open()
    for number in range(10):
        made = await store.add_deployment("p", Deployment("qa", 0, spec={"number": number}))
        assert made.version == number + 1
    await store.add_deployment("p", Deployment("other", 0))
    versions = [(one.program, one.version) for one in await store.deployments("p")]
    # The first became current, and stays.
    assert versions == [("other", 1), ("qa", 1), ("qa", 8), ("qa", 9), ("qa", 10)]
    await store.close()


async def test_the_supervisor_forgets_the_versions_that_the_store_forgets_and_their_source():
    store, numbers = FakeStore(), range(1, 301)
    for number in numbers:
        await store.put_record("p", f"source:qa:{number}", {"shop": "hash"})
    held = VersionHistory(PoolConfig(name="p"), store, on_change=print, wall=float)
    held._versions = {"qa": {number: Deployment("qa", number) for number in numbers}}
    held._current, held._previous = {"qa": 300}, {"qa": 7}
    await held._forget_old("qa")
    kept = [7, *range(301 - VERSIONS_KEPT, 301)]
    assert sorted(held._versions["qa"]) == kept
    assert [number for number in numbers if await store.get_record("p", f"source:qa:{number}")] == kept


async def test_the_write_ahead_log_is_cut_back_after_a_long_transaction(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "LOG_BYTES", 100_000)
    path = tmp_path / "sessions.db"
    store = SessionStore(f"sqlite:///{path}")
    await store.open()
    log = path.with_name("sessions.db-wal")
    await store.put_record("p", "large", "x" * 5_000_000)
    assert log.stat().st_size > 1_000_000
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    await store.put_record("p", "small", 1)
    assert log.stat().st_size <= 200_000
    await store.close()


def test_span_files_stay_within_their_bound_whatever_is_traced(tmp_path):
    directory = tmp_path / "traces"
    config = PoolConfig(state_dir=tmp_path, telemetry={"capture_content": True})
    tracing = Tracing(config, "client")
    exporter = FileExporter(directory, "client-1", file_bytes=100_000)
    tracing.prepare()
    tracing._processor._exporters = [exporter]
    for _ in range(100):
        tracing.end(tracing.start("x", {"gen_ai.input.messages": "x" * 1_000_000}))
    tracing.close()
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    assert set(sizes) == {"client-1.jsonl", "client-1.old.jsonl"}
    assert max(sizes.values()) <= 100_000
    assert max(sizes.values()) > LONGEST_ATTRIBUTE


async def test_checkpoints_replace_one_another_also_after_a_crash(tmp_path):
    config = PoolConfig(state_dir=tmp_path)
    observation = Observation(config, Metrics("default"))
    (tmp_path / "metrics-default.checkpoint.new").write_bytes(b"half of one, of a process that was killed")
    for _ in range(3):
        await observation.save()
    observation.close()
    (file,) = tmp_path.iterdir()
    assert file.name == "metrics-default.checkpoint"
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def run(tmp_path):
    """The directory of a run; `logs` in it is that of Ray's session."""
    logs = tmp_path / "ray/session_2026-01-02_03-04-05_678901_1/logs"
    logs.mkdir(parents=True)
    (tmp_path / "ray/session_latest").symlink_to(logs.parent)
    return tmp_path


def logs_of(run: Path) -> Path:
    return run / "ray/session_latest/logs"


APPENDS = """
import sys
with open(sys.argv[1], "ab", 0) as log:
    log.write(b"x" * 50_000 + b"last before\\n")
    print(flush=True)
    sys.stdin.readline()
    log.write(b"after\\n")
"""


def test_a_log_that_is_too_long_is_emptied_and_its_writer_goes_on(run):
    path = logs_of(run) / "raylet.out"
    command = [sys.executable, "-I", "-S", "-c", APPENDS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        writer.stdout.readline()
        shorten(run, file_bytes=10_000, kept_bytes=1000)
        assert path.stat().st_size == 0
        writer.communicate("\n")
    assert path.read_text() == "after\n"
    old = path.with_name("raylet.out.old")
    assert (old.stat().st_size, old.read_text()[-12:]) == (1000, "last before\n")
    shorten(run, file_bytes=10_000, kept_bytes=1000)
    assert path.read_text() == "after\n"


def test_logs_of_ended_processes_are_bounded_in_number_and_bytes_and_living_ones_stay(run):
    logs = logs_of(run)
    for number in range(20):
        for name in (
            f"worker-{number}-{ENDED + number}.err",
            f"python-core-worker-{number}_{ENDED + number}.log",
        ):
            (logs / name).write_bytes(b"x" * 100)
            os.utime(logs / name, (number, number))
    alive = [f"worker-ab-{os.getpid()}.out", "gcs_server.out", f"serve/replica_{os.getpid()}.log"]
    for name in alive:
        (logs / name).parent.mkdir(exist_ok=True)
        (logs / name).write_text("mine")
        os.utime(logs / name, (0, 0))
    shorten(run, ended_files=10)
    left = {str(path.relative_to(logs)) for path in logs.rglob("*") if path.is_file()}
    assert left >= set(alive)
    assert {int(re.split(r"[-_.]", name)[-2]) - ENDED for name in left - set(alive)} == set(range(15, 20))
    shorten(run, ended_bytes=350)
    assert len(list(logs.glob("*worker-1*_*"))) + len(list(logs.glob(f"worker-1*-{ENDED // 10**4}*"))) == 3


def test_the_logs_of_the_fork_server_and_of_haproxy_are_kept_short_too(run):
    files = [run / "ray/session_latest/forkserver/ab/log", run / "h/node/admin.sock.77.1.stderr.log"]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x" * 5000)
    (run / "h/node/haproxy.cfg").write_bytes(b"x" * 5000)
    shorten(run, file_bytes=1000, kept_bytes=100)
    assert [file.stat().st_size for file in files] == [0, 0]
    assert (run / "h/node/haproxy.cfg").stat().st_size == 5000


# --- in memory ---


def test_the_event_log_forgets_senders():
    log = EventLog("p")
    for number in range(MAX_SENDERS + 50):
        log.take(EventBatch("p", f"worker-{number}", 1, [], 0))
    assert len(log._last) == MAX_SENDERS


def test_events_that_cannot_be_sent_are_bounded_and_counted():
    buffer = EventBuffer("p", "worker")
    for _ in range(MAX_BUFFERED + 5):
        buffer("worker.init", {}, {"pool": "p"})
    batch = buffer.batch()
    assert (len(batch.events), batch.dropped) == (MAX_BUFFERED, 5)


def test_what_the_supervisor_remembers_for_people_is_bounded():
    config = PoolConfig()
    rollouts = Rollouts(lambda: 0.0)
    sizing = Sizing(config, None, facts=None, clock=float, wall=float, sleep=asyncio.sleep)
    warmer = Warmer(config, current=list, admit=None, clock=float, sleep=asyncio.sleep)
    for number in range(max(MAX_ROLLOUTS, MAX_DECISIONS, MAX_MOMENTS, MAX_RUNS) + 5):
        with rollouts.of("qa", number, None, "loading"):
            pass
        sizing._record(DecisionRecord(0.0, number, 0, 0, "grow", "load"))
        warmer._publish("step", f"w{number}")
        warmer._runs.append(number)
    assert len(rollouts._ended) == MAX_ROLLOUTS
    assert len(sizing._records) == MAX_DECISIONS
    assert (len(warmer._progress), len(warmer._runs)) == (MAX_MOMENTS, MAX_RUNS)
    assert AlertWatch("p", None).changes.maxlen == CHANGES_KEPT


def test_a_client_remembers_the_places_of_so_many_sessions():
    queues = SessionQueues(remembered=10)
    for number in range(100):
        queues.own(f"s{number}", "worker")
    assert len(queues._owners) == 10


async def test_answers_kept_for_others_are_bounded_in_number_and_age():
    fresh = Fresh(60.0, limit=8)

    async def make() -> bytes:
        return b"x"

    for number in range(100):
        await fresh.get(number, make)
    assert len(fresh._made) == 8
    short = Fresh(0.001)
    await short.get("key", make)
    await until(lambda: not short._made)


async def test_the_live_stream_keeps_so_many_frames_and_joins_few(monkeypatch):
    stream = hub.Hub(None)
    for _ in range(2 * hub.FRAMES_KEPT):
        stream._publish([("overview", "update", b"x")])
    assert len(stream._frames) == hub.FRAMES_KEPT
    for place in range(stream._number - 500, stream._number):
        stream._after(place, frozenset({"overview"}))
    assert len(stream._joined) == hub.JOINED_KEPT
    for _ in range(20):
        stream._publish([("overview", "update", b"x" * 2**20)])
    assert stream._bytes <= hub.BYTES_KEPT


async def test_the_dashboard_lists_so_many_operations(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "KEPT", 10)
    (tmp_path / "traces").mkdir()
    for number in range(30):
        span = {
            "trace_id": f"{number:032x}",
            "name": "operation ping",
            "start_ns": number,
            "end_ns": number,
            "attributes": {"dspool.pool": "p", "dspool.operation.id": f"op-{number}"},
        }
        (tmp_path / "traces" / f"client-{number}.jsonl").write_text(json.dumps(span) + "\n")
    assert [one.id for one in await traces.OperationLog("p", tmp_path).look()] == [
        f"op-{number}" for number in range(29, 19, -1)
    ]
