"""Configuration of a pool: one frozen model, every key with its unit, source and rule.

`PoolConfig(...)` in code, `load_config(...)` for a program with a command line and a file.
"""

from dspool.config.load import Loaded, Row, load_config
from dspool.config.parts import (
    AllowedCallables,
    ConfigureLMStep,
    CustomCode,
    HistoryConfig,
    ImportModules,
    LimitsConfig,
    LMProfile,
    LoadPrograms,
    Probe,
    ProgramConfig,
    RecycleConfig,
    RestartConfig,
    RetryConfig,
    ServiceConfig,
    SetupStep,
    TelemetryConfig,
    WarmupConfig,
    WarmupStep,
    WorkerStep,
)
from dspool.config.pool import PoolConfig
from dspool.config.reference import reference_table

__all__ = [
    "AllowedCallables",
    "ConfigureLMStep",
    "CustomCode",
    "HistoryConfig",
    "ImportModules",
    "LMProfile",
    "LimitsConfig",
    "LoadPrograms",
    "Loaded",
    "PoolConfig",
    "Probe",
    "ProgramConfig",
    "RecycleConfig",
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
    "reference_table",
]
