"""One example by type, shown in the OpenAPI document. A test decodes each."""

from __future__ import annotations

from typing import Any

from dspool.messages import PoolStatus, SessionInfo, WorkerStatus
from dspool_serve.api import schema as s
from dspool_serve.api import version_schema as v
from dspool_serve.api.pool_sessions import PoolSessionList
from dspool_serve.api.workers import RunningList, WorkerDetail, WorkerList

_RESULT: dict[str, Any] = {
    "outputs": {"answer": "Ray was started at Berkeley."},
    "operation_id": "01j8k4m2x7c9",
    "worker": "default-w0-3f9a1c",
    "program_version": 1,
    "timings": {"wait_s": 0.0004, "run_s": 0.0021},
    "usage": {},
    "offline": True,
}
_PROBLEM: dict[str, Any] = {
    "type": "urn:dspool:problem:unknown_program",
    "title": "No such program",
    "status": 404,
    "detail": "pool default has no program 'qb'; it has: qa",
    "code": "unknown_program",
}
_INPUTS = {"context": "Ray was started at Berkeley.", "question": "Where was Ray started?"}
_FIGURES = {"utilization": 0.42, "throughput": 60.2, "p99_s": 0.05}
_MEMORY = {"rss_mb": 182.0, "pss_mb": 61.5, "uss_mb": 24.1}
_RUNNING: dict[str, Any] = {
    "operation": "01j8k4m2x7c9",
    "command": "execute_program",
    "program": "qa",
    "session": None,
    "held_s": 0.012,
}
_WORKER: dict[str, Any] = {
    "id": "default-w0-3f9a1c",
    "slot": 0,
    "state": "ready",
    "pid": 4242,
    "node": "10.0.0.4",
    "sessions": 3,
    "running": 1,
    "slots": 8,
}
_SESSION: dict[str, Any] = {
    "id": "ada",
    "owner": "default-w0-3f9a1c",
    "epoch": 1,
    "created_at": 1790000000.0,
    "last_used_at": 1790000060.0,
    "programs": ["answerer"],
    "moves": 0,
}

EXAMPLES: dict[type, dict[str, Any]] = {
    s.ExecuteRequest: {"inputs": _INPUTS, "timeout_s": 30},
    s.ExecuteResponse: _RESULT,
    s.BatchRequest: {"inputs": [_INPUTS, {"question": "Who?"}]},
    s.BatchResponse: {
        "items": [{"result": _RESULT}, {"problem": _PROBLEM}],
        "succeeded": 1,
        "failed": 1,
    },
    s.ProgramRequest: {"spec": {"signature": "question -> answer", "module": "ChainOfThought"}},
    s.ProgramCopy: {"copy_of": "answers", "version": 3},
    s.ProgramSpec: {"signature": "question -> answer", "module": "ChainOfThought"},
    s.ProgramResponse: {"session": "ada", "program": "answerer", "info": {"module": "ChainOfThought"}},
    s.CodeRequest: {"code": "total = sum(range(5))\nprint('done')\ntotal", "timeout_s": 20},
    s.CodeResponse: {
        "stdout": "done\n",
        "result": 10,
        "operation_id": "01j8k4m2x7c9",
        "worker": "default-w0-3f9a1c",
        "timings": {"wait_s": 0.0004, "run_s": 1.9},
    },
    v.PoolProgramList: {
        "programs": [
            {
                "program": "qa",
                "version": 2,
                "versions": [1, 2],
                "deployments": [
                    {"version": 2, "kind": "state", "summary": "context, question -> answer"},
                    {"version": 1, "kind": "spec", "summary": "context, question -> answer"},
                ],
            }
        ],
        "next_cursor": None,
    },
    v.PoolProgramInfo: {
        "program": "qa",
        "version": 2,
        "versions": [1, 2],
        "info": {"module": "Predict", "signature": "context, question -> answer"},
    },
    v.Deployed: {"program": "qa", "version": 2},
    v.RollbackRequest: {"version": 1},
    s.PoolList: {
        "pools": [
            {
                "name": "default",
                "state": "ready",
                "ready": True,
                "desired": 2,
                "actual": 2,
                "programs": {"qa": 1},
                "reason": "",
            }
        ]
    },
    PoolStatus: {
        "name": "default",
        "state": "ready",
        "ready": True,
        "desired": 1,
        "actual": 1,
        "spares": 0,
        "membership_version": 3,
        "workers": [_WORKER],
        "programs": {"qa": 1},
    },
    s.PoolStats: {
        "name": "default",
        "state": "ready",
        "ready": True,
        "desired": 2,
        "actual": 2,
        "spares": 0,
        "failures": 0,
        "load": {
            "window_s": 60.0,
            "throughput": 120.5,
            "utilization": 0.42,
            "queue_depth": 0,
            "running": 3,
            "sessions": 12,
            "p50_s": 0.01,
            "p95_s": 0.03,
            "p99_s": 0.05,
            "wait_p95_s": 0.002,
            "error_rate": 0.0,
            "health": 1.0,
            "by_outcome": {"ok": 7230},
        },
    },
    s.ConfigView: {"config": {"name": "default", "pool_size": 2}},
    s.ResizeRequest: {"size": 4},
    s.Resized: {"desired": 4},
    s.Paused: {"paused": True},
    s.WarmRequest: {"strategy": "staged"},
    WorkerStatus: _WORKER,
    WorkerList: {"workers": [_WORKER | _FIGURES], "next_cursor": None},
    WorkerDetail: {
        **_WORKER,
        **_FIGURES,
        "programs": {"qa": 2},
        "running_operations": [_RUNNING],
        "memory": _MEMORY,
        "warmup": [
            {
                "worker_id": "default-w0-3f9a1c",
                "index": 0,
                "step": "load_programs",
                "duration_s": 0.4,
                "error": "",
            }
        ],
        "session_ids": ["ada/s"],
        "ray_url": None,
    },
    RunningList: {
        "at": 1790000000.0,
        "workers": {"default-w0-3f9a1c": {"operations": [_RUNNING], "memory": _MEMORY}},
    },
    s.GoneRequest: {"wait_s": 10},
    s.WorkerGone: {"worker": "default-w0-3f9a1c", "gone": True},
    SessionInfo: _SESSION,
    PoolSessionList: {"sessions": [_SESSION], "next_cursor": None, "total": 1},
    s.SessionList: {"sessions": [_SESSION], "next_cursor": None},
    s.SessionRequest: {"id": "ada"},
    s.LMRequest: {"profile": "fast", "overrides": {"temperature": 0.2}},
    s.LMResponse: {
        "profile": "fast",
        "model": "openai/gpt-4o-mini",
        "overrides": {"temperature": 0.2},
        "offline": False,
    },
    s.SessionProgramList: {
        "programs": [{"program": "answerer", "scope": "session", "version": 0}],
        "next_cursor": None,
    },
    s.VariableList: {"variables": ["tone"], "next_cursor": None},
    s.VariableRequest: {"value": "friendly"},
    s.Variable: {"name": "tone", "value": "friendly"},
    s.History: {
        "operations": [
            {
                "command": "execute_program",
                "at": 1790000060.0,
                "run_s": 0.002,
                "outcome": "ok",
                "program": "answerer",
            }
        ]
    },
    s.TokenEvent: {"field": "answer", "text": "Ray "},
    s.FieldEvent: {"field": "answer", "value": "Ray was started at Berkeley."},
    s.StatusEvent: {"text": "Calling tool search"},
    s.Health: {"status": "ok", "version": "0.2.0"},
    s.Readiness: {"ready": True, "pools": {"default": "ready"}},
    s.Problem: _PROBLEM,
}
