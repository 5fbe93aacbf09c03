"""Language models by profile name: built once, shared by all operations, never configured globally.

A profile names the model, its endpoint, the environment variable with its key, and limits. Without any profile the
embedded offline engine answers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import dspy
from dspy.clients.backend_selection import CLIENT_KEYS, NATIVE_CLIENT_KEYS, select_backend
from dspy.lm15 import LM15Error

from dspool.config import LMProfile, PoolConfig
from dspool.corrections import active
from dspool.corrections.dspy_calls import allow_connections, correct_dspy
from dspool.corrections.dspy_threads import correct_threads
from dspool.errors import ConfigError, InvalidRequest, ModelAuthFailed, UnknownName, suggestion
from dspool.messages import JSON
from dspool.messages.limits import MAX_STOP_CHARACTERS
from dspool.programs.field_types import is_unicode
from dspool.programs.models.profile_lm import ModelCounts, ProfileLM, RateGate
from dspool.programs.offline.engine import OFFLINE_MODEL, AsyncOfflineEngine, OfflineEngine
from dspool.programs.scripted import ScriptedLM

# Otherwise litellm, and DSPy's own table of models, fetch a price list from the network at their first use.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

correct_dspy()
correct_threads()
if active("dspy-transport"):
    # Not above: without it httptools need not be there.
    from dspool.programs.models import transport

    transport.install()

OFFLINE = "offline"
"""The name of the profile that always exists."""

MAX_VARIANTS = 256


def is_remote(lm: Any) -> bool:
    """Whether calls of this LM leave the process: DSPy's own engines do, those that somebody wrote need not."""
    return isinstance(lm, dspy.LM) and isinstance(lm._engine_spec, str)


