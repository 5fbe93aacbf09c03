"""The groups of keys inside `PoolConfig`, each with its own rules. Durations are seconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dspool.config.base import (
    Amount,
    Count,
    CountOrZero,
    File,
    FreeForm,
    HttpUrl,
    ImportPath,
    Megabytes,
    Name,
    Network,
    Origin,
    Part,
    Port,
    RootPath,
    Seconds,
    SecondsOrZero,
    Share,
    refuse,
)


class HistoryConfig(Part):
    fine_interval_s: Seconds = 1.0
    """Spacing of the points of the fine history."""
    fine_span_s: Seconds = 3600.0
    """How far back the fine history goes."""
    coarse_interval_s: Seconds = 10.0
    """Spacing of the points of the coarse history."""
    coarse_span_s: Seconds = 86400.0
    """How far back the coarse history goes."""
    long_interval_s: Seconds = 300.0
    """Spacing of the points of the long history."""
    long_span_s: Seconds = 604800.0
    """How far back the long history goes."""

    @model_validator(mode="after")
    def _whole_points(self) -> HistoryConfig:
        for span, interval in (
            ("fine_span_s", "fine_interval_s"),
            ("coarse_span_s", "coarse_interval_s"),
            ("coarse_interval_s", "fine_interval_s"),
            ("long_span_s", "long_interval_s"),
        ):
            _multiple(self, span, interval)
        if self.fine_span_s > self.coarse_span_s:
            refuse(
                "fine_span_s", self.fine_span_s, f"must not be longer than coarse_span_s={self.coarse_span_s}"
            )
        for span, interval in (
            ("fine_span_s", "fine_interval_s"),
            ("coarse_span_s", "coarse_interval_s"),
            ("long_span_s", "long_interval_s"),
        ):
            points = getattr(self, span) / getattr(self, interval)
            if points > 100_000:
                refuse(
                    span, getattr(self, span), f"must not make more than 100000 points, it makes {points:.0f}"
                )
        return self


class OperationsConfig(Part):
    max_rows: CountOrZero = 1_000_000
    """Ended operations that the pool keeps on disk, to be searched; the oldest go first. 0 keeps none."""
    max_bytes: Annotated[int, Field(ge=1_048_576)] = 536_870_912
    """Size of their file. A million takes about 250 MB."""
    max_age_s: Seconds = 604_800.0
    """How long an operation is kept."""


def is_multiple(value: float, of: float) -> bool:
    """Whether `value` is a whole multiple of `of`, up to what decimal fractions lose in binary."""
    count = round(value / of)
    return count >= 1 and abs(value - count * of) <= 1e-9 * max(value, of)


def _multiple(part: Part, key: str, of: str) -> None:
    if not is_multiple(getattr(part, key), getattr(part, of)):
        refuse(key, getattr(part, key), f"must be a whole multiple of {of}={getattr(part, of)}")


class ProgramConfig(Part):
    """One pool program: a `spec`, an `import_path` or a `program_dir`; with saved state from `state_file`, if given."""

    spec: dict[str, Any] | None = None
    """Signature, module and settings."""
    state_file: File | None = None
    """JSON state that DSPy saved, loaded into the program that the others make."""
    import_path: ImportPath | None = None
    """`package.module:Name` within `allowed_imports`: a `dspy.Module` class or object, or a function that makes one."""
    kwargs: FreeForm = Field(default={})
    """Arguments for what `import_path` names."""
    program_dir: File | None = None
    """A program that DSPy saved whole (`save_program=True`), in `allowed_program_dirs`. Loading it runs its code."""
    lm: str | None = None
    """LM profile; null is `default_lm`."""
    adapter: str | None = Field(default=None, min_length=1)
    """DSPy adapter by name; null is DSPy's own choice."""
    idempotent: bool = True
    """Whether running it twice does no harm: only then does the pool run it again after a worker died."""

    @model_validator(mode="after")
    def _one_origin(self) -> ProgramConfig:
        if [self.spec, self.import_path, self.program_dir].count(None) != 2:
            path = self.import_path if self.spec is not None else None
            refuse("import_path", path, "give exactly one of spec, import_path and program_dir")
        if self.kwargs and self.import_path is None:
            refuse("kwargs", sorted(self.kwargs), "are for import_path; a spec has its settings inside")
        return self


class AllowedCallables(Part):
    """What import paths may name besides `dspy.Module`s: one by one as `package.module:name`, each for one use."""

    programs: tuple[ImportPath, ...] = ()
    """Functions that make a program, and programs that a module imports from elsewhere."""
    tools: tuple[ImportPath, ...] = ()
    """What an agent may call: the setting `tools` of ReAct."""
    rewards: tuple[ImportPath, ...] = ()
    """What may judge answers: the setting `reward` of BestOfN and Refine."""


