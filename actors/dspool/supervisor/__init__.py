"""The supervisor: owns the lives of a pool's workers and says who takes traffic."""

from dspool.supervisor.ports import PoolStore, Runtime, WorkerHandle
from dspool.supervisor.sizing import DecisionRecord
from dspool.supervisor.supervisor import Supervisor
from dspool.supervisor.warmup import WarmProgress

__all__ = [
    "DecisionRecord",
    "PoolStore",
    "Runtime",
    "Supervisor",
    "WarmProgress",
    "WorkerHandle",
]
