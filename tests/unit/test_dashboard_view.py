"""What the dashboard makes of what a pool says: rows, tables, events, traces and replays, without any clock."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise

import msgspec
import pytest

from dspool.config import PoolConfig
from dspool.core.autoscale.inputs import SizingConfig
from dspool.core.metrics.measures import LiveUpdate, Table
from dspool.messages import Deployment, PoolStatus, SessionInfo, WorkerStatus
from dspool.supervisor.sizing import DecisionRecord
from dspool.telemetry.event_log import LoggedEvent
from dspool.telemetry.log_files import tail
from dspool.telemetry.metrics import Metrics
from dspool_console.dashboard import view
from dspool_console.dashboard.replay import Replay, late_share, load_of, summary
from dspool_console.dashboard.report import ReportFacts, report
from dspool_console.dashboard.traces import OperationLog, listed, operation_of, waterfall
from dspool_console.dashboard.whatif import bounds_of
from dspool_serve.api.events import event_row, marker_of, markers
from dspool_serve.api.pool_sessions import without_names
from dspool_serve.api.programs import program_version
from dspool_serve.api.tables import encode_table, rows_of
from dspool_serve.api.workers import running_operations, worker_rows

HOSTILE = '<script>alert("x")</script>'


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def measured(clock, seconds, operations=1):
    from dspool.core.metrics.recorder import ClientRecorder

    metrics = Metrics("p", clock=clock, wall=lambda: 5000.0 + clock.now)
    client = ClientRecorder("p", "c", now=clock.now)
    for _ in range(seconds):
        for _ in range(operations):
            client.submitted("qa")
            client.record("qa", "ok", 0.02)
        clock.now += 1
        metrics.report(client.take_delta(clock.now))
        metrics.tick()
    return metrics


# --- tables -----------------------------------------------------------------------------------------


def test_a_table_has_the_rows_of_history_by_column():
    clock = Clock()
    metrics = measured(clock, 5)
    points = metrics.history(60).points
    table = metrics.table(60)
    at, columns = rows_of(table, ("operations", "p99_s"))
    assert at == pytest.approx([point.at for point in points])
    assert columns["operations"] == [point.operations for point in points]
    assert columns["p99_s"] == pytest.approx([point.p99_s for point in points])


def test_a_table_asked_again_gives_only_what_came_since():
    clock = Clock()
    metrics = measured(clock, 5)
    before = metrics.table(60)
    assert len(metrics.table(60, after=before.last).times()) == 0
    clock.now += 1
    metrics.tick()
    assert list(metrics.table(60, after=before.last).times()) == [5000.0 + clock.now]


def test_a_row_that_is_told_again_has_not_moved():
    clock = Clock()
    jitter = 0.0
    metrics = Metrics("p", clock=clock, wall=lambda: 5000.0 + clock.now + jitter)
    clock.now += 1
    metrics.tick()
    before = list(metrics.table(60).times())
    jitter = 0.004
    assert list(metrics.table(60).times()) == before
    jitter = 100.0  # the wall clock was set
    assert list(metrics.table(60).times()) == [before[0] + 100.0]


@pytest.mark.parametrize("seconds", [3, 3600, 4000, 9000])
def test_a_table_is_in_order_of_time_however_often_its_rows_were_overwritten(seconds):
    clock = Clock()
    metrics = Metrics("p", clock=clock, wall=clock)
    for _ in range(seconds):
        clock.now += 1
        metrics.tick()
    times = list(metrics.table(3600).times())
    assert times[-1] == clock.now
    assert len(times) == min(seconds, 3600)
    assert all(after - before == 1 for before, after in pairwise(times))


def test_a_time_without_operations_has_no_latency():
    clock = Clock()
    metrics = measured(clock, 2)
    clock.now += 1
    metrics.tick()
    data = json.loads(encode_table("p", metrics.table(60)))
    assert data["columns"]["operations"][-1] == 0
    assert data["columns"]["p99_s"][-1] is None
    assert data["columns"]["p99_s"][0] > 0
    assert {len(column) for column in data["columns"].values()} == {len(data["at"])}


def test_a_pool_that_is_called_like_markup_makes_valid_json():
    assert json.loads(encode_table('a"\\</x>', measured(Clock(), 1).table(60)))["pool"] == 'a"\\</x>'


def test_a_range_of_a_table_is_cut_at_both_ends():
    clock = Clock()
    table = measured(clock, 10).table(60)
    at, _ = rows_of(table, ("operations",), start=5103.0, end=5106.0)
    assert at == [5103.0, 5104.0, 5105.0, 5106.0]
    assert rows_of(table, ("operations",), start=9e9)[0] == []


def test_a_look_and_a_table_travel_as_few_bytes():
    clock = Clock()
    metrics = measured(clock, 600)
    encode = msgspec.msgpack.Encoder().encode
    look = encode(metrics.live_update(metrics.table(60).last))
    assert len(look) < 4000
    assert msgspec.msgpack.decode(look, type=LiveUpdate).snapshot.pool == "p"
    table = encode(metrics.table(600))
    assert len(msgspec.msgpack.decode(table, type=Table).times()) == 600


# --- rows -------------------------------------------------------------------------------------------


def status_of(*workers, **more):
    facts = {"state": "ready", "ready": True, "desired": 1, "actual": 1, "spares": 0, "membership_version": 1}
    return PoolStatus("p", workers=workers, **{**facts, **more})


def test_a_start_and_a_growth_are_not_the_worst_health_of_a_report():
    clock = Clock()
    metrics = Metrics("p", clock=clock, wall=clock)
    # Nobody has said anything yet; three begin; they serve; two more begin; one of five is lost.
    lives = ((None, 0, 0), (0, 3, 0), (3, 3, 0), (3, 5, 0), (4, 5, 1))

    def worst() -> str:
        facts = ReportFacts(
            "p", 100.0, clock.now, clock.now, metrics.table(60), (), (), None, PoolConfig(), ()
        )
        return re.search(r"(\d+) of 100 at worst", report(facts))[1]

    for ready, desired, lost in lives:
        if ready is not None:
            state = "ready" if ready else "starting"
            metrics.report(status_of(state=state, actual=ready, desired=desired, lost=lost, lost_since=1.0))
        clock.now += 1
        metrics.tick()
        assert worst() == ("80" if lost else "100")


def test_a_report_tells_what_sizing_would_have_done_from_what_it_did():
    metrics = measured(Clock(), 3)
    would = DecisionRecord(102.0, 5, 0, 2, "grow", "backlog needs 5 workers", source="dry run")
    grew = DecisionRecord(103.0, 3, 0, 2, "grow", "resized by hand", source="manual")
    facts = ReportFacts(
        "p", 100.0, 110.0, 110.0, metrics.table(60), (), (would, grew), None, PoolConfig(), ()
    )
    shown = report(facts)
    assert "<td>2 -&gt; 5</td><td>dry run: backlog needs 5 workers</td>" in shown
    assert "<td>2 -&gt; 3</td><td>resized by hand</td>" in shown


def test_the_overview_shows_what_is_known_while_the_metrics_are_away():
    shown = view.overview(None, status_of(), PoolConfig(), {"firing": 0}, 7.0)
    assert shown["now"] is None
    assert shown["health"] is None
    assert shown["pool"]["state"] == "ready"
    shown = view.overview(None, None, PoolConfig(), {}, 7.0)
    assert shown["pool"]["state"] is None
    assert "supervisor" in shown["pool"]["reason"]


def test_a_worker_row_prefers_its_own_newer_figures():
    clock = Clock()
    metrics = measured(clock, 3)
    from dspool.core.metrics.recorder import WorkerRecorder

    worker = WorkerRecorder("p", "w", 0, 8, now=clock.now)
    worker.started(clock.now)
    clock.now += 1
    metrics.report(worker.take_delta(clock.now, sessions=4, rss_mb=99.0))
    metrics.tick()
    workers = metrics.live_update(None, workers=True).snapshot.workers
    (row,) = worker_rows(status_of(WorkerStatus("w", 0, "ready", slots=8, checked_at=3.0)), workers)
    assert (row.running, row.sessions, row.rss_mb, row.checked_at) == (1, 4, 99.0, 3.0)
    assert metrics.live_update(None, workers=False).snapshot.workers == {}


def test_what_runs_names_sessions_to_admins_only():
    running = [
        {
            "operation_id": "1",
            "command": "execute_program",
            "program": "mine",
            "session": "ada",
            "held_s": 1.0,
        },
        {"operation_id": "2", "command": "execute_program", "program": "qa", "session": None, "held_s": 9.0},
    ]
    admin, reader = (running_operations(running, "p", names_sessions=named) for named in (True, False))
    assert [one.operation for one in admin] == ["2", "1"]
    assert (admin[1].session, admin[1].program) == ("ada", "mine")
    assert reader[1].session not in (None, "ada")
    assert reader[1].program is None
    assert reader[0].program == "qa"
    info = SessionInfo("ada", "w", 1, 1.0, 2.0, ("mine",), 1, "ada")
    hidden = without_names(info, "p")
    assert (hidden.principal, hidden.programs) == (None, ())
    assert hidden.id != "ada"


def test_only_fields_that_changed_are_told():
    assert view.changed({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": None}) == {"b": 3, "c": None}
    assert view.changed(None, {"a": 1}) == {"a": 1}
    rows = [{"id": "x", "n": 1}, {"id": "y", "n": 2}]
    assert view.changed_rows({"x": {"id": "x", "n": 1}}, rows, "id") == [rows[1]]


def test_versions_are_described_without_what_they_hold():
    secret = {"signature": {"inputs": {"q": {"desc": "SECRET"}}, "outputs": {"a": {}}}, "demos": ["SECRET"]}
    rows = [
        program_version(one)
        for one in (Deployment("qa", 1, spec=secret), Deployment("qa", 2, import_path="m:f"))
    ]
    assert [(row.kind, row.summary) for row in rows] == [("spec", "q -> a"), ("import_path", "m:f")]
    assert "SECRET" not in repr(rows)


# --- events -----------------------------------------------------------------------------------------


def seen(event, measurements=None, at=1.0, level="info", **about):
    return LoggedEvent(1, at, event, level, "supervisor", measurements or {}, about)


def test_resizes_deaths_deployments_and_alerts_are_marked_and_other_events_are_not():
    marked = [
        seen("pool.resize", {"from": 2, "to": 4, "overflow": 1}, reason="backlog"),
        seen("worker.terminate", worker=HOSTILE, reason="ActorDiedError: killed"),
        seen("program.deployed", program="qa", version=2),
        seen("alert.firing", alert="DspoolErrorRate", summary="7 % fail"),
        seen("pool.recovery", {"duration_s": 0.5}, replaced="w"),
    ]
    assert [marker_of(one).kind for one in marked] == [
        "resize",
        "death",
        "deployment",
        "alert",
        "recovery",
    ]
    assert marker_of(marked[0]).label == "2 -> 4 and 1 overflow: backlog"
    assert HOSTILE in marker_of(marked[1]).label
    for event in ("session.moved", "worker.init", "pool.warmup"):
        assert marker_of(seen(event)) is None


@pytest.mark.parametrize(
    "reason",
    ["the pool shrinks", "no longer needed", "drained by hand", "recycled at 900 MB", "the pool is closed"],
)
def test_an_ending_that_was_wanted_is_no_death(reason):
    assert marker_of(seen("worker.terminate", worker="w", reason=reason)) is None


def test_every_event_has_a_sentence():
    from dspool.telemetry.events import EVENTS

    for name, row in EVENTS.items():
        numbers = dict.fromkeys(row.measurements, 1.5)
        told = event_row(LoggedEvent(1, 1.0, name, "info", "w", numbers, dict.fromkeys(row.metadata, "x")))
        assert told.text
        assert event_row(seen(name)).text


def test_markers_of_a_range_are_in_order_of_time():
    found = markers([seen("pool.resize", at=at) for at in (5.0, 1.0, 9.0)], start=0.0, end=6.0)
    assert [marker.at for marker in found] == [1.0, 5.0]


# --- traces -----------------------------------------------------------------------------------------


def span(id, name, *, pool="p", outcome="ok", took=0.5, start=1_000, parent=None, **attributes):
    return {
        "trace_id": f"{id:032x}", "span_id": f"{id:08x}{len(name):08x}", "parent_id": parent, "name": name,
        "kind": "internal", "start_ns": int(start * 1e9), "end_ns": int((start + took) * 1e9), "ok": outcome == "ok",
        "attributes": {"dspool.pool": pool, "dspool.operation.id": f"op-{id}", "dspool.outcome": outcome, **attributes},
        "resource": {"service.instance.id": "client-1", "dspool.pool": pool},
    }  # fmt: skip


def write(path, *spans, mode="a"):
    path.parent.mkdir(exist_ok=True)
    with path.open(mode) as file:
        file.writelines(json.dumps(one) + "\n" for one in spans)


async def test_operations_are_read_on_from_where_the_last_look_ended(tmp_path):
    file = tmp_path / "traces" / "client-1.jsonl"
    log = OperationLog("p", tmp_path)
    assert await log.look() == []
    write(file, span(1, "operation ping"), span(2, "operation ping", pool="other"), span(3, "module Predict"))
    assert [one.id for one in await log.look()] == ["op-1"]
    with file.open("a") as half:
        half.write(json.dumps(span(4, "operation ping", start=2_000))[:40])
    assert [one.id for one in await log.look()] == ["op-1"]
    with file.open("a") as rest:
        rest.write(json.dumps(span(4, "operation ping", start=2_000))[40:] + "\n")
    assert [one.id for one in await log.look()] == ["op-4", "op-1"]
    # Set aside, and begun anew.
    file.rename(file.with_suffix(".old.jsonl"))
    write(file, span(5, "operation ping", start=3_000))
    assert [one.id for one in await log.look()] == ["op-5", "op-4", "op-1"]


def test_a_broken_line_is_no_operation():
    for line in ("{", "[]", '{"name": "operation x"}', json.dumps(span(1, "module x"))):
        assert operation_of(line, "p") is None


def test_errors_are_grouped_by_code_with_their_exact_numbers():
    spans = [span(n, "operation ping", outcome="error", **{"error.type": "model_error"}) for n in range(9)]
    operations = [
        operation_of(json.dumps(one), "p") for one in (*spans, span(99, "operation ping", took=9.0))
    ]
    found = listed(operations, {"model_error": 120, "worker_lost": 3}, 0.1)
    assert [(row.code, row.count, row.traced) for row in found.errors] == [
        ("model_error", 120, 9),
        ("worker_lost", 3, 0),
    ]
    assert len(found.errors[0].examples) == 5
    assert found.slowest[0].id == "op-99"


def test_a_waterfall_hides_content_even_if_a_file_still_has_it():
    root = span(1, "operation execute_program")
    child = span(1, "chat m", parent=root["span_id"], **{"gen_ai.input.messages": "SECRET"})
    hidden = waterfall([root, child], shows=lambda about: False)
    assert [one.depth for one in hidden.spans] == [0, 1]
    assert "SECRET" not in repr(hidden)
    assert "SECRET" in repr(waterfall([root, child], shows=lambda about: True))


def test_what_a_program_adds_to_a_span_is_hidden_as_content_is():
    added = span(1, "chat m", **{"gen_ai.prompt.0.content": "SECRET", "gen_ai.request.model": "m"})
    hidden = waterfall([added], shows=lambda about: False).spans[0].attributes
    assert "SECRET" not in json.dumps(hidden)
    assert hidden["gen_ai.request.model"] == "m"


# --- log tails --------------------------------------------------------------------------------------


def test_a_log_tail_leaves_out_what_programs_print_themselves(tmp_path):
    ours = "2026-01-02T03:04:05.678+00:00 INFO    dspool.worker: ready [pool=p]"
    as_json = json.dumps({"time": "t", "level": "info", "logger": "dspool", "event": "worker.init"})
    file = tmp_path / "w.err"
    file.write_text("\n".join([ours, "SECRET answer", as_json, '{"time": "SECRET"}', ours]))
    found = tail(file, 10, show_content=False)
    assert found.lines == [ours, as_json, ours]
    assert (found.filtered, found.truncated, found.source) == (True, False, "w.err")
    assert len(tail(file, 10, show_content=True).lines) == 5
    assert tail(file, 2, show_content=False).truncated
    assert tail(None, 10, show_content=False).lines == []


def test_a_log_tail_reads_no_more_than_the_end(tmp_path):
    file = tmp_path / "w.err"
    file.write_text("x" * 3000 + "\n" + "y\n" * 400_000)
    found = tail(file, 5, show_content=True)
    assert found.lines == ["y"] * 5
    assert found.truncated


# --- what-if ----------------------------------------------------------------------------------------


def waves(seconds=1200, slots=32.0):
    rate = [
        100 + 80 * math.sin(second / 100) + (500 if 600 < second < 660 else 0) for second in range(seconds)
    ]
    columns = {
        "operations": rate,
        "utilization": [one * 0.05 / slots for one in rate],
        "slots": [slots] * seconds,
        "size": [4.0] * seconds,
    }
    return load_of([float(second) for second in range(seconds)], columns, 1.0)


def replayed(load, **bounds):
    config = SizingConfig(**{"min_size": 1, "max_size": 12, **bounds})
    replay = Replay(config, load, slots_per_worker=8, start_delay_s=1.0)
    return replay.whole()


def test_a_replay_never_leaves_its_bounds_and_follows_the_load():
    load = waves()
    run = replayed(load, min_size=2, max_size=5)
    assert len(run.size) == len(load.at)
    assert set(run.size) <= set(range(2, 6))
    assert max(run.size) == 5
    assert run.resizes > 0


def test_more_room_in_the_bounds_makes_operations_wait_less_and_cost_more():
    load = waves()
    tight, wide = replayed(load, max_size=2), replayed(load, max_size=12)
    assert summary(wide, load.step_s)["late_share"] < summary(tight, load.step_s)["late_share"]
    assert summary(wide, load.step_s)["worker_hours"] > summary(tight, load.step_s)["worker_hours"]
    assert max(wide.wait_s) < max(tight.wait_s)


def test_a_pool_that_did_nothing_is_replayed_at_its_least_size():
    at = [float(second) for second in range(400)]
    nothing = {
        "operations": [0.0] * 400,
        "utilization": [0.0] * 400,
        "slots": [8.0] * 400,
        "size": [3.0] * 400,
    }
    run = replayed(load_of(at, nothing, 1.0), shrink_cooldown_s=5)
    assert run.size[-1] == 1
    assert summary(run, 1.0)["late_share"] == 0


def bursts(wait_s=0.361):
    """300 operations in single moments: the slots are hardly used, and a tenth of the operations wait."""
    columns = {
        "operations": [20.0] * 300,
        "utilization": [0.1] * 300,
        "slots": [16.0] * 300,
        "size": [2.0] * 300,
        "wait_mean_s": [0.05] * 300,
        "wait_p95_s": [wait_s] * 300,
        "wait_p99_s": [wait_s] * 300,
    }
    return load_of([float(second) for second in range(300)], columns, 1.0)


def test_a_replay_does_not_say_that_nobody_waited_where_operations_did():
    load = bursts()
    assert late_share(load, 0.1) == 0.05
    run = replayed(load, min_size=2, max_size=2)
    assert summary(run, 1.0)["late_share"] == 0.05
    assert min(run.wait_s) >= 0.05
    wider = replayed(load, min_size=8, max_size=8)
    assert 0 < summary(wider, 1.0)["late_share"] < 0.05
    assert summary(replayed(load, min_size=2, max_size=2, max_wait_s=0.5), 1.0)["late_share"] == 0


def test_without_waits_nothing_is_said_about_them():
    assert late_share(bursts(wait_s=0.02), 0.1) == 0
    assert late_share(waves(), 0.1) is None


# --- what is known, and what is not --------------------------------------------------------------------


def test_nothing_is_zero_that_nobody_has_measured():
    clock = Clock()
    idle = view.now_row(Metrics("p", clock=clock, wall=lambda: 5000.0).snapshot())
    assert [idle[name] for name in ("p50_s", "p99_s", "error_rate", "wait_p95_s")] == [None] * 4
    assert (idle["throughput"], idle["queue_depth"], idle["utilization"]) == (0, 0, 0)
    busy = view.now_row(measured(clock, 5).snapshot())
    assert busy["error_rate"] == 0
    assert busy["p99_s"] > 0


def test_operations_of_sessions_are_a_kind_of_their_own():
    from dspool.core.metrics.recorder import ClientRecorder

    clock = Clock()
    metrics, client = measured(clock, 1), ClientRecorder("p", "d", now=clock.now)
    client.submitted("execute_program")
    client.record("execute_program", "ok", 0.1)
    metrics.report(client.take_delta(clock.now + 1))
    rows = {row["name"]: row for row in view.program_rows(metrics.snapshot(), status_of(programs={"qa": 2}))}
    assert {name: row["kind"] for name, row in rows.items()} == {
        "qa": "program",
        "execute_program": "session",
    }
    assert rows["execute_program"]["version"] is None
    assert rows["execute_program"]["p99_s"] is None, "the tick has not come yet"


def test_a_worker_is_in_trouble_now_or_not_at_all():
    calm = WorkerStatus("w0", 0, "ready", errors=9)
    grown = WorkerStatus("w1", 1, "ready", fresh_mb=100.0, own_mb=900.0)
    rows = worker_rows(status_of(calm, grown), {})
    assert [row.trouble for row in rows] == ["", "takes 900 MB, 800 MB more than when it was warm"]


def test_the_page_has_one_judgement_for_health_state_and_alerts():
    from dspool_console.alerts.watch import AlertNow

    clock = Clock()
    metrics = measured(clock, 3)
    metrics.report(status_of())
    update = metrics.live_update(None)
    alert = AlertNow(
        name="DspoolQueueWait", state="pending", severity="warning", value=0.361, when="> 0.1", lasting_s=300,
        since=5000.0, summary="Operations of pool p wait 361 ms for a slot (p95)", description="",
    )  # fmt: skip
    calm = view.overview(update, status_of(), PoolConfig(), {}, 7.0)
    shown = view.overview(update, status_of(), PoolConfig(), {}, 7.0, [alert])
    assert (calm["health"]["state"], calm["diagnosis"].faults) == ("healthy", ())
    assert shown["health"]["state"] == shown["diagnosis"].state == "impaired"
    assert shown["health"]["score"] == shown["diagnosis"].score < 80
    assert sum(part["cost"] for part in shown["health"]["parts"]) == pytest.approx(
        100 - shown["health"]["score"]
    )
    (fault,) = shown["diagnosis"].faults
    assert (fault.place, fault.id, fault.since) == ("alerts", "DspoolQueueWait", 5000.0)
    assert fault.sentence.startswith("Operations of pool p wait 361 ms")


def test_what_was_not_asked_stays_as_the_pool_has_it():
    own = SizingConfig(min_size=2, max_size=6, target_utilization=0.6)
    assert bounds_of({}, own) == own
    assert bounds_of({"max_size": "9"}, own) == msgspec.structs.replace(own, max_size=9)
