"""Whether what the configuration names can be imported, tried in a process of its own before anything starts."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from dspool.causes import met
from dspool.cli.contained import FROM_SIGNAL, contained
from dspool.config import CustomCode, ImportModules, PoolConfig
from dspool.core.lifecycle.loading import lasts
from dspool.core.lifecycle.start_steps import SAY_AFTER_S
from dspool.errors import PoolError, WorkerStartFailed, from_wire

_KILLED: Final = (-signal.SIGKILL, FROM_SIGNAL + signal.SIGKILL)


class ImportFailure(NamedTuple):
    keys: str
    """Where the configuration names it."""
    path: str
    error: PoolError
    ended: bool = False
    """It ended the process, and would end each worker's: not one that something else killed."""


def named_in(config: PoolConfig) -> dict[str, list[str]]:
    """By import path (`package.module:name`) or module: the keys of the configuration that name it."""
    named: dict[str, list[str]] = {}
    for key, path in _named(config):
        named.setdefault(path, []).append(key)
    return named


def _named(config: PoolConfig) -> Iterator[tuple[str, str]]:
    for module in config.preload:
        yield "preload", module
    if config.setup is not None:
        yield "setup", config.setup
    for number, step in enumerate(config.warmup.steps):
        if isinstance(step, ImportModules):
            yield from ((f"warmup.steps.{number}.modules", module) for module in step.modules)
        elif isinstance(step, CustomCode):
            yield f"warmup.steps.{number}.import_path", step.import_path
    for name, program in config.programs.items():
        if program.import_path is not None:
            yield f"programs.{name}.import_path", program.import_path
    for use in type(config.allowed_callables).model_fields:
        for path in getattr(config.allowed_callables, use):
            yield f"allowed_callables.{use}", path


def try_imports(
    config: PoolConfig, *, timeout_s: float | None = None, say: Callable[[str], None] = lambda text: None
) -> list[ImportFailure]:
    """What cannot be imported of all that the configuration names; takes as long as the imports, at most `timeout_s`,
    by default `init_timeout_s`. `say` is told every few seconds what is waited for.

    Constructors are not called: what they load may be large.
    """
    limit_s = config.init_timeout_s if timeout_s is None else timeout_s
    named = named_in(config)
    if not named:
        return []
    # Without the current directory, which workers do not look into either.
    command = [sys.executable, "-P", "-m", "dspool.programs.trial_import"]
    began, ended = time.monotonic(), False
    asked: bytes | None = json.dumps(list(named)).encode()
    with contained(command) as process:
        try:
            while (left_s := limit_s - (time.monotonic() - began)) > SAY_AFTER_S:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, _ = process.communicate(asked, SAY_AFTER_S)
                    break
                asked = None
                say(f"importing what the configuration names: {time.monotonic() - began:.0f} s")
            else:
                output, _ = process.communicate(asked, max(0.0, left_s))
            how = f"its process ended with exit code {process.returncode}"
            ended = process.returncode not in _KILLED
        except subprocess.TimeoutExpired:
            how = f"it takes longer than {limit_s:g} s"
            process.terminate()
            output, _ = process.communicate()
    answers = [json.loads(line) for line in output.splitlines()]
    failures = [
        ImportFailure(", ".join(named[answer["fails"]]), answer["fails"], from_wire(answer))
        for answer in answers
        if "fails" in answer
    ]
    if not any("ends" in answer for answer in answers):
        begun = [answer["begins"] for answer in answers if "begins" in answer]
        path = begun[-1] if begun else next(iter(named))
        failures.append(
            ImportFailure(
                ", ".join(named[path]),
                path,
                WorkerStartFailed(f"importing {path} did not end: {how}"),
                ended,
            )
        )
    return failures


def refuse_what_cannot_be_imported(
    config: PoolConfig, say: Callable[[str], None] = lambda text: None
) -> None:
    """Raises: PoolError: a worker could not import something that is named, now or later."""
    for failure in try_imports(config, say=say):
        if failure.ended or lasts(failure.error):
            error = failure.error
            cause = met("not_importable", keys=failure.keys, why=str(error))
            # Its text is in the sentence.
            details = {name: value for name, value in error.details.items() if name != "text"}
            raise type(error)(cause.sentence, **{**details, "cause": cause.cause})


__all__ = ["ImportFailure", "named_in", "refuse_what_cannot_be_imported", "try_imports"]
