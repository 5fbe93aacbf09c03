"""The worker's side of Taskiq over Redis, loaded by `taskiq worker` and by its client."""

from __future__ import annotations

import json
import os
from typing import Any

from taskiq import TaskiqEvents, TaskiqState
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

_redis = os.environ["BENCH_REDIS"]
_loaded: dict[str, Any] = {}
# redis-py gives up reading after 5 s by default, and with it a worker that had nothing to do for so long.
broker = ListQueueBroker(_redis, socket_timeout=None).with_result_backend(
    RedisAsyncResultBackend(_redis, result_ex_time=60, socket_timeout=None)
)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def load(_: TaskiqState) -> None:
    from benchmarks.studies.peers import workloads

    _loaded.update(
        workloads.awaitables(workloads.load(json.loads(os.environ["BENCH_PORTS"])), asyncify=False)
    )


@broker.task
async def execute(workload: str, inputs: dict[str, Any]) -> Any:
    return (await _loaded[workload](**inputs)).toDict()
