"""What an operation runs in: whose it is, its DSPy settings and deadline, and the answer that comes of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import dspy

from dspool.config import PoolConfig
from dspool.messages import JSON
from dspool.programs import spans
from dspool.programs.models.operation import OperationScope
from dspool.programs.models.shared_answers import PoolAnswers
from dspool.programs.outputs import outputs_of
from dspool.programs.program import Program
from dspool.programs.sessions.commands import CommandResult
from dspool.programs.sessions.session import Session
from dspool.telemetry.logs import current_operation


class Scopes:
    """Makes the scope of each operation."""

    def __init__(self, config: PoolConfig, answers: PoolAnswers | None = None) -> None:
        self._prices = config.prices or None
        self._answers = answers

    def of(
        self, session: Session | None, principal: str | None, stop: threading.Event | None = None
    ) -> OperationScope:
        """For an operation in `session` on behalf of `principal`, in the calling task or thread."""
        owner = principal or (session.principal if session is not None else None)
        if owner is not None:
            scope = OperationScope(f"principal {owner}", stop, self._prices)
        else:
            # Without principals, sessions are what keeps users apart.
            name = "" if session is None else f"session {session.id}"
            scope = OperationScope(name, stop, self._prices)
        scope.answers = self._answers
        return scope


def context_of(program: Program, lm: Any, scope: OperationScope, **more: Any) -> AbstractContextManager[None]:
    """DSPy's settings for one operation: those of the program, then `more` of the operation's own."""
    settings = {**program.settings, **scope.settings(), **more, "lm": lm, "adapter": program.adapter}
    settings.update(spans.settings(settings.get("callbacks")))
    context: AbstractContextManager[None] = dspy.context(**settings)
    return context


def deadline() -> float:
    """Of the operation that runs here, on the monotonic clock."""
    operation = current_operation.get()
    return math.inf if operation is None else time.monotonic() + operation.timeout_s


def running_in(program: Program, scope: OperationScope) -> AbstractContextManager[None]:
    """Around the run of `program`."""
    # DSPy's own short modules start no threads.
    return nullcontext() if program.way == "direct" else scope.running()


def answer_of(outputs: dict[str, JSON], scope: OperationScope, version: int) -> CommandResult:
    return CommandResult(
        {"outputs": outputs}, (), scope.by_model(), scope.offline, version, scope.cached, scope.truncated
    )


async def await_outputs(module: Any, inputs: Mapping[str, Any]) -> dict[str, JSON]:
    return outputs_of(await module.acall(**inputs))
