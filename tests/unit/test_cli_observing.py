"""`dspool top`, `events` and `trace` against a service that answers from a table."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from dspool.cli import app
from dspool.cli import service as service_module
from dspool.cli.run_file import RunFile, this_process
from dspool.cli.views import event_text
from dspool.core.metrics.error_groups import ErrorCount, ErrorGroups, ErrorKind
from dspool.core.metrics.measures import ErrorList
from dspool.core.metrics.operation_records import KeptOperation, OperationPage
from dspool.core.metrics.recorder import ClientRecorder, WorkerRecorder
from dspool.messages import PoolStatus, SessionInfo, WorkerStatus
from dspool.remote import BlockingRemotePool
from dspool.telemetry.event_log import LoggedEvent
from dspool.telemetry.metrics import Metrics
from dspool.telemetry.trace_export import FileExporter

run = CliRunner().invoke
POOL = "/v1/pools/default"
DIED = {
    "number": 7,
    "at": 1_795_000_000.25,
    "event": "worker.terminate",
    "level": "info",
    "source": "supervisor",
    "measurements": {"age_s": 12.3456},
    "metadata": {"worker": "default-w0-a", "reason": "killed", "code": None},
}


@pytest.fixture
def service(monkeypatch, tmp_path):
    """A running service: what it answers by path, and what it was asked."""
    answers: dict[str, Any] = {
        POOL + "/alerts": (200, {"alerts": []}),
        POOL + "/store": (200, {"pinned": False, "place": "db1:5432/dspool", "node": "n", "epoch": 1}),
    }
    asked: list[httpx.URL] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        status, body = answers[request.url.path]
        if callable(body):
            body = body()
        return httpx.Response(status, json=msgspec.to_builtins(body, str_keys=True))

    monkeypatch.setattr(service_module, "transport_of", lambda run: httpx.MockTransport(answer))
    me = msgspec.structs.replace(this_process("default"), url="http://dspool")
    RunFile(tmp_path).write(me)
    return answers, asked, ["--state-dir", str(tmp_path)]


def busy_pool() -> tuple[PoolStatus, Any]:
    now = [0.0]
    metrics = Metrics("default", clock=lambda: now[0])
    worker = WorkerStatus("default-w0-a", 0, "ready", 5, "n", 1, 2, 8, operations=1234, rss_mb=88.0)
    status = PoolStatus("default", "ready", True, 1, 1, 0, 3, (worker,), {"qa": 1})
    client = ClientRecorder("default", "c", now=0.0)
    recorder = WorkerRecorder("default", "default-w0-a", 0, 8, now=0.0)
    for _ in range(30):
        client.submitted("qa")
        client.record("qa", "ok", 0.25, 0.01, 0.2)
        recorder.started(0.0)
        recorder.finished(1.0, "ok", 0.2)
    now[0] = 1.0
    metrics.report(status)
    metrics.report(client.take_delta(1.0))
    metrics.report(recorder.take_delta(1.0))
    metrics.tick()
    return status, metrics.snapshot()


KEPT = KeptOperation(
    id="0c9638444e8b-2", ended_at=1_795_000_000.25, duration_s=1.25, wait_s=0.25, run_s=1.0, command="execute_program",
    program="qa", version=3, outcome="error", code="program_error", exception="KeyError", at="shop.answers:41",
    worker="default-w0-a", attempts=1, trace_id=None, session=None, session_hash=None, principal="ada",
)  # fmt: skip


def test_operations_are_listed_in_80_columns_and_asked_for_as_the_options_say(service):
    answers, asked, where = service
    answers[POOL + "/operations"] = (200, OperationPage([KEPT], "1.2", 5000, 1.0, 0))
    options = ["--program", "qa", "--outcome", "failed", "--at-least", "0.5", "--since", "24h", "--slowest"]
    shown = run(app, ["operations", *options, "--limit", "1", *where], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    assert "0c9638444e8b-2  qa v3" in shown.stdout
    assert "KeyError" in shown.stdout
    assert "5,000 are kept" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    query = dict(asked[-1].params)
    assert abs(float(query.pop("from")) - time.time() + 86_400) < 60
    assert query == {
        "program": "qa",
        "outcome": "failed",
        "at_least_s": "0.5",
        "sort": "duration",
        "limit": "1",
    }
    shown = run(app, ["operations", "--json", *where])
    assert json.loads(shown.stdout)["exception"] == "KeyError"
    answers[POOL + "/operations"] = (200, OperationPage([], None, 5000, 1.0, 0))
    assert "none of the 5,000" in run(app, ["operations", "--session", "s", *where]).output


def failed_pool() -> Any:
    """The errors of a pool: an old one of a session, many of a line, and one of a model that comes now."""
    groups = ErrorGroups()
    for at, number, kind, worker in (
        (1_795_000_000.0, 2, ErrorKind("create_program", "program_error", "error", "ValueError"), None),
        (
            1_795_000_900.0,
            1200,
            ErrorKind("triage_of_tickets", "program_error", "error", "KeyError", "a:41"),
            "w0",
        ),
        (
            1_795_000_990.0,
            7,
            ErrorKind("qa", "model_unreachable", "error", model="openai/m", status=503),
            "w1",
        ),
    ):
        workers = {f"default-{worker}-a1b2c3": number} if worker else {}
        groups.take([ErrorCount(kind, number, {3: number}, workers, f"0c9638444e8b-{number}")], at)
    return ErrorList(groups.all(1_795_001_000.0), 12)


def test_errors_are_shown_by_what_they_are_those_that_come_now_first(service):
    answers, _, where = service
    answers[POOL + "/errors"] = (200, failed_pool())
    shown = run(app, ["errors", *where], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 80
    kinds = shown.stdout.strip().split("\n\n")
    assert [kind.splitlines()[0] for kind in kinds[:3]] == [
        "openai/m does not answer with status 503, in qa",
        "KeyError at a:41, in triage_of_tickets",
        "ValueError, in create_program",
    ]
    assert "  7 in the last minute, 7 in all; since " in kinds[0]
    assert "none in the last minute, 1,200 in all" in kinds[1]
    assert "v3 (1,200), default-w0-a1b2c3 (1,200)" in kinds[1]
    assert kinds[1].endswith("  dspool logs --operation 0c9638444e8b-1200")
    assert kinds[3] == "12 older kinds are no longer kept"


def test_errors_are_of_one_program_so_many_and_as_json_if_that_is_asked_for(service):
    answers, _, where = service
    answers[POOL + "/errors"] = (200, failed_pool())
    shown = run(app, ["errors", "--limit", "1", *where]).stdout
    assert "KeyError" not in shown
    assert "there are 2 more: see --limit" in shown
    facts = json.loads(run(app, ["errors", "--program", "triage_of_tickets", "--json", *where]).stdout)
    assert (facts["pool"], facts["forgotten"]) == ("default", 12)
    [one] = facts["errors"]
    assert (one["exception"], one["at"], one["count"], one["versions"]) == (
        "KeyError",
        "a:41",
        1200,
        {"3": 1200},
    )
    said = run(app, ["errors", "--program", "none", *where]).stdout
    assert said == "no operation of none in pool default has failed since its metrics began\n"


@pytest.mark.parametrize("since", ["yesterday", "5", "-3h", "9" * 30 + "d", ""])
def test_a_time_that_is_none_is_refused_with_the_forms_there_are(service, since):
    _, asked, where = service
    refused = run(app, ["operations", f"--since={since}", *where])
    assert refused.exit_code == 2
    assert "15m" in refused.output
    assert asked == []


def test_top_shows_the_pool_its_workers_and_its_programs(service):
    answers, _, where = service
    answers[POOL], answers[POOL + "/metrics"] = [(200, each) for each in busy_pool()]
    shown = run(app, ["top", "--once", *where], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "pool default: healthy (100 of 100), ready, 1 of 1 worker" in shown.stdout
    assert "30.0/s" in shown.stdout
    assert "default-w0-a" in shown.stdout
    assert "1,234" in shown.stdout
    assert any(line.split()[0] == "qa" for line in shown.stdout.splitlines() if line.strip())


def test_top_without_metrics_shows_what_there_is(service):
    answers, _, where = service
    answers[POOL] = (200, busy_pool()[0])
    answers[POOL + "/metrics"] = (403, {"code": "not_allowed", "detail": "enable_metrics is off"})
    shown = run(app, ["top", "--once", *where], env={"COLUMNS": "200"})
    assert "no figures: enable_metrics is off" in shown.stdout
    assert "default-w0-a" in shown.stdout


def test_top_as_json_is_status_and_metrics(service):
    answers, _, where = service
    answers[POOL], answers[POOL + "/metrics"] = [(200, each) for each in busy_pool()]
    seen = json.loads(run(app, ["top", "--json", *where]).stdout)
    assert seen["status"]["name"] == "default"
    assert seen["metrics"]["counters"]["by_outcome"]["ok"] == 30


def test_events_are_sentences_with_time_and_level(service):
    answers, asked, where = service
    answers[POOL + "/events"] = (200, {"events": [DIED], "next": 7, "missed": False, "dropped": 0})
    shown = run(app, ["events", "--limit", "5", *where])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.endswith("  info     Worker default-w0-a ended after 12.3 s: killed\n")
    assert dict(asked[-1].params)["limit"] == "5"
    assert json.loads(run(app, ["events", "--json", *where]).stdout) == DIED


def test_following_asks_for_what_comes_next_and_waits(service, monkeypatch):
    answers, asked, where = service
    pages = iter(
        [
            {"events": [DIED], "next": 7, "missed": False, "dropped": 0},
            {"events": [{**DIED, "number": 9}], "next": 9, "missed": True, "dropped": 0},
        ]
    )

    answers[POOL + "/events"] = (200, lambda: next(pages))
    ask = BlockingRemotePool.events

    def events(self: BlockingRemotePool, *args: Any, **kwargs: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(self, *args, **kwargs)

    monkeypatch.setattr(BlockingRemotePool, "events", events)
    shown = run(app, ["events", "--follow", *where])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("default-w0-a ended") == 2
    assert "events were missed" in shown.stdout
    assert [dict(url.params)["since"] for url in asked] == ["0", "7"]
    assert float(dict(asked[1].params)["timeout_s"]) > 0


def test_a_trace_is_printed_from_the_files_with_no_service_running(tmp_path):
    from test_tracing import Traced

    from dspool.telemetry import trace_names as names

    t = Traced()
    span = t.tracing.start("operation ping", {names.OPERATION_ID: "op-7"})
    t.tracing.end(span)
    t.spans()
    exporter = FileExporter(tmp_path / "traces", "c")
    exporter.export(t.kept.spans)
    exporter.shutdown()
    shown = run(app, ["trace", "op-7", "--state-dir", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "operation ping" in shown.stdout
    as_json = json.loads(run(app, ["trace", "op-7", "--json", "--state-dir", str(tmp_path)]).stdout)
    assert as_json["spans"][0]["name"] == "operation ping"
    other = run(app, ["trace", "op-7", "--pool", "nope", "--state-dir", str(tmp_path)])
    assert (other.exit_code, "pool nope has no trace of" in other.stderr) == (2, True)
    missing = run(app, ["trace", "op-8", "--state-dir", str(tmp_path)])
    assert missing.exit_code != 0
    assert "not sampled" in missing.stderr


def test_an_event_of_an_error_says_so():
    assert " error " in event_text(msgspec.convert({**DIED, "level": "error"}, LoggedEvent))


@pytest.mark.parametrize("option", ["operation", "worker"])
def test_logs_without_a_line_of_what_was_named_say_so(service, option):
    answers, _, where = service
    answers[POOL + "/logs"] = (200, {"lines": [], "next": 0.0, "truncated": False, "filtered": False})
    shown = run(app, ["logs", f"--{option}", "nothing", *where])
    assert shown.exit_code == 0, shown.output
    assert f"no line of {option} nothing" in shown.stdout


# --- 80 columns, and what is wrong first ---------------------------------------------------------------


def troubled_pool() -> tuple[PoolStatus, Any]:
    """With names as long as people and Ray make them, numbers as large as they become, and an error in five."""
    now = [0.0]
    metrics = Metrics("default", clock=lambda: now[0])
    workers = tuple(
        WorkerStatus(f"default-w{n}-a1b2c3", n, "draining", 4_194_304, f"{n}" * 56, 1234, 16, 16,
                     operations=1_234_567, rss_mb=12_345.0)
        for n in range(12)
    )  # fmt: skip
    status = PoolStatus("default", "degraded", True, 12, 11, 1, 3, workers, {"triage_of_tickets": 12})
    client = ClientRecorder("default", "c", now=0.0)
    for n in range(50):
        client.submitted("triage_of_tickets_in_every_language")
        outcome = "ok" if n % 5 else "error"
        client.record("triage_of_tickets_in_every_language", outcome, 123.456, 3.3, 120.1)
    for recorder in (WorkerRecorder("default", w.id, w.ordinal, 16, now=0.0) for w in workers):
        recorder.started(0.0)
        recorder.finished(1.0, "ok", 123.4)
        metrics.report(recorder.take_delta(1.0))
    now[0] = 1.0
    metrics.report(status)
    metrics.report(client.take_delta(1.0))
    metrics.tick()
    return status, metrics.snapshot()


FIRING = {
    "name": "DspoolErrorRate", "state": "firing", "since": 1_795_000_000.0, "severity": "page",
    "summary": "20 % of the operations of pool default fail, ten times what the objective allows for a month",
}  # fmt: skip


@pytest.fixture
def troubled(service):
    answers, _, where = service
    answers[POOL], answers[POOL + "/metrics"] = [(200, each) for each in troubled_pool()]
    answers[POOL + "/alerts"] = (200, {"alerts": [{**FIRING, "name": "Fine", "state": "ok"}, FIRING]})
    long = {**DIED, "metadata": {"worker": "default-w0-a1b2c3", "reason": "no room for it, " * 20}}
    answers[POOL + "/events"] = (200, {"events": [long], "next": 7, "missed": False, "dropped": 0})
    names = ("triage_of_tickets_in_every_language",) * 3
    one = SessionInfo("s" * 64, "default-w0-a1b2c3", 1, 1.0, 2.0, names)
    answers[POOL + "/sessions"] = (200, {"sessions": [one], "next_cursor": None})
    return where


@pytest.mark.parametrize("verb", [["status"], ["top", "--once"], ["events"], ["sessions"], ["config"]])
def test_what_is_long_and_large_fits_80_columns(verb, troubled):
    shown = run(app, [*verb, *troubled], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "…" not in shown.stdout
    assert "..." not in shown.stdout


@pytest.mark.parametrize("verb", [["status"], ["top", "--once"]])
def test_health_and_what_is_wrong_come_first(verb, troubled):
    lines = run(app, [*verb, *troubled], env={"COLUMNS": "80"}).stdout.splitlines()
    first = "pool default: unhealthy (20 of 100), degraded, 11 of 12 workers and 1 spare"
    assert lines[0] == first
    assert lines[1].startswith("  ! The pool is degraded: 11 of 12 workers are left")
    assert any(line.startswith("  ! 20.00% of the operations fail or time out, since ") for line in lines)
    facts = json.loads(run(app, ["status", "--json", *troubled]).stdout)
    assert any("20.00% of the operations fail" in problem for problem in facts["problems"])
    assert (facts["diagnosis"]["state"], facts["diagnosis"]["faults"][0]["place"]) == ("unhealthy", "workers")
    assert [alert["name"] for alert in facts["alerts"]] == ["DspoolErrorRate"]


def test_status_of_a_service_that_does_not_answer_says_so_and_fails(service):
    answers, _, where = service
    answers[POOL] = (502, {})
    ended = run(app, ["status", *where])
    assert (ended.exit_code, ended.stdout.splitlines()[0]) == (1, "pool default: no answer")
    assert "The service does not answer: " in ended.stdout


def test_a_running_dev_is_found_where_no_service_runs(service, tmp_path):
    answers, _, where = service
    answers[POOL], answers[POOL + "/metrics"] = [(200, each) for each in busy_pool()]
    mine = RunFile(tmp_path).read()
    RunFile(tmp_path).remove(mine.pid)
    RunFile(tmp_path).of_development.write(msgspec.structs.replace(mine, development=True))
    ended = run(app, ["status", *where])
    assert ended.exit_code == 0, ended.output
    assert f"at http://dspool of dspool dev (pid {mine.pid})" in ended.stdout


# --- dashboards ----------------------------------------------------------------------------------------


def test_open_prints_where_the_dashboard_is_and_whether_it_asks_for_a_token(service, monkeypatch):
    answers, _, where = service
    taken: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: not taken.append(url))
    answers["/v1/pools"] = (200, {"pools": []})
    with monkeypatch.context() as headless:
        headless.setattr("sys.platform", "linux")
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            headless.delenv(name, raising=False)
        shown = run(app, ["open", *where])
    assert shown.stdout == "http://dspool/dashboard#/default\nit needs no token\n"
    monkeypatch.setenv("DISPLAY", ":0")
    answers["/v1/pools"] = (401, {"code": "unauthenticated", "detail": "who?"})
    assert run(app, ["open", *where]).stdout.endswith("it asks for an access token\n")
    run(app, ["open", "--print", *where])
    facts = json.loads(run(app, ["open", "--json", *where]).stdout)
    assert (facts["url"], facts["opened"]) == ("http://dspool/dashboard#/default", False)
    assert taken == ["http://dspool/dashboard#/default"]


def test_open_ray_prints_the_address_and_the_token_that_rays_page_asks_for(service, tmp_path):
    _, _, where = service
    without = run(app, ["open", "--ray", *where])
    assert (without.exit_code, "`dspool up --ray-dashboard`" in without.stderr) == (2, True)
    token = tmp_path / "ray_token"
    token.write_text("abc123\n")
    mine = RunFile(tmp_path).read()
    its = {"ray_dashboard": "http://127.0.0.1:8265", "ray_token_path": str(token)}
    RunFile(tmp_path).write(msgspec.structs.replace(mine, **its))
    said = run(app, ["open", "--ray", "--print", *where]).stdout
    assert said == "http://127.0.0.1:8265\npaste this token where the page asks for one: abc123\n"
