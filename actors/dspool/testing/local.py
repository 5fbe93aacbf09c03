"""A pool in the process of a test: no Ray, no network, and the same checks and errors as in a cluster.

    async with local_pool({"answer": "shop.answers:Answer"}, lm=ScriptedLM(["Paris"])) as pool:
        result = await pool.execute("answer", question="What is the capital of France?")

The parts are the real ones: client, queue, connection, worker, session store, supervisor. Workers run in threads.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from dspool.answers import LocalAnswers, SharedAnswers
from dspool.blocking import BlockingClient
from dspool.config import LMProfile, PoolConfig, ProgramConfig, load_config
from dspool.config.environment import environment
from dspool.config.pool import DEFAULT_PROGRAMS
from dspool.errors import ConfigError
from dspool.local.pool import LocalPool, Report
from dspool.local.threads import ThreadRuntime
from dspool.programs.borrowed_settings import borrowed_settings
from dspool.programs.models.lm import OFFLINE
from dspool.programs.scripted import ModelCall, ModelReply, ScriptedLM
from dspool.programs.sessions.host import SessionHost
from dspool.store.store import SessionStore

Programs = Mapping[str, Any]
"""By name: an import path, a spec, a signature, a `ProgramConfig`; or a `dspy.Module`, its class, or what makes one."""

_numbers = itertools.count(1)


@asynccontextmanager
async def local_pool(
    programs: Programs | None = None,
    *,
    config: PoolConfig | Path | str | None = None,
    lm: ScriptedLM | Mapping[str, ScriptedLM] | Any = None,
    **settings: Any,
) -> AsyncIterator[LocalPool]:
    """Run a pool of one worker in this process for the length of the block.

    Args:
        programs: served besides those of `config`; without either the pool has `qa`.
        config: a configuration, or the path of its file. Sizes, optimizer and files of it are not used here.
        lm: answers in place of all models, or of those of the LM profiles that a mapping names; what is no `ScriptedLM`
            makes one. All others are the offline engine: no test calls a model that costs money.
        settings: keys of `PoolConfig`, such as `operation_timeout_s=1.0`; they win over `config`.

    Raises:
        ConfigError: a value was refused. WorkerStartFailed: a program does not load; says why.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="dspool-"))
        wanted = _configured(programs or {}, config, Path(directory), settings, stack)
        scripts = _scripts(lm, wanted)
        stack.enter_context(borrowed_settings(cache=bool(wanted.cache)))

        answers = LocalAnswers(SharedAnswers(wanted.cache))

        def make_runtime(
            config: PoolConfig, secret: bytes, store: SessionStore, report: Report | None
        ) -> ThreadRuntime:
            host = partial(SessionHost, config, scripts=scripts, answers=answers)
            return ThreadRuntime(config, secret, store, host=host, report=report)

        async with LocalPool.start(
            wanted, make_runtime, own_store=wanted.state_dir == Path(directory)
        ) as pool:
            yield pool


class BlockingLocalPool(BlockingClient[LocalPool]):
    """`with BlockingLocalPool({"answer": Answer}) as pool: pool.execute("answer", question=...)`; as `local_pool`."""

    def __init__(self, programs: Programs | None = None, **options: Any) -> None:
        super().__init__(local_pool(programs, **options))


def _configured(
    programs: Programs,
    config: PoolConfig | Path | str | None,
    directory: Path,
    settings: dict[str, Any],
    stack: ExitStack,
) -> PoolConfig:
    if isinstance(config, str | Path):
        config = load_config(file=Path(config), environ={}).config
    served: dict[str, ProgramConfig] = {} if config is None else dict(config.programs)
    allowed: list[str] = [] if config is None else list(config.allowed_imports)
    for name, program in programs.items():
        served[name] = entry = _program(name, program, stack)
        if entry.import_path is not None:
            allowed.append(entry.import_path.partition(":")[0])
    profiles = {} if config is None else config.lm_profiles
    values = {
        "programs": served or dict(DEFAULT_PROGRAMS),
        "allowed_imports": tuple(dict.fromkeys(allowed)),
        "lm_profiles": {name: _offline(profile) for name, profile in profiles.items()},
        # One worker at first, however many the pool has elsewhere; `resize` works.
        "pool_size": 1,
        "min_pool_size": 1,
        "spares": 0,
        "lazy": False,
        "enable_optimizer": False,
        "state_dir": directory,
        "store_url": None,
    }
    if config is not None:
        return config.override(**{**values, "warmup": {"min_ready": None}, **settings})
    with environment({}):  # a test does not depend on the variables of whoever runs it
        return PoolConfig(**{**values, "telemetry": {"sampling": 0.0}, **settings})


def _offline(profile: LMProfile) -> LMProfile:
    return LMProfile(**{**profile.model_dump(), "engine": "offline"})


def _program(name: str, program: Any, stack: ExitStack) -> ProgramConfig:
    if isinstance(program, ProgramConfig):
        return program
    if isinstance(program, Mapping):
        is_config = bool(set(program) & set(ProgramConfig.model_fields))
        return ProgramConfig(**program) if is_config else ProgramConfig(spec=dict(program))
    if isinstance(program, str):
        is_path = ":" in program and "->" not in program
        return ProgramConfig(import_path=program) if is_path else ProgramConfig(spec={"signature": program})
    if program is None or isinstance(program, int | float | bytes | list | tuple | set):
        raise ConfigError(
            f"{name} is {program!r}, which is no program: give an import path, a spec, a signature or a dspy.Module",
            key=f"programs.{name}",
        )
    return ProgramConfig(import_path=_path_of(program) or _lend(name, program, stack))


def _path_of(program: Any) -> str | None:
    """The import path of a class or function at the top of its module; None for any other object."""
    module, attribute = getattr(program, "__module__", None), getattr(program, "__qualname__", None)
    if not (inspect.isclass(program) or inspect.isfunction(program)) or not module or not attribute:
        return None
    found = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
    return f"{module}:{attribute}" if found is program and not attribute.startswith("_") else None


def _lend(name: str, program: Any, stack: ExitStack) -> str:
    """An import path for an object that has none: a module that is there while the pool is."""
    module = ModuleType(f"dspool_lent_{next(_numbers)}")
    if inspect.isclass(program):
        # A class is known by the module that it says it is from; a function may be from anywhere.
        made = program
        program = lambda **kwargs: made(**kwargs)  # noqa: E731
        program.__signature__ = inspect.signature(made)
    vars(module)["program"] = program
    sys.modules[module.__name__] = module
    stack.callback(sys.modules.pop, module.__name__, None)
    return f"{module.__name__}:program"


def _scripts(lm: Any, config: PoolConfig) -> dict[str, ScriptedLM]:
    names = [OFFLINE, *config.lm_profiles]
    if lm is None:
        return {}
    if isinstance(lm, Mapping) and lm and all(isinstance(one, ScriptedLM) for one in lm.values()):
        if unknown := sorted(set(lm) - set(names)):
            raise ConfigError(f"lm: {unknown[0]!r} is no LM profile; there are {', '.join(names)}", key="lm")
        return dict(lm)
    script = lm if isinstance(lm, ScriptedLM) else ScriptedLM(lm)
    return dict.fromkeys(names, script)


__all__ = ["BlockingLocalPool", "ModelCall", "ModelReply", "ScriptedLM", "local_pool"]
