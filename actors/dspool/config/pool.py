"""`PoolConfig`: every key of a pool, and the rules between keys."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from dspool.config.base import (
    AmountOrZero,
    ConfigMeta,
    Count,
    CountOrZero,
    Directory,
    ImportPath,
    Megabytes,
    ModuleName,
    Name,
    OfAnyVersion,
    Part,
    Seconds,
    SecondsOrZero,
    StoreUrl,
    default_state_dir,
    refuse,
)
from dspool.config.environment import PREFIX, Environment, environment
from dspool.config.models import CacheConfig, LMProfile, ModelPrice, RequestLM
from dspool.config.parts import (
    AllowedCallables,
    HistoryConfig,
    IngressConfig,
    LimitsConfig,
    OperationsConfig,
    PlacementConfig,
    ProgramConfig,
    RecycleConfig,
    RestartConfig,
    RetryConfig,
    ServiceConfig,
    TelemetryConfig,
    is_multiple,
)
from dspool.config.store import StoreConfig
from dspool.config.warmup import (
    ConfigureLMStep,
    CustomCode,
    Probe,
    WarmupConfig,
)


class PoolConfig(OfAnyVersion, BaseSettings, metaclass=ConfigMeta):
    """All settings of one pool. Frozen, picklable, equal by value; durations are in seconds.

    Keyword arguments win over `DSPOOL_*` variables, those over defaults; `load_config` adds command line and file.
    `DSPOOL_WARMUP__STRATEGY` is `warmup.strategy`.

    Raises:
        ConfigError: `key`, `value` and `rule` of the first refusal; all of them in `refusals`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        # The rules hold for defaults too, so that a rule and a default never drift apart.
        validate_default=True,
    )

    name: Name = "default"
    """Name of the pool, in URLs, actor names and metrics."""

    pool_size: Count = 2
    """Workers to run; the optimizer moves between the bounds below."""
    min_pool_size: Count = 1
    """Never fewer workers."""
    max_pool_size: Count = 8
    """Never more workers, overflow and spares apart."""
    max_overflow: CountOrZero = 0
    """Extra workers for bursts; at most `max_pool_size`."""
    overflow_idle_s: Seconds = 30.0
    """Idle time after which an overflow worker goes away."""
    slots_per_worker: Count = 8
    """Operations one worker runs at once."""
    spares: CountOrZero = 0
    """Warm workers without traffic, ready to replace a dead one; at most `max_pool_size`."""
    placement: PlacementConfig = PlacementConfig()
    num_cpus: AmountOrZero = 0
    """Processors that Ray sets aside for each worker; 0: it may run anywhere."""
    num_gpus: AmountOrZero = 0
    """GPUs that each worker has to itself, for models that it holds; a part of one is shared."""
    memory_mb: Megabytes | None = None
    """Memory that Ray sets aside for each worker; null: none."""
    strategy: Literal["lifo", "fifo", "least_loaded"] = "least_loaded"
    """Which worker an operation goes to: the one used last, the one used longest ago, or the freest."""
    lazy: bool = False
    """Start workers at the first operation instead of at once."""
    worker_start: Literal["fork", "exec"] = "fork" if sys.platform == "linux" else "exec"
    """`fork` (default on Linux only): from a preloaded process, fast and with shared memory; `exec`: each by itself."""
    preload: tuple[ModuleName, ...] = ()
    """Modules to import before workers are forked, which then share what these build: indexes, tables, models on the
    CPU. With `worker_start: exec` each worker imports them."""

    init_timeout_s: Seconds = 60.0
    """How long a start waits until the pool is ready."""
    checkout_timeout_s: Seconds = 10.0
    """Longest wait for a slot; within `operation_timeout_s`."""
    operation_timeout_s: Seconds = 30.0
    """Deadline of an operation: queue, retries and run together."""
    max_queue: CountOrZero = 1000
    """Operations that may wait in one client; it refuses one more at once."""

    health_check_interval_s: Seconds = 5.0
    """Time between two health checks of a worker."""
    health_check_timeout_s: Seconds = 2.0
    """Longest wait for the answer to a health check; within the interval."""
    max_health_failures: Count = 3
    """Failed checks in a row after which the pool replaces a worker."""

    loop_blocked_after_s: Seconds = 0.1
    """How long code may hold an event loop before it counts as blocking: told, and what waits there goes elsewhere."""

    enable_optimizer: bool = False
    """Let the pool choose its size."""
    optimization_interval_s: Seconds = 0.5
    """Time between two decisions about the size."""
    target_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Share of slot time the optimizer aims to have in use."""
    max_wait_s: Seconds = 0.1
    """Longest wait for a slot that the optimizer tolerates. Within `checkout_timeout_s`."""
    grow_cooldown_s: SecondsOrZero = 3.0
    """Pause after growing before the pool grows again."""
    shrink_cooldown_s: SecondsOrZero = 3.0
    """How long load must stay low before the pool shrinks."""

    setup: ImportPath | None = None
    """A function of yours, plain or async, as `package.module:name` within `allowed_imports`: each worker calls it
    once, before it loads programs. What it gives `dspy.configure` holds for all, below what a program's own code says.
    """
    warmup: WarmupConfig = WarmupConfig()

    enable_metrics: bool = True
    """Record and report samples."""
    metrics_interval_s: Seconds = 1.0
    """Time between two snapshots; divides `history.fine_interval_s`."""
    metrics_flush_interval_s: Seconds = 0.5
    """How often clients and workers send their samples; within `metrics_interval_s`."""
    history: HistoryConfig = HistoryConfig()
    operations: OperationsConfig = OperationsConfig()

    session_ttl_s: Seconds = 3600.0
    """Time without use after which the pool forgets a session."""
    max_sessions_per_worker: Count = 1000
    """Sessions that a worker keeps active; it refuses one more."""
    history_limit: CountOrZero = 50
    """Operations remembered per session."""
    limits: LimitsConfig = LimitsConfig()
    affinity: Literal["strict", "prefer"] = "strict"
    """A session's operations wait for its worker, or may move the session when that worker is full."""

    programs: dict[Name, ProgramConfig] = {}
    """Pool programs by name. A pool with nothing configured has `qa`."""
    allowed_imports: tuple[ModuleName, ...] = ()
    """Packages or modules that an import path may name, with all below them: the `dspy.Module`s defined there."""
    allowed_callables: AllowedCallables = AllowedCallables()
    allowed_program_dirs: tuple[Directory, ...] = ()
    """Directories in or below which lie programs that DSPy saved whole, by absolute path. Loading one runs its code."""
    allow_execute_code: bool = False
    """Allow `execute_code`: whoever may call it runs Python in a worker."""

    retry: RetryConfig = RetryConfig()
    recycle: RecycleConfig = RecycleConfig()
    restart: RestartConfig = RestartConfig()

    lm_profiles: dict[Name, LMProfile] = {}
    """Language models by name. Without any, the offline engine answers."""
    default_lm: str | None = None
    """LM profile of whatever names none; null is the only profile, or the offline engine."""
    prices: dict[str, ModelPrice] = {}
    """What tokens cost, by LM profile or by model (`openai/gpt-4o-mini`); a profile's own counts first. Answers,
    metrics and reports then have `cost_usd`."""
    request_lm: RequestLM = RequestLM()
    cache: CacheConfig = CacheConfig()

    store_url: StoreUrl | None = Field(default=None, repr=False)
    """Database of the session store; null is an SQLite file in `state_dir`, which is on one node."""
    store: StoreConfig = StoreConfig()
    state_dir: Directory = Field(default_factory=default_state_dir)
    """Directory of the pool's files; by default the user's state directory on this platform."""
    telemetry: TelemetryConfig = TelemetryConfig()
    service: ServiceConfig = ServiceConfig()
    ingress: IngressConfig = IngressConfig()
    stream_window: Count = 64
    """Stream events on their way to a caller before the worker waits."""

    @classmethod
    def default(cls) -> PoolConfig:
        """What `dspool up` serves with nothing configured: the pool program `qa` on the offline engine."""
        return cls(programs=dict(DEFAULT_PROGRAMS))

    def override(self, **changes: Any) -> PoolConfig:
        """A copy with `changes`, which must keep all rules. It does not read the environment again.

        A dict for a group (`warmup={"strategy": "staged"}`) changes the keys it names and no others.
        """
        values = {key: getattr(self, key) for key in type(self).model_fields}
        for key, value in changes.items():
            old = values.get(key)
            values[key] = (
                {**dict(old), **value} if isinstance(old, Part) and isinstance(value, dict) else value
            )
        with environment({}):
            return type(self)(**values)

    @property
    def min_ready(self) -> int:
        """Warm workers needed for readiness."""
        return self.min_pool_size if self.warmup.min_ready is None else self.warmup.min_ready

    def ingress_processes(self, nodes: int) -> int:
        """HTTP ingress processes in all, on so many nodes."""
        ingress = self.ingress
        return ingress.per_node * nodes if ingress.per_node else ingress.replicas or self.service.replicas

    def allows_import(self, import_path: str) -> bool:
        """Whether `package.module:Name` lies within `allowed_imports`."""
        return self.allows_module(import_path.partition(":")[0])

    def allows_module(self, module: str) -> bool:
        """Whether `package.module` lies within `allowed_imports`."""
        return any(module == allowed or module.startswith(f"{allowed}.") for allowed in self.allowed_imports)

    def is_public(self, module: str) -> bool:
        """Whether no part of `package.module` below what `allowed_imports` lists begins with an underscore."""
        return any(
            module == allowed or (module.startswith(f"{allowed}.") and "._" not in module[len(allowed) :])
            for allowed in self.allowed_imports
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, Environment(settings_cls))

    @model_validator(mode="after")
    def _sizes(self) -> PoolConfig:
        if not self.min_pool_size <= self.pool_size <= self.max_pool_size:
            bounds = f"{self.min_pool_size}..{self.max_pool_size}"
            refuse(
                "pool_size", self.pool_size, f"must be within min_pool_size..max_pool_size, which is {bounds}"
            )
        for key in ("max_overflow", "spares"):
            _at_most(self, key, "max_pool_size")
        if self.min_ready > self.pool_size:
            refuse("warmup.min_ready", self.min_ready, f"must not be more than pool_size={self.pool_size}")
        if self.min_ready == 0 and not self.lazy:
            refuse("warmup.min_ready", 0, "must be at least 1 unless the pool is lazy")
        return self

    @model_validator(mode="after")
    def _times(self) -> PoolConfig:
        _at_most(self, "checkout_timeout_s", "operation_timeout_s")
        _at_most(self, "health_check_timeout_s", "health_check_interval_s")
        _at_most(self, "max_wait_s", "checkout_timeout_s")
        _at_most(self, "metrics_flush_interval_s", "metrics_interval_s")
        if self.warmup.worker_deadline_s > self.init_timeout_s:
            rule = f"must not be longer than init_timeout_s={self.init_timeout_s}"
            refuse("warmup.worker_deadline_s", self.warmup.worker_deadline_s, rule)
        if not is_multiple(self.history.fine_interval_s, self.metrics_interval_s):
            rule = f"must be a whole multiple of metrics_interval_s={self.metrics_interval_s}"
            refuse("history.fine_interval_s", self.history.fine_interval_s, rule)
        for name, profile in self.lm_profiles.items():
            if profile.timeout_s is not None and profile.timeout_s > self.operation_timeout_s:
                rule = f"must not be longer than operation_timeout_s={self.operation_timeout_s}"
                refuse(f"lm_profiles.{name}.timeout_s", profile.timeout_s, rule)
        return self

    @model_validator(mode="after")
    def _names(self) -> PoolConfig:
        self._profile("default_lm", self.default_lm)
        self._import("setup", self.setup)
        for name in self.prices:
            if "/" not in name and name not in self.lm_profiles:
                rule = (
                    f"is neither a model (provider/name) nor one of lm_profiles: {_listed(self.lm_profiles)}"
                )
                refuse(f"prices.{name}", name, rule)
        for number, profile in enumerate(self.request_lm.profiles):
            if profile not in ("*", "offline"):
                self._profile(f"request_lm.profiles.{number}", profile)
        for name, program in self.programs.items():
            self._profile(f"programs.{name}.lm", program.lm)
            self._profile(f"programs.{name}.spec.lm", (program.spec or {}).get("lm"))
            self._import(f"programs.{name}.import_path", program.import_path)
            self._program_dir(f"programs.{name}.program_dir", program.program_dir)
        for number, path in enumerate(self.allowed_program_dirs):
            if not path.is_absolute():
                refuse(f"allowed_program_dirs.{number}", str(path), "must be an absolute path")
        for use in type(self.allowed_callables).model_fields:
            for number, path in enumerate(getattr(self.allowed_callables, use)):
                self._import(f"allowed_callables.{use}.{number}", path)
        for number, step in enumerate(self.warmup.steps):
            key = f"warmup.steps.{number}"
            if isinstance(step, ConfigureLMStep):
                self._profile(f"{key}.profile", step.profile)
            elif isinstance(step, Probe) and step.program not in self.programs:
                refuse(f"{key}.program", step.program, f"is not one of programs: {_listed(self.programs)}")
            elif isinstance(step, CustomCode):
                self._import(f"{key}.import_path", step.import_path)
        return self

    def _profile(self, key: str, name: Any) -> None:
        if name is not None and (not isinstance(name, str) or name not in self.lm_profiles):
            refuse(key, name, f"is not one of lm_profiles: {_listed(self.lm_profiles)}")

    def _program_dir(self, key: str, path: Path | None) -> None:
        if path is not None and not any(path.is_relative_to(one) for one in self.allowed_program_dirs):
            refuse(
                key,
                str(path),
                f"is not within allowed_program_dirs: {_listed(map(str, self.allowed_program_dirs))}",
            )

    def _import(self, key: str, path: str | None) -> None:
        if path is not None and not self.allows_import(path):
            refuse(key, path, f"is not within allowed_imports: {_listed(self.allowed_imports)}")


DEFAULT_PROGRAMS: Mapping[str, ProgramConfig] = {
    "qa": ProgramConfig(spec={"signature": "context, question -> answer", "module": "Predict"})
}


def _at_most(config: PoolConfig, key: str, limit: str) -> None:
    value, most = getattr(config, key), getattr(config, limit)
    if value > most:
        refuse(key, value, f"must not be more than {limit}={most}")


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none is configured"
