"""Configuration of a pool: one frozen model, every key with its unit, source and rule.

`PoolConfig(...)` in code, `load_config(...)` for a program with a command line and a file.
"""

from dspool.config.load import Loaded, Row, load_config, load_pools
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
)
from dspool.config.pool import PoolConfig
from dspool.config.reference import reference_table
from dspool.config.warmup import (
    ConfigureLMStep,
    CustomCode,
    ImportModules,
    LoadPrograms,
    Probe,
    SetupStep,
    WarmupConfig,
    WarmupStep,
    WorkerStep,
)

__all__ = [
    "AllowedCallables",
    "CacheConfig",
    "ConfigureLMStep",
    "CustomCode",
    "HistoryConfig",
    "ImportModules",
    "IngressConfig",
    "LMProfile",
    "LimitsConfig",
    "LoadPrograms",
    "Loaded",
    "ModelPrice",
    "OperationsConfig",
    "PlacementConfig",
    "PoolConfig",
    "Probe",
    "ProgramConfig",
    "RecycleConfig",
    "RequestLM",
    "RestartConfig",
    "RetryConfig",
    "Row",
    "ServiceConfig",
    "SetupStep",
    "TelemetryConfig",
    "WarmupConfig",
    "WarmupStep",
    "WorkerStep",
    "load_config",
    "load_pools",
    "reference_table",
]
