"""What has to happen when a setting of a running service changes: for each setting, who has to hear of it. Pure.

Every setting of `PoolConfig` has a rule here; a test holds that for new ones.
"""

from __future__ import annotations

from typing import Final, Literal

Part = Literal["supervisor", "metrics", "store", "answers", "running workers", "workers", "ingress"]
"""A part of a service that has to hear of a change. `running workers` take it over as they run; `workers` are replaced,
the new one warm first; `ingress` is replaced too, and drained."""

_SUPERVISED: Final = """
pool_size min_pool_size max_pool_size max_overflow overflow_idle_s spares lazy init_timeout_s
health_check_interval_s health_check_timeout_s max_health_failures
enable_optimizer optimization_interval_s target_utilization grow_cooldown_s shrink_cooldown_s
warmup.strategy warmup.worker_deadline_s warmup.min_ready placement.strategy
recycle.max_operations recycle.max_age_s recycle.max_memory_mb
restart.intensity restart.period_s restart.backoff_s restart.backoff_max_s
"""
_MEASURED: Final = """
metrics_interval_s history.fine_interval_s history.fine_span_s history.coarse_interval_s history.coarse_span_s
history.long_interval_s history.long_span_s operations.max_rows operations.max_bytes operations.max_age_s
"""
_STORED: Final = """
limits.max_sessions limits.max_session_mb limits.max_stored_mb limits.max_answers_mb limits.max_pool_sessions
limits.max_pool_stored_mb
"""
_OF_CLIENTS: Final = """
strategy affinity checkout_timeout_s max_queue retry.backoff_s retry.backoff_max_s retry.jitter retry.budget_ratio
retry.refuse_poison_s
service.replicas ingress.replicas service.max_body_bytes service.max_batch service.heartbeat_s service.idempotency_ttl_s
service.tokens_file service.fair_waiting service.audit_max_bytes service.audit_files service.max_streams
service.max_streams_per_principal service.root_path service.cors_origins service.session_imports
"""
_OF_WORKERS: Final = """
slots_per_worker num_cpus num_gpus memory_mb worker_start placement.node_labels placement.resources
placement.accelerator preload setup warmup.steps loop_blocked_after_s max_sessions_per_worker history_limit
limits.max_worker_sessions_mb
allowed_imports allowed_callables.programs allowed_callables.tools allowed_callables.rewards allowed_program_dirs
allow_execute_code lm_profiles default_lm prices request_lm.profiles request_lm.settings service.execute_code_memory_mb
telemetry.log_format
"""
_EVERYWHERE: Final = """
retry.attempts telemetry.capture_content telemetry.error_messages telemetry.otlp_endpoint telemetry.sampling
telemetry.max_traces_per_s telemetry.trust_traceparent stream_window service.execute_code
"""

_NO_OTHER_POOL: Final = "it names the pool: give the other name to another pool"
_PROXY: Final = "the proxy learns it at its start: `dspool down`, then `dspool up`"
_PLACE: Final = "what the service keeps is there: move it while the service is down"
REFUSED: Final[dict[str, str]] = {
    "name": _NO_OTHER_POOL,
    "state_dir": _PLACE,
    "store_url": _PLACE,
    **dict.fromkeys(
        ("store.connections", "store.connect_timeout_s", "store.statement_timeout_s"),
        "the store has its connections from its start: `dspool down`, then `dspool up`",
    ),
    "enable_metrics": "each process begins to measure, or does not, when it starts: `dspool down`, then `dspool up`",
    **dict.fromkeys(
        (
            "service.host",
            "service.port",
            "service.tls_cert",
            "service.tls_key",
            "service.body_timeout_s",
            "service.max_connections",
            "service.max_connections_per_address",
            "service.trusted_proxies",
            "ingress.per_node",
        ),
        _PROXY,
    ),
}
"""The settings that cannot change while the service runs, and why."""

PARTS: Final[dict[str, tuple[Part, ...]]] = {
    **dict.fromkeys(_SUPERVISED.split(), ("supervisor",)),
    **dict.fromkeys(_MEASURED.split(), ("metrics",)),
    **dict.fromkeys(_STORED.split(), ("store",)),
    **dict.fromkeys(_OF_CLIENTS.split(), ("ingress",)),
    **dict.fromkeys(_OF_WORKERS.split(), ("workers",)),
    **dict.fromkeys(_EVERYWHERE.split(), ("workers", "ingress")),
    "max_wait_s": ("supervisor", "metrics"),
    "metrics_flush_interval_s": ("supervisor", "running workers"),
    "session_ttl_s": ("supervisor", "running workers"),
    "operation_timeout_s": ("supervisor", "running workers", "ingress"),
    "recycle.stuck_s": ("running workers",),
    "telemetry.log_level": ("supervisor", "running workers"),
    "cache.scope": ("answers", "workers"),
    "cache.ttl_s": ("answers",),
    "cache.max_mb": ("answers",),
    "programs": ("workers",),
}
"""Who has to hear of a change, by dotted setting. A dict of groups (`programs`, `lm_profiles`, `prices`) is one."""
