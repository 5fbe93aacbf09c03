"""The modules a spec may name, each built with checked settings."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import dspy

from dspool.corrections import active
from dspool.errors import InvalidRequest, NotAllowed
from dspool.messages import JSON
from dspool.messages.limits import MAX_TOOLS
from dspool.programs.imports import Imports
from dspool.programs.models.errors import translate_errors
from dspool.programs.models.lm import check_overrides
from dspool.programs.signatures import BuiltSignature
from dspool.programs.value_types import type_name

Way = Literal["direct", "async", "thread"]


class BuiltModule(NamedTuple):
    """A module for DSPy and what dspool needs to know to run it."""

    dspy: Any
    kind: str
    way: Way
    copy: Callable[[Any], Any] | None
    """Makes a fresh module for one operation; None when a run leaves no mark on the module."""


class ComparedChains(dspy.Module):
    """Reasons `attempts` times, then answers by comparing the chains of thought."""

    def __init__(self, signature: Any, attempts: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.attempts = attempts
        self.attempt = dspy.ChainOfThought(signature, **config)
        self.compare = dspy.MultiChainComparison(signature, M=attempts, **config)

    def forward(self, **inputs: Any) -> Any:
        chains = []
        for number in range(self.attempts):
            # A rollout id of its own and a temperature make the chains differ.
            settings = {"temperature": 1.0, "rollout_id": number + 1}
            chains.append(self.attempt(**inputs, config=settings))
        return self.compare(chains, **inputs)


def build_module(name: JSON, signature: BuiltSignature, settings: JSON, imports: Imports) -> BuiltModule:
    """The module `name` over `signature`.

    Raises:
        InvalidRequest: unknown module or setting. NotAllowed: the configuration forbids it.
    """
    builder = _BUILDERS.get(name) if isinstance(name, str) else None
    if builder is None:
        raise InvalidRequest(
            f"unknown module {str(name)[:80]!r}; known are {', '.join(_BUILDERS)}", field="module"
        )
    if not isinstance(settings, dict):
        raise InvalidRequest(f"settings must be an object, got {type_name(settings)}", field="settings")
    build, keys = builder
    module_settings = {key: settings[key] for key in keys if key in settings}
    lm_settings = {key: value for key, value in settings.items() if key not in keys}
    generation = check_overrides(lm_settings) if build not in (_react, _program_of_thought) else {}
    if lm_settings and build in (_react, _program_of_thought):
        raise InvalidRequest(
            f"unknown setting {next(iter(lm_settings))[:80]!r} of {name}; known are {', '.join(sorted(keys))}",
            field="settings",
        )
    return build(signature, module_settings, generation, imports)


def _predict(
    signature: BuiltSignature, settings: Any, generation: dict[str, Any], imports: Imports
) -> BuiltModule:
    return BuiltModule(dspy.Predict(signature.dspy, **generation), "Predict", "direct", None)


def _chain(
    signature: BuiltSignature, settings: Any, generation: dict[str, Any], imports: Imports
) -> BuiltModule:
    _refuse_fields(signature, "ChainOfThought", "reasoning")
    return BuiltModule(dspy.ChainOfThought(signature.dspy, **generation), "ChainOfThought", "direct", None)


def _react(
    signature: BuiltSignature, settings: dict[str, JSON], generation: Any, imports: Imports
) -> BuiltModule:
    _refuse_fields(signature, "ReAct", "reasoning", "trajectory")
    paths = settings.get("tools", [])
    if not isinstance(paths, list) or len(paths) > MAX_TOOLS:
        raise InvalidRequest(f"tools must be a list of at most {MAX_TOOLS} import paths", field="tools")
    tools = [imports.callable(path, "tools") for path in paths]
    max_iters = _count(settings, "max_iters", 10, 100)
    with translate_errors():
        module = dspy.ReAct(signature.dspy, tools=tools, max_iters=max_iters)
        # Uncorrected, a plain tool would block the event loop for as long as it runs.
        waits = active("dspy-plain-tools") or all(
            inspect.iscoroutinefunction(getattr(tool, "func", tool)) for tool in tools
        )
    return BuiltModule(module, "ReAct", "async" if waits else "thread", None)


def _build_rewarded(
    outer: Any,
    kind: str,
    signature: BuiltSignature,
    settings: dict[str, JSON],
    generation: Any,
    imports: Imports,
) -> BuiltModule:
    if "reward" not in settings:
        raise InvalidRequest(f"{kind} needs the setting reward: an import path of a function", field="reward")
    reward = imports.callable(settings["reward"], "rewards")
    threshold = settings.get("threshold", 1.0)
    if type(threshold) not in (int, float) or not -1e300 < threshold < 1e300:
        raise InvalidRequest(f"threshold must be a number, got {type_name(threshold)}", field="threshold")
    inner = settings.get("of", "Predict")
    if inner not in ("Predict", "ChainOfThought"):
        raise InvalidRequest(f"{kind} runs Predict or ChainOfThought, set by of", field="of")
    attempt = build_module(inner, signature, generation, imports).dspy
    module = outer(
        module=attempt, N=_count(settings, "n", 3, 20), reward_fn=reward, threshold=float(threshold)
    )
    # A run counts its failures down on the module itself: each operation gets a shallow copy.
    return BuiltModule(module, kind, "thread", copy.copy)


def _compare(
    signature: BuiltSignature, settings: dict[str, JSON], generation: Any, imports: Imports
) -> BuiltModule:
    _refuse_fields(signature, "MultiChainComparison", "reasoning", "rationale")
    module = ComparedChains(signature.dspy, _count(settings, "attempts", 3, 10), generation)
    return BuiltModule(module, "MultiChainComparison", "thread", None)


def _program_of_thought(
    signature: BuiltSignature, settings: dict[str, JSON], generation: Any, imports: Imports
) -> BuiltModule:
    if not imports.config.allow_execute_code:
        raise NotAllowed(
            "ProgramOfThought runs generated code: it needs allow_execute_code", module="ProgramOfThought"
        )
    module = dspy.ProgramOfThought(signature.dspy, max_iters=_count(settings, "max_iters", 3, 20))
    return BuiltModule(module, "ProgramOfThought", "thread", None)


_Builder = Callable[[BuiltSignature, Any, Any, Imports], BuiltModule]
_BUILDERS: Mapping[str, tuple[_Builder, frozenset[str]]] = {
    "Predict": (_predict, frozenset()),
    "ChainOfThought": (_chain, frozenset()),
    "ReAct": (_react, frozenset({"tools", "max_iters"})),
    "BestOfN": (
        partial(_build_rewarded, dspy.BestOfN, "BestOfN"),
        frozenset({"n", "threshold", "reward", "of"}),
    ),
    "Refine": (
        partial(_build_rewarded, dspy.Refine, "Refine"),
        frozenset({"n", "threshold", "reward", "of"}),
    ),
    "MultiChainComparison": (_compare, frozenset({"attempts"})),
    "ProgramOfThought": (_program_of_thought, frozenset({"max_iters"})),
}


def _refuse_fields(signature: BuiltSignature, kind: str, *names: str) -> None:
    for field in (*signature.inputs, *signature.outputs):
        if field.name in names:
            raise InvalidRequest(f"{kind} adds the field {field.name!r} itself", field=field.name)


def _count(settings: dict[str, JSON], key: str, default: int, most: int) -> int:
    value = settings.get(key, default)
    if type(value) is not int or not 1 <= value <= most:
        raise InvalidRequest(f"{key} must be a whole number from 1 to {most}", field=key)
    return value