class RetryConfig(Part):
    attempts: Count = 3
    """Tries in all, the first included."""
    backoff_s: SecondsOrZero = 0.05
    """Pause before the second try; doubles each time."""
    backoff_max_s: SecondsOrZero = 1.0
    """Longest pause."""
    jitter: Share = 0.5
    """Share of the pause that is random."""
    budget_ratio: Share = 0.1
    """Retries allowed as a share of recent operations, so that retries never multiply an outage."""
    refuse_poison_s: SecondsOrZero = 300.0
    """How long a request is refused after `attempts` workers that had it died in a row; 0: never."""

    @model_validator(mode="after")
    def _backoff_fits(self) -> RetryConfig:
        if self.backoff_s > self.backoff_max_s:
            refuse("backoff_s", self.backoff_s, f"must not be longer than backoff_max_s={self.backoff_max_s}")
        return self


class RecycleConfig(Part):
    """When the pool drains and replaces a worker that still answers; null is never."""

    max_operations: Count | None = None
    """Operations after which the pool replaces a worker."""
    max_age_s: Seconds | None = None
    """Age at which the pool replaces a worker."""
    max_memory_mb: Megabytes | None = None
    """Memory of its own at which the pool replaces a worker, unless it was above that when it became warm. What forked
    workers share does not count."""
    stuck_s: Seconds = 10.0
    """How long after its deadline an operation may still run before the pool replaces its worker."""


class RestartConfig(Part):
    intensity: Count = 5
    """Deaths within `period_s` at which the pool no longer replaces workers at once and reports itself degraded."""
    period_s: Seconds = 30.0
    """Window for `intensity`."""
    backoff_s: Seconds = 0.1
    """Pause before the next try after a failed start; doubles each time."""
    backoff_max_s: Seconds = 10.0
    """Longest pause."""

    @model_validator(mode="after")
    def _backoff_fits(self) -> RestartConfig:
        if self.backoff_s > self.backoff_max_s:
            refuse("backoff_s", self.backoff_s, f"must not be longer than backoff_max_s={self.backoff_max_s}")
        return self


