"""Where finished spans go: a thread beside the event loop, local files, and OTLP on demand.

The standard `OTEL_*` variables choose: `OTEL_SDK_DISABLED`, `OTEL_TRACES_EXPORTER` (otlp, console, file, none;
several with commas), `OTEL_EXPORTER_OTLP_[TRACES_]ENDPOINT` and `..._PROTOCOL` (http/protobuf, grpc). Without any of
them spans go to files that `dspool trace` reads.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from opentelemetry.context import Context, attach, detach, set_value
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult

from dspool import private_files
from dspool.config import PoolConfig

EXPORT_EVERY_S = 0.5
MAX_QUEUE = 4096
"""Spans that may wait for the thread; it drops and counts those beyond."""
BATCH = 512
FILE_BYTES = 4 * 2**20
"""A file that grows past this is set aside; that removes the one set aside before."""
MAX_FILES = 64
"""Files in the directory; a starting process removes the oldest beyond."""
DIRECTORY = "traces"

log = logging.getLogger("dspool.tracing")


class Batches(SpanProcessor):
    """Hands finished spans to exporters in a thread of its own. An exporter that fails costs its batch, nothing else.

    The SDK's own processor drops in silence; this one counts, so that losses show.
    """

    def __init__(self, exporters: Sequence[SpanExporter], *, every_s: float = EXPORT_EVERY_S) -> None:
        self.dropped = 0
        """Spans that were never exported, whatever the reason."""
        self._exporters = list(exporters)
        self._every_s = every_s
        self._queue: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._closed = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failing: set[str] = set()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        if self._closed or len(self._queue) >= MAX_QUEUE:
            self.dropped += 1
            return
        self._queue.append(span)
        if self._thread is None:
            self._start()

    def shutdown(self) -> None:
        """Export the waiting spans, then close the exporters. Blocks; not for an event loop."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        self.force_flush()
        for exporter in self._exporters:
            with contextlib.suppress(Exception):
                exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        with self._lock:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                for exporter in self._exporters:
                    self._export(exporter, batch)
        return True

    def _start(self) -> None:
        # With the first span, not earlier: until then a process may be forked.
        self._thread = threading.Thread(target=self._run, name="dspool-spans", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(self._every_s)
            self.force_flush()

    def _export(self, exporter: SpanExporter, batch: list[ReadableSpan]) -> None:
        # Else instrumented HTTP libraries would trace the export of traces.
        token = attach(set_value("suppress_instrumentation", True))
        try:
            if exporter.export(batch) is SpanExportResult.SUCCESS:
                return
            why = "it refused them"
        except Exception as failed:
            why = type(failed).__name__
        finally:
            detach(token)
        self.dropped += len(batch)
        name = type(exporter).__name__
        if name not in self._failing:
            self._failing.add(name)
            log.warning(
                "%s could not export %d spans (%s); further failures are only counted", name, len(batch), why
            )


class FileExporter(SpanExporter):
    """One span a line, as JSON, in `{role}-{pid}.jsonl`: at most two files of `FILE_BYTES` a process."""

    def __init__(self, directory: Path, name: str, *, file_bytes: int = FILE_BYTES) -> None:
        self._path = directory / f"{name}.jsonl"
        self._file_bytes = file_bytes
        self._file: Any = None
        self._size = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._file is None or not self._path.exists():
            # Not there yet, or removed as an old one by another process that started.
            self.shutdown()
            private_files.make_directory(self._path.parent)
            remove_oldest(self._path.parent, MAX_FILES - 1)
            self._open()
        for span in spans:
            line = json.dumps(as_row(span), default=str) + "\n"
            if self._size and self._size + len(line) > self._file_bytes:
                self._file.close()
                self._path.replace(self._path.with_suffix(".old.jsonl"))
                self._open()
            self._file.write(line)
            self._size += len(line)
        self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        self._file = open(self._path, "a", encoding="utf-8", opener=private_files.open_descriptor)  # noqa: SIM115
        self._size = self._file.tell()


def remove_oldest(directory: Path, keep: int) -> None:
    """Keep the `keep` files with the latest changes."""
    for path in newest_files(directory)[keep:]:
        path.unlink(missing_ok=True)


def newest_files(directory: Path) -> list[Path]:
    """Those with the latest changes first."""
    ages = []
    for path in directory.glob("*.jsonl"):
        with contextlib.suppress(OSError):
            ages.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(ages, reverse=True)]


def as_row(span: ReadableSpan) -> dict[str, Any]:
    """A span as a row of the files; times in nanoseconds since the epoch."""
    context = span.get_span_context()
    assert context is not None
    return {
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent is not None else None,
        "name": span.name,
        "kind": span.kind.name.lower(),
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "ok": span.status.is_ok,
        "attributes": dict(span.attributes or {}),
        "resource": {key: value for key, value in span.resource.attributes.items() if key in _RESOURCE_KEYS},
    }


_RESOURCE_KEYS = frozenset({"service.name", "service.instance.id", "dspool.pool", "process.pid", "host.name"})


# --- which exporters ---


def exporters(
    config: PoolConfig, name: str, *, environ: Mapping[str, str] = os.environ
) -> list[SpanExporter]:
    """The exporters that the environment and `telemetry.otlp_endpoint` ask for; none switches tracing off.

    The log reports a missing package, and the pool starts without it: observing never hurts.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    endpoint = config.telemetry.otlp_endpoint
    value = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if value:
        kinds = [part.strip() for part in value.split(",") if part.strip()]
    else:
        otlp = endpoint is not None or any(
            environ.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("", "TRACES_")
        )
        kinds = ["file", "otlp"] if otlp else ["file"]
    instances: list[SpanExporter] = []
    makers: dict[str, Callable[[], SpanExporter | None]] = {
        "file": lambda: FileExporter(config.state_dir / DIRECTORY, name),
        "console": ConsoleSpanExporter,
        "otlp": lambda: _otlp(None if endpoint is None else str(endpoint), environ),
        "none": lambda: None,
    }
    for kind in kinds:
        if kind not in makers:
            log.warning("OTEL_TRACES_EXPORTER names %r; known are %s", kind, ", ".join(makers))
        elif (exporter := makers[kind]()) is not None:
            instances.append(exporter)
    return instances


def _otlp(endpoint: str | None, environ: Mapping[str, str]) -> SpanExporter | None:
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    # The configured endpoint is for HTTP; the exporter itself reads the rest from the environment.
    grpc = protocol == "grpc" and endpoint is None
    module = f"opentelemetry.exporter.otlp.proto.{'grpc' if grpc else 'http'}.trace_exporter"
    try:
        make = import_module(module).OTLPSpanExporter
    except ImportError:
        log.warning("spans are not sent by OTLP: install dspool[otlp]")
        return None
    if endpoint is None:
        return make()  # type: ignore[no-any-return]
    url = endpoint.rstrip("/")
    return make(endpoint=url if url.endswith("/v1/traces") else f"{url}/v1/traces")  # type: ignore[no-any-return]