class LMs:
    """The LM of each profile, built at first use. Safe to use from any thread."""

    def __init__(
        self,
        profiles: Mapping[str, LMProfile],
        default: str | None,
        *,
        cache: bool = False,
        timeout_s: float | None = None,
        concurrency: int = 1,
        attempts: int = 3,
        environ: Mapping[str, str] = os.environ,
        scripts: Mapping[str, ScriptedLM] | None = None,
    ) -> None:
        """`concurrency`: how many operations may call an LM at the same time. `attempts`: tries of one call. `scripts`
        answer in place of the back ends of the profiles that they are given for."""
        allow_connections(concurrency)
        self._profiles = dict(profiles)
        self.timeout_s = timeout_s
        self._cache = cache
        self._environ = environ
        self._attempts = attempts
        self.counts = ModelCounts()
        self._scripts = dict(scripts or {})
        self._lms: dict[str, Any] = {}
        self._variants: dict[tuple[str, ...], Any] = {}
        self._lock = threading.Lock()
        if default is not None and default != OFFLINE and default not in self._profiles:
            raise ConfigError(f"default_lm is {default!r}, which is no profile; known are {self.names()}")
        self.default = default or (next(iter(self._profiles)) if len(self._profiles) == 1 else OFFLINE)

    @classmethod
    def of(cls, config: PoolConfig, scripts: Mapping[str, ScriptedLM] | None = None) -> LMs:
        """Those of a worker of this configuration."""
        return cls(
            config.lm_profiles,
            config.default_lm,
            cache=bool(config.cache),
            timeout_s=config.operation_timeout_s,
            concurrency=config.slots_per_worker,
            attempts=config.retry.attempts,
            scripts=scripts,
        )

    def names(self) -> list[str]:
        return sorted({*self._profiles, OFFLINE})

    def check(self, name: str) -> None:
        """Raises `UnknownName` if there is no profile `name`."""
        if name not in self._profiles and name != OFFLINE:
            raise UnknownName(
                f"no LM profile {name[:80]!r}{suggestion(name, self.names())}"
                f"; known are {', '.join(self.names())}",
                profile=name[:80],
            )

    def get(self, name: str | None = None, overrides: Mapping[str, JSON] | None = None) -> Any:
        """The `dspy.LM` of profile `name` (None: the default one), shared: `AnswerCache` keeps its callers apart.

        Raises:
            UnknownName: no such profile. ModelAuthFailed: its key's variable is not set. ConfigError: bad settings.
        """
        name = name or self.default
        lm = self._lms.get(name)
        if lm is None:
            self.check(name)
            with self._lock:
                lm = self._lms.get(name)
                if lm is None:
                    lm = self._lms[name] = self._build(name)
        if not overrides:
            return lm
        key = (name, repr(sorted(overrides.items())))
        with self._lock:
            variant = self._variants.pop(key, None) or self._vary(lm, overrides)
            # The last in the dict was used last; the first one goes.
            self._variants[key] = variant
            if len(self._variants) > MAX_VARIANTS:
                del self._variants[next(iter(self._variants))]
        return variant

    def in_process(self, lm: Any) -> bool:
        """Whether a call to `lm` never leaves this process (and so takes well under a millisecond)."""
        return bool(lm.model == OFFLINE_MODEL)

    async def aclose(self) -> None:
        """Close the connections of this event loop and the synchronous ones."""
        for lm in list(self._lms.values()):
            await lm.aclose()

    def _build(self, name: str) -> Any:
        profile = self._profiles.get(name)
        if (script := self._scripts.get(name)) is not None:
            return self._scripted(name, script, profile or LMProfile(model=script.model))
        if profile is None or profile.engine == "offline":
            lm = dspy.LM(
                OFFLINE_MODEL,
                engine=OfflineEngine(),
                async_engine=AsyncOfflineEngine(),
                cache=False,
                num_retries=0,
            )
            # Not even if a program asks for it: a cached answer would lack the mark "offline".
            lm._cache_responses = False
            return lm
        if profile.model == OFFLINE_MODEL:
            raise ConfigError(f"lm_profiles.{name}: the model {OFFLINE_MODEL!r} needs engine: offline")
        engine = "litellm" if profile.engine == "litellm" else "lm15"
        extra = dict(profile.extra)
        if engine == "lm15" and (foreign := sorted((set(extra) & CLIENT_KEYS) - NATIVE_CLIENT_KEYS)):
            raise ConfigError(f"lm_profiles.{name}: extra.{foreign[0]} needs engine: litellm")
        try:
            lm = ProfileLM(
                profile.model,
                engine=engine,
                temperature=profile.temperature,
                max_tokens=profile.max_tokens,
                cache=self._cache,
                # The pool retries, with one budget for all reasons; a second loop inside would multiply it.
                num_retries=0,
                **self._connection(name, profile),
                **extra,
            )
            if engine == "lm15":
                select_backend(lm)
            # Reads DSPy's table of models or imports litellm: now, and not on the event loop at the first call.
            _ = lm.supported_params
        except ImportError as missing:
            raise ConfigError(
                f"lm_profiles.{name}: {engine} is not installed ({missing.name})", profile=name
            ) from missing
        except (LM15Error, dspy.LMError, ValueError, TypeError) as refused:
            raise ConfigError(
                f"lm_profiles.{name}: {engine} does not take model {profile.model!r} with these settings "
                f"({type(refused).__name__}); a model of another provider may need engine: litellm",
                profile=name,
            ) from refused
        return self._with_limits(lm, name, profile)

    def _scripted(self, name: str, script: ScriptedLM, profile: LMProfile) -> Any:
        lm = ProfileLM(
            script.model, engine=script, async_engine=script.asynchronous, cache=self._cache, num_retries=0
        )
        return self._with_limits(lm, name, profile)

    def _with_limits(self, lm: Any, name: str, profile: LMProfile) -> Any:
        lm.gate = RateGate(profile.max_rate_limit_wait_s or 0.0)
        lm.profile = name
        lm.attempts = self._attempts
        lm.counts = self.counts
        return lm

    def _connection(self, name: str, profile: LMProfile) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        # Nothing can cancel a blocking program inside a call: without a bound it would keep its thread for minutes.
        if (timeout_s := profile.timeout_s or self.timeout_s) is not None:
            settings["timeout"] = timeout_s
        if profile.endpoint is not None:
            settings["api_base"] = profile.endpoint
            # An endpoint without a key of its own must not get the key that some variable holds for the provider.
            settings["api_key"] = "none"
        try:
            key = profile.api_key(self._environ)
        except ConfigError as refused:
            raise ModelAuthFailed(
                f"profile {name!r}: {refused.message} (for this worker)",
                profile=name,
                variable=str(refused.details.get("key")),
            ) from None
        if key is not None:
            settings["api_key"] = key
        return settings

    def _vary(self, lm: Any, overrides: Mapping[str, JSON]) -> Any:
        changes = check_overrides(overrides)
        if "max_tokens" in changes and "max_completion_tokens" in lm.kwargs:
            changes["max_completion_tokens"] = changes.pop("max_tokens")
        return lm.copy(**changes)


_OVERRIDES: dict[str, Callable[[Any], bool]] = {
    "temperature": lambda v: type(v) in (int, float) and 0 <= v <= 2,
    "top_p": lambda v: type(v) in (int, float) and 0 < v <= 1,
    "max_tokens": lambda v: type(v) is int and 0 < v < 2**31,
    "rollout_id": lambda v: type(v) is int and -(2**63) <= v < 2**63,
    "seed": lambda v: type(v) is int and -(2**63) <= v < 2**63,
    "presence_penalty": lambda v: type(v) in (int, float) and -2 <= v <= 2,
    "frequency_penalty": lambda v: type(v) in (int, float) and -2 <= v <= 2,
    "stop": lambda v: isinstance(v, list) and 0 < len(v) <= 4 and all(map(_is_stop, v)),
}


def _is_stop(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= MAX_STOP_CHARACTERS and is_unicode(text)


def check_overrides(overrides: Mapping[str, JSON]) -> dict[str, Any]:
    """`overrides`, if they are generation settings in range (never an endpoint or a key).

    Raises:
        InvalidRequest: names the setting that is not.
    """
    for key, value in overrides.items():
        fits = _OVERRIDES.get(key)
        if fits is None:
            raise InvalidRequest(
                f"unknown LM setting {key[:80]!r}; known are {', '.join(_OVERRIDES)}", field=key[:80]
            )
        if not fits(value):
            raise InvalidRequest(f"the LM setting {key!r} is out of range or mistyped", field=key)
    return dict(overrides)