class PlacementConfig(Part):
    """On which nodes of a cluster the workers run."""

    strategy: Literal["spread", "pack"] = "spread"
    """`spread`: as many on each node, spares where the fewest workers are, so that a lost node costs least; `pack`: as
    few nodes as have room."""
    node_labels: dict[str, str] = Field(default_factory=dict)
    """Only nodes with these Ray labels (`ray start --labels=zone=a`)."""
    resources: dict[str, Amount] = Field(default_factory=dict)
    """Ray resources of your own that each worker takes (`ray start --resources='{"index": 4}'`)."""
    accelerator: str | None = Field(default=None, min_length=1)
    """Only nodes with this accelerator, as Ray names it: `A100`."""

    @model_validator(mode="after")
    def _others_have_keys_of_their_own(self) -> PlacementConfig:
        for name, key in (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory_mb")):
            if name in self.resources:
                refuse(f"resources.{name}", self.resources[name], f"is what {key} is for")
        return self


class IngressConfig(Part):
    """HTTP on the nodes of a cluster."""

    replicas: Count | None = None
    """HTTP ingress processes in all; null is `service.replicas`."""
    per_node: CountOrZero = 0
    """So many on each node, with a proxy of its own there, so that each node serves; 0: one proxy, on the head node."""

    @model_validator(mode="after")
    def _one_of_both(self) -> IngressConfig:
        if self.replicas is not None and self.per_node:
            refuse(
                "replicas",
                self.replicas,
                f"is not for per_node={self.per_node}, which says how many there are",
            )
        return self


class LimitsConfig(Part):
    """How much a principal, and the pool in all, may keep; null is no limit. A token may say otherwise for its own."""

    max_sessions: Count | None = 10_000
    """Sessions of one principal."""
    max_session_mb: Megabytes | None = 32.0
    """Of one session: its programs with their states, its variables."""
    max_stored_mb: Megabytes | None = 512.0
    """Of all sessions of one principal."""
    max_answers_mb: Megabytes | None = 1024.0
    """Of answers to requests of one principal with an `Idempotency-Key`, kept for `service.idempotency_ttl_s`."""
    max_pool_sessions: Count | None = 100_000
    """Sessions of all principals, and of those without one."""
    max_pool_stored_mb: Megabytes | None = 8192.0
    """Of all sessions and kept answers."""
    max_worker_sessions_mb: Megabytes | None = 512.0
    """Of the sessions in one worker's memory; beyond, idle ones leave it (not the store), of who has most there."""

    @model_validator(mode="after")
    def _session_fits(self) -> LimitsConfig:
        for within in ("max_stored_mb", "max_pool_stored_mb"):
            most = getattr(self, within)
            if most is not None and (self.max_session_mb is None or self.max_session_mb > most):
                refuse("max_session_mb", self.max_session_mb, f"must not be more than {within}={most}")
        return self


class TelemetryConfig(Part):
    capture_content: bool = False
    """Put prompts and answers into spans, which only admins and their owner see. Off: they appear in no log, span,
    metric or error."""
    error_messages: Literal["loopback", "always", "never"] = "loopback"
    """Who is told what an exception of a program's own code says: callers of a service on loopback, admins and Python
    callers; every caller; nobody. The worker's log has it with its traceback."""
    otlp_endpoint: HttpUrl | None = None
    """Collector for OTLP over HTTP; null leaves it to the standard `OTEL_*` variables."""
    sampling: Share = 0.1
    """Share of operations to trace, of those that come without a decision (`traceparent`)."""
    max_traces_per_s: Annotated[float, Field(gt=0)] | None = 10.0
    """Most traces that a process begins, whatever the share: bounds the cost under load. One principal's `traceparent`
    headers get at most half of them. null is no limit."""
    trust_traceparent: bool = False
    """Continue the trace that a caller names. Off: their operation gets a trace of its own with a link to theirs, so
    that nobody puts spans into the trace of another. Without access tokens it is continued anyway."""
    log_format: Literal["text", "json"] = "text"
    """How workers and the pool's other processes write their logs."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level of the lines of the pool and of your programs' packages, whose prints count as info; other libraries
    log from warning up."""


class ServiceConfig(Part):
    host: str = Field(default="127.0.0.1", pattern=r"^\[?[A-Za-z0-9.:_%-]+\]?$")
    """Address the HTTP service binds to."""
    port: Port = 8000
    """Port the HTTP service binds to; 0 takes a free one."""
    replicas: Count = 1
    """HTTP ingress processes."""
    max_body_bytes: Count = 1_048_576
    """Largest request body."""
    max_batch: Count = 256
    """Most sets of inputs in one batch request; each is an operation, also for `max_queue`, rates and quotas."""
    heartbeat_s: Seconds = 15.0
    """How often an idle stream sends a comment, so that no proxy gives it up."""
    idempotency_ttl_s: Seconds = 86_400.0
    """How long the service keeps the answer to a request with an `Idempotency-Key`."""
    tokens_file: File | None = None
    """File with the access tokens (`dspool token new`), on each node that runs the service; mode 0600."""
    tls_cert: File | None = None
    """Certificate chain in PEM. With it the service speaks HTTPS only."""
    tls_key: File | None = None
    """The certificate's private key in PEM; not readable by everybody."""
    fair_waiting: Count = 256
    """Requests of one token that may wait while others have their turn; only with tokens."""
    audit_max_bytes: Annotated[int, Field(ge=65_536)] = 16_777_216
    """Size at which the audit log begins a new file."""
    audit_files: Annotated[int, Field(ge=2)] = 5
    """Files of the audit log in all; then the oldest goes."""
    max_streams: Count = 2048
    """Event streams that one ingress process holds open at once."""
    max_streams_per_principal: Count = 512
    """Of those, how many one principal may have; without tokens all are one."""
    body_timeout_s: Seconds = 30.0
    """How long a client may take to send a request's body."""
    max_connections: Annotated[int, Field(ge=100)] | None = None
    """Connections that the service holds at once; null is as many as the limit of open files allows, at most 10,000.
    The last quarter is for addresses from which a valid token came within the hour."""
    max_connections_per_address: Count = 1024
    """Of these, for one address (in IPv6 one /64), which also bounds its HTTP/2 requests under way. The machine itself
    (127.0.0.1, ::1) and `trusted_proxies` may hold three quarters of all."""
    trusted_proxies: tuple[Network, ...] = ()
    """Addresses and networks of reverse proxies in front. The service believes the last address in the
    `X-Forwarded-For` that they send, and nobody else's."""
    root_path: RootPath = ""
    """Path below which a reverse proxy offers the service, such as `/dsp`, whether the proxy takes it off or not."""
    cors_origins: tuple[Origin, ...] = ()
    """Web pages of these origins may call `/v1/` from a browser, with a token of their own and without a login. Where
    the service has no tokens, they may do there whatever you may."""
    execute_code: bool = False
    """Offer `execute_code` over HTTP, to admins: Python in a sandbox (Deno) without files, network and environment."""
    execute_code_memory_mb: Annotated[int, Field(ge=256)] = 1024
    """Memory that such a sandbox may take."""
    session_imports: bool = False
    """Let callers name import paths in their sessions' programs, within the rules for all; else only admins may."""

    @model_validator(mode="after")
    def _certificate_and_key(self) -> ServiceConfig:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_cert"
            refuse(missing, None, "tls_cert and tls_key are given together")
        return self

    @model_validator(mode="after")
    def _one_address_is_not_all(self) -> ServiceConfig:
        share, most = self.max_connections_per_address, self.max_connections
        if most is not None and share > most and "max_connections_per_address" in self.model_fields_set:
            refuse("max_connections_per_address", share, f"must not be more than max_connections={most}")
        return self


__all__ = [
    "AllowedCallables",
    "HistoryConfig",
    "IngressConfig",
    "LimitsConfig",
    "Name",
    "OperationsConfig",
    "PlacementConfig",
    "ProgramConfig",
    "RecycleConfig",
    "RestartConfig",
    "RetryConfig",
    "ServiceConfig",
    "TelemetryConfig",
]
