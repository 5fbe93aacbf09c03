"""The work of `benchmarks.peers`: which DSPy programs every system runs, and the inputs of each operation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import dspy

from benchmarks.modules import Computation, NoOp, OccasionalWait

WORKERS = 2
SIGNATURE = "question -> answer"
QUESTION = "How many founders does it take to change a pool?"
SLOW_EVERY = 100
SESSIONS = 64
LATENCIES = {"lm_5ms": 0.005, "lm_50ms": 0.05}
WORKLOADS = ("noop", "cheapest", *LATENCIES, "cpu_5ms", "one_slow", "none_slow", "sessions")
"""`none_slow` is `one_slow` without slow ones: what its fast ones are compared with."""


def is_slow(workload: str, number: int) -> bool:
    return workload == "one_slow" and number % SLOW_EVERY == SLOW_EVERY - 1


def inputs_of(workload: str, number: int) -> dict[str, Any]:
    if workload in ("noop", "cpu_5ms"):
        return {}
    if workload in ("one_slow", "none_slow"):
        return {"question": QUESTION, "slow": is_slow(workload, number)}
    return {"question": QUESTION}


def profiles(ports: dict[str, int]) -> dict[str, Any]:
    """LM profiles of dspool: the engine inside the process, and the LM servers on these ports."""
    return {"offline": {"model": "offline", "engine": "offline"}} | {
        name: {"model": f"openai/{name}", "endpoint": f"http://127.0.0.1:{port}/v1", "engine": "lm15"}
        for name, port in ports.items()
    }


def load(ports: dict[str, int], *, history: bool = False) -> dict[str, Any]:
    """The programs by workload, as a user of DSPy builds them. Configures DSPy for this process."""
    from dspool.config import LMProfile
    from dspool.programs.models.lm import LMs

    lms = LMs({name: LMProfile(**profile) for name, profile in profiles(ports).items()}, "offline")
    dspy.configure(lm=lms.get(None), disable_history=not history)
    programs = {"noop": NoOp(), "cheapest": dspy.Predict(SIGNATURE), "cpu_5ms": Computation()}
    programs["one_slow"] = programs["none_slow"] = OccasionalWait()
    for name in ports:
        programs[name] = dspy.Predict(SIGNATURE)
        programs[name].set_lm(lms.get(name))
    return programs


def awaitables(programs: dict[str, Any], *, asyncify: bool) -> dict[str, Callable[..., Awaitable[Any]]]:
    """The same to be awaited: in DSPy's threads, or by `acall` where the program has an async form."""
    return {
        name: dspy.asyncify(program) if asyncify or isinstance(program, Computation) else program.acall
        for name, program in programs.items()
    }


def dspool_programs(ports: dict[str, int]) -> dict[str, Any]:
    """The same as pool programs of dspool."""
    spec = {"signature": SIGNATURE, "module": "Predict"}
    here = "benchmarks.modules"
    return {
        "noop": {"import_path": f"{here}:NoOp", "idempotent": True},
        "cheapest": {"spec": spec, "idempotent": True},
        "cpu_5ms": {"import_path": f"{here}:Computation", "idempotent": True},
        "one_slow": {"import_path": f"{here}:OccasionalWait", "idempotent": True},
        "none_slow": {"import_path": f"{here}:OccasionalWait", "idempotent": True},
        **{name: {"spec": {**spec, "lm": name}, "idempotent": True} for name in ports},
    }


def dspool_settings(ports: dict[str, int]) -> dict[str, Any]:
    """Of the pool: two workers, as many slots as the largest concurrency needs."""
    return {
        "pool_size": WORKERS,
        "slots_per_worker": 128,
        "max_queue": 100_000,
        "checkout_timeout_s": 60.0,
        "operation_timeout_s": 60.0,
        "programs": dspool_programs(ports),
        "allowed_imports": ["benchmarks.modules"],
        "lm_profiles": profiles(ports),
        "default_lm": "offline",
    }
