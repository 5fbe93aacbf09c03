"""The decision to trace, the spans of client, worker and DSPy, and where they go."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dspy
import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from dspool.client.observation import ClientObserver
from dspool.config import PoolConfig
from dspool.core.dispatch.ticket import Ticket, TicketEnd
from dspool.core.metrics.recorder import ClientRecorder
from dspool.errors import ProgramError, QueueFull, UnknownName, WorkerLost
from dspool.messages import Deployment, ExecuteProgram, Operation, Result, SetVariable
from dspool.programs.sessions.host import Session, SessionHost
from dspool.telemetry import trace_names as names
from dspool.telemetry.trace_export import Batches, FileExporter, as_row, exporters, remove_oldest
from dspool.telemetry.trace_tree import find_trace, render, trees
from dspool.telemetry.tracing import NOT_TRACED, Tracing, clock_offset_ns, inside, trace_id_of, traceparent_of

CANARY = "canary-2b7e"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = PARENT[:-2] + "00"
QA = ExecuteProgram("qa", {"context": f"Paris is {CANARY}.", "question": "What?"})


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[Any] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


class Traced:
    """A `Tracing` whose spans are at hand."""

    def __init__(self, *, sampling: float = 1.0, dice: float = 0.5, capture: bool = False) -> None:
        self.kept = Kept()
        self.batches = Batches([self.kept], every_s=3600)
        config = PoolConfig(name="p", telemetry={"sampling": sampling, "capture_content": capture})
        self.tracing = Tracing(config, "test", processor=self.batches, dice=lambda: dice)

    def spans(self) -> dict[str, Any]:
        self.batches.force_flush()
        return {span.name: span for span in self.kept.spans}


class Call:
    command, program = "execute_program", "qa"


def operation(session: str | None = None, traceparent: str | None = None) -> Operation:
    return Operation("op-1", QA, 30.0, session, None, traceparent)


def ticket_of(operation: Operation) -> Ticket:
    tried = ("p-w3-b", "p-w0-a")
    return Ticket(1, operation, 100.0, 130.0, 110.0, True, Call(), sent_at=100.5, attempts=2, tried=tried)


# --- the decision ---


@pytest.mark.parametrize(
    ("given", "dice", "traced"),
    [
        (None, 0.05, True),
        (None, 0.5, False),
        (PARENT, 0.99, True),
        (UNSAMPLED, 0.0, False),
        (NOT_TRACED, 0.0, False),
    ],
)
def test_an_operation_is_traced_as_its_parent_says_else_by_share(given, dice, traced):
    assert Traced(sampling=0.1, dice=dice).tracing.should_trace(given) is traced


@pytest.mark.parametrize(
    "odd", ["nonsense", PARENT.upper(), "ff" + PARENT[2:], PARENT + "x", "00-" + "0" * 32]
)
def test_what_is_no_traceparent_decides_nothing(odd):
    assert Traced(sampling=0.0).tracing.should_trace(odd) is False
    assert trace_id_of(odd) is None


def test_however_much_goes_by_the_traces_a_second_are_bounded():
    now = [0.0]
    config = PoolConfig(telemetry={"sampling": 1.0, "max_traces_per_s": 10})
    tracing = Tracing(config, "test", clock=lambda: now[0])
    taken = 0
    for step in range(5000):
        now[0] = step / 1000
        taken += tracing.should_trace(None)
    assert 50 <= taken <= 60
    assert tracing.should_trace(PARENT) is True
    free = Tracing(
        PoolConfig(telemetry={"sampling": 1.0, "max_traces_per_s": None}), "test", clock=lambda: 0.0
    )
    assert all(free.should_trace(None) for _ in range(100))


def observing_of(t):
    return ClientObserver("p", ClientRecorder("p", "c", now=0.0), t.tracing)


def test_an_operation_that_is_not_traced_has_no_span_anywhere():
    t = Traced(sampling=0.0)
    observing = observing_of(t)
    before = operation()
    assert observing.entered(before, Call()) is before
    assert t.tracing.resume(before, worker="w", at=0.0) is None
    assert t.spans() == {}


def test_no_sampling_takes_a_callers_word_against_it():
    t = Traced()
    entered = observing_of(t).entered(operation(traceparent=UNSAMPLED), Call())
    assert entered.traceparent == UNSAMPLED
    assert t.tracing.resume(entered, worker="w", at=0.0) is None


def test_switched_off_by_the_standard_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = Tracing(PoolConfig(state_dir=tmp_path, telemetry={"sampling": 1.0}), "test")
    assert tracing.start("x", {}) is None
    assert tracing.should_trace(PARENT) is False
    assert not list(tmp_path.iterdir())


# --- client and worker ---


def test_one_trace_leads_from_the_caller_through_the_queue_to_the_worker():
    t = Traced()
    observing = observing_of(t)
    entered = observing.entered(operation(session="ada", traceparent=PARENT), Call())
    active = t.tracing.resume(entered, worker="p-w0-a", at=100.5)
    t.tracing.end(active.span)
    finished = Result("op-1", value={"outputs": {}}, run_s=0.25)
    observing.ended(TicketEnd(ticket_of(entered), finished, None, "p-w0-a"), 101.0)
    spans = t.spans()
    root, queue, work = spans["operation execute_program"], spans["queue"], spans["worker execute_program"]
    assert f"{root.context.trace_id:032x}" == trace_id_of(PARENT) == trace_id_of(entered.traceparent)
    assert f"{root.parent.span_id:016x}" == PARENT.split("-")[2]
    assert queue.parent.span_id == work.parent.span_id == root.context.span_id
    assert queue.end_time - queue.start_time == pytest.approx(0.5e9)
    assert root.attributes[names.ATTEMPTS] == 2
    assert root.attributes[names.TRIED] == "p-w3-b,p-w0-a"
    assert root.attributes[names.WORKER] == work.attributes[names.WORKER] == "p-w0-a"
    assert root.attributes[names.SESSION] == work.attributes[names.SESSION] != "ada"


def test_a_refused_operation_ends_its_span():
    t = Traced()
    observing = observing_of(t)
    observing.refused(observing.entered(operation(), Call()), Call(), QueueFull("full"))
    span = t.spans()["operation execute_program"]
    assert (span.attributes[names.OUTCOME], span.attributes[names.ERROR_TYPE]) == ("rejected", "queue_full")
    assert not observing._spans


def test_a_lost_operation_fails_its_span_and_quotes_nothing():
    t = Traced()
    observing = observing_of(t)
    entered = observing.entered(operation(), Call())
    observing.ended(TicketEnd(ticket_of(entered), None, WorkerLost(CANARY), None), 101.0)
    span = t.spans()["operation execute_program"]
    assert not span.status.is_ok
    assert span.attributes[names.ERROR_TYPE] == "worker_lost"
    assert CANARY not in span.to_json()


# --- within DSPy ---


@pytest.fixture(scope="module")
def host():
    host = SessionHost(PoolConfig())
    host.deploy(Deployment("qa", 1, {"signature": "context, question -> answer", "module": "ChainOfThought"}))
    host.deploy(Deployment("best", 1, {"signature": "question -> answer", "module": "ChainOfThought"}))
    return host


def traced_run(t: Traced, run: Any, session: str | None = "ada") -> dict[str, Any]:
    active = t.tracing.resume(operation(session, PARENT), worker="w", at=0.0)
    with inside(active):
        run()
    t.tracing.end(active.span)
    return t.spans()


def test_a_program_shows_its_modules_adapter_and_model_call(host):
    spans = traced_run(Traced(), lambda: host.run_inline(QA, None))
    module, call = spans["module ChainOfThought"], spans["chat extractive"]
    assert module.parent.span_id == spans["worker execute_program"].context.span_id
    assert spans["module Predict"].parent.span_id == module.context.span_id
    for name in ("adapter ChatAdapter.format", "chat extractive", "adapter ChatAdapter.parse"):
        assert spans[name].parent.span_id == spans["module Predict"].context.span_id, name
    about = call.attributes
    assert about["gen_ai.operation.name"] == "chat"
    assert about["gen_ai.provider.name"] == "offline"
    assert about["gen_ai.request.model"] == "extractive"
    assert about["gen_ai.conversation.id"] == about["dspool.session.hash"]
    assert not any(CANARY in span.to_json() for span in spans.values())


async def test_the_async_way_shows_the_same(host):
    t = Traced()
    active = t.tracing.resume(operation(None, PARENT), worker="w", at=0.0)
    with inside(active):
        await host.run_async(QA, None, None)
    spans = t.spans()
    assert spans["module Predict"].parent.span_id == spans["module ChainOfThought"].context.span_id
    assert spans["chat extractive"].parent.span_id == spans["module Predict"].context.span_id


def test_content_is_captured_only_on_request(host):
    spans = traced_run(Traced(capture=True), lambda: host.run_inline(QA, None))
    assert CANARY in spans["chat extractive"].attributes["gen_ai.input.messages"]
    assert "gen_ai.output.messages" in spans["chat extractive"].attributes


def test_a_tool_has_a_span_of_its_own(host):
    tool = dspy.Tool(lambda city: f"{city} {CANARY}", name="weather", args={"city": {"type": "string"}})

    def run() -> None:
        from dspool.programs import spans

        with dspy.context(**spans.settings()):
            tool(city=CANARY)

    spans = traced_run(Traced(), run)
    span = spans["execute_tool weather"]
    assert (span.attributes["gen_ai.operation.name"], span.attributes["gen_ai.tool.name"]) == (
        "execute_tool",
        "weather",
    )
    assert CANARY not in span.to_json()


def test_threads_that_dspy_starts_stay_in_the_trace(host):
    program = dspy.Predict("question -> answer")

    def run() -> None:
        from dspool.programs import spans

        with dspy.context(lm=host.lms.get(None), **spans.settings()):
            dspy.Parallel(num_threads=2, disable_progress_bar=True)(
                [(program, dspy.Example(question=f"q{i}").with_inputs("question")) for i in range(2)]
            )

    t = Traced()
    traced_run(t, run)
    assert len({span.context.trace_id for span in t.kept.spans}) == 1
    assert sum(span.name == "chat extractive" for span in t.kept.spans) == 2


def test_outside_of_a_traced_operation_dspy_tells_nobody(host):
    from dspool.programs import spans

    assert spans.settings() == {}
    host.run_inline(QA, None)
    host.run_inline(SetVariable("x", CANARY), Session(host, "s"))


def test_a_failing_module_fails_its_span_without_quoting(host):
    class Fails(dspy.Module):
        def forward(self) -> None:
            raise ValueError(CANARY)

    def run() -> None:
        from dspool.programs import spans

        with dspy.context(**spans.settings()), pytest.raises(ValueError, match=CANARY):
            Fails()()

    span = traced_run(Traced(), run)["module Fails"]
    assert not span.status.is_ok
    assert span.attributes["error.type"] == "ValueError"
    assert CANARY not in span.to_json()


def test_a_failed_operation_says_what_was_raised_and_at_which_line_but_not_the_words():
    t = Traced()
    raised = ProgramError(f"KeyError: {CANARY}", exception="KeyError", at="shop.answers:41", text=CANARY)
    for name, error in (("raised", raised), ("wired", raised.to_wire()), ("late", QueueFull("full"))):
        t.tracing.end(t.tracing.start(name, {}), error=error)
    spans = t.spans()
    for name in ("raised", "wired"):
        about = dict(spans[name].attributes)
        assert (about["error.type"], about["dspool.exception"]) == ("program_error", "KeyError")
        assert about["dspool.at"] == "shop.answers:41"
        assert CANARY not in spans[name].to_json()
        told = render([as_row(spans[name])])
        assert "exception=KeyError at=shop.answers:41" in told
    assert "dspool.exception" not in spans["late"].attributes


# --- export ---


class Broken(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        raise OSError(CANARY)


def span_of(tracing: Tracing, name: str = "x", **about: Any) -> Any:
    span = tracing.start(name, about)
    tracing.end(span)
    return span


def test_an_exporter_that_fails_is_counted_and_does_not_stop_the_other(caplog):
    kept = Kept()
    batches = Batches([Broken(), kept], every_s=3600)
    tracing = Tracing(PoolConfig(), "test", processor=batches)
    for _ in range(3):
        span_of(tracing)
        batches.force_flush()
    assert len(kept.spans) == 3
    assert tracing.dropped == 3
    assert len([record for record in caplog.records if "Broken" in record.getMessage()]) == 1
    assert CANARY not in caplog.text


def test_spans_that_nobody_takes_are_bounded_and_counted(monkeypatch):
    monkeypatch.setattr("dspool.telemetry.trace_export.MAX_QUEUE", 5)
    t = Traced()
    for _ in range(8):
        span_of(t.tracing)
    assert t.tracing.dropped == 3


def test_spans_are_written_by_a_thread_of_their_own():
    here = threading.get_ident()
    wrote: list[int] = []

    class Notes(Kept):
        def export(self, spans: Any) -> SpanExportResult:
            wrote.append(threading.get_ident())
            return SpanExportResult.SUCCESS

    batches = Batches([Notes()], every_s=0.001)
    tracing = Tracing(PoolConfig(), "test", processor=batches)
    span_of(tracing)
    done = threading.Event()
    while not wrote and not done.wait(0.01):
        pass
    tracing.close()
    assert wrote
    assert here not in wrote


def test_files_are_rotated_private_and_few(tmp_path):
    exporter = FileExporter(tmp_path / "traces", "w-1", file_bytes=2000)
    t = Traced()
    for number in range(30):
        span_of(t.tracing, f"span {number}")
    t.spans()
    for span in t.kept.spans:
        exporter.export([span])
    files = sorted((tmp_path / "traces").iterdir())
    assert [file.name for file in files] == ["w-1.jsonl", "w-1.old.jsonl"]
    assert all(file.stat().st_size < 3000 and file.stat().st_mode & 0o077 == 0 for file in files)
    newest = [json.loads(line) for file in reversed(files) for line in file.read_text().splitlines()]
    assert newest[-1]["name"] == "span 29"
    for number in range(5):
        (tmp_path / "traces" / f"old-{number}.jsonl").touch()
    remove_oldest(tmp_path / "traces", 3)
    assert len(list((tmp_path / "traces").iterdir())) == 3
    (tmp_path / "traces" / "w-1.jsonl").unlink(missing_ok=True)
    exporter.export(t.kept.spans[:1])
    exporter.shutdown()
    assert json.loads((tmp_path / "traces" / "w-1.jsonl").read_text())["name"] == "span 0"


@pytest.mark.parametrize(
    ("environ", "endpoint", "kinds"),
    [
        ({}, None, ["FileExporter"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, None, ["FileExporter", "http"]),
        ({}, "http://127.0.0.1:9", ["FileExporter", "http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None, ["grpc"]),
        ({"OTEL_TRACES_EXPORTER": "console,file"}, None, ["ConsoleSpanExporter", "FileExporter"]),
        ({"OTEL_TRACES_EXPORTER": "none"}, None, []),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, None, []),
        ({"OTEL_SDK_DISABLED": "TRUE"}, "http://127.0.0.1:9", []),
    ],
)
def test_the_standard_variables_choose_the_exporters(environ, endpoint, kinds, tmp_path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
    config = PoolConfig(state_dir=tmp_path, telemetry={"otlp_endpoint": endpoint})
    made = exporters(config, "x", environ=environ)
    told = [
        type(each).__module__.split(".")[-2]
        if type(each).__name__ == "OTLPSpanExporter"
        else type(each).__name__
        for each in made
    ]
    assert told == kinds
    for each in made:
        each.shutdown()


def test_a_missing_otlp_package_is_told_and_left_out(monkeypatch, caplog, tmp_path):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("dspool.telemetry.trace_export.import_module", missing)
    made = exporters(PoolConfig(state_dir=tmp_path), "x", environ={"OTEL_TRACES_EXPORTER": "otlp,file"})
    assert [type(each) for each in made] == [FileExporter]
    assert "dspool[otlp]" in caplog.text


def test_a_collector_gets_the_spans_over_http(tmp_path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            got.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        config = PoolConfig(
            state_dir=tmp_path, telemetry={"otlp_endpoint": f"http://127.0.0.1:{server.server_port}"}
        )
        tracing = Tracing(config, "w")
        span_of(tracing, "hello")
        tracing.close()
    finally:
        server.shutdown()
        server.server_close()
    ((path, request),) = got
    assert path == "/v1/traces"
    assert request.resource_spans[0].scope_spans[0].spans[0].name == "hello"


def test_a_collector_gets_the_spans_over_grpc(tmp_path, monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    got: list[Any] = []

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            got.append((dict(context.invocation_metadata()), request))
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=ours")
        tracing = Tracing(PoolConfig(state_dir=tmp_path), "w")
        span_of(tracing, "hello")
        tracing.close()
    finally:
        server.stop(None)
    ((metadata, request),) = got
    assert metadata["x-tenant"] == "ours"
    assert request.resource_spans[0].scope_spans[0].spans[0].name == "hello"
    assert tracing.dropped == 0


# --- dspool trace ---


@pytest.fixture
def written(tmp_path):
    """Spans of two operations as two processes write them."""
    for role in ("client", "worker"):
        exporter = FileExporter(tmp_path / "traces", role)
        t = Traced()
        if role == "client":
            root = t.tracing.start("operation execute_program", {names.OPERATION_ID: "op-1"}, at=1.0)
            other = t.tracing.start("operation ping", {names.OPERATION_ID: "op-2"}, at=1.0)
            t.tracing.end(t.tracing.start("queue", {}, parent=root, at=1.0), at=1.5)
            for span in (root, other):
                t.tracing.end(span, at=3.0)
        else:
            work = t.tracing.start("worker execute_program", {}, parent=traceparent_of(root), at=1.5)
            t.tracing.end(work, at=2.5, error=WorkerLost("x"))
        t.spans()
        exporter.export(t.kept.spans)
        exporter.shutdown()
    (tmp_path / "traces" / "client.jsonl").open("a").write('{"half a li')
    return tmp_path


def test_the_tree_of_an_operation_spans_processes(written):
    spans = find_trace(written, "op-1")
    (root,) = trees(spans)
    assert root.span["name"] == "operation execute_program"
    assert [node.span["name"] for node in root.below] == ["queue", "worker execute_program"]
    text = render(spans)
    assert "1000.00 ms  └ worker execute_program FAILED" in text
    assert "ping" not in text
    assert find_trace(written, spans[0]["trace_id"]) == spans


def test_an_operation_that_was_not_traced_is_unknown(written):
    with pytest.raises(UnknownName, match="not sampled"):
        find_trace(written, "op-3")


def test_the_file_of_a_process_appears_with_its_first_span(tmp_path):
    async def main() -> None:
        tracing = Tracing(PoolConfig(state_dir=tmp_path), "w0")
        tracing.prepare()
        assert not (tmp_path / "traces").exists()
        span_of(tracing)
        await asyncio.to_thread(tracing.flush)
        assert [file.name.split("-")[0] for file in (tmp_path / "traces").iterdir()] == ["w0"]
        tracing.close()

    asyncio.run(main())


def test_a_process_that_loses_its_processor_between_two_clocks_does_not_shift_its_spans():
    pauses_ns = iter([0, 13_000_000, 5, 5, 0, 9_000_000, 0, 0, 2_000_000, 0])
    now_ns = 0

    def monotonic() -> int:
        nonlocal now_ns
        now_ns += 1 + next(pauses_ns)
        return now_ns

    assert abs(clock_offset_ns(lambda: 1_000 + now_ns, monotonic) - 1_000) <= 10
