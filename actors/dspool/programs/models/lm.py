"""Language models by profile name: built once, shared by all operations, never configured globally.

A profile says model, endpoint, the environment variable of its key, and limits. Without any profile the embedded
offline engine answers.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dspy
from dspy.clients.backend_selection import CLIENT_KEYS, NATIVE_CLIENT_KEYS, select_backend
from dspy.lm15 import LM15Error
from dspy.utils.exceptions import LMRateLimitError

from dspool.config import LMProfile
from dspool.corrections.dspy_calls import allow_connections, correct_dspy
from dspool.errors import Cancelled, ConfigError, InvalidRequest, ModelAuthFailed, UnknownName
from dspool.messages import JSON
from dspool.programs.models.operation import current, profile_called
from dspool.programs.offline.engine import OFFLINE_MODEL, AsyncOfflineEngine, OfflineEngine

# Otherwise litellm, and DSPy's own table of models, fetch a price list from the network at their first use.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

correct_dspy()

OFFLINE = "offline"
"""The name of the profile that is always there."""

MAX_VARIANTS = 256


class RateGate:
    """What a worker knows about one profile's rate limit: until when the back end asked for silence."""

    def __init__(self, max_wait_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_wait_s = max_wait_s
        self._clock = clock
        self._silent_until = 0.0

    def limited(self, retry_after_s: float | None) -> None:
        """The back end answered 429 and asked for `retry_after_s` seconds of silence."""
        if retry_after_s is not None and math.isfinite(retry_after_s):
            self._silent_until = max(self._silent_until, self._clock() + retry_after_s)

    def pause_s(self) -> float:
        """Seconds from now in which a call would be refused anyway; 0 when calls may go out."""
        return max(0.0, self._silent_until - self._clock())


class ProfileLM(dspy.LM):
    """An LM behind HTTP that keeps to the back end's rate limit and can be told to stop.

    A 429 whose pause fits `max_rate_limit_wait_s` is waited for (over the calls of one operation that adds up);
    a longer one fails at once, also for the calls that follow within it, which are not even sent.
    """

    gate: RateGate
    profile: str

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        waited = 0.0
        while True:
            scope = current()
            stop = None if scope is None else scope.stop
            if stop is not None and stop.is_set():
                raise Cancelled("the operation was cancelled before its next LM call")
            waited += (pause := self._pause_or_refuse(waited))
            if pause:
                stop.wait(pause) if stop is not None else time.sleep(pause)
                continue
            try:
                with self._called():
                    return super().__call__(prompt, messages=messages, **kwargs)
            except LMRateLimitError as limited:
                self._again_or_raise(limited, waited)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        waited = 0.0
        while True:
            waited += (pause := self._pause_or_refuse(waited))
            if pause:
                await asyncio.sleep(pause)
                continue
            try:
                with self._called():
                    return await super().acall(prompt, messages=messages, **kwargs)
            except LMRateLimitError as limited:
                self._again_or_raise(limited, waited)

    @contextmanager
    def _called(self) -> Iterator[None]:
        token = profile_called.set(self.profile)
        try:
            yield
        finally:
            profile_called.reset(token)

    def _pause_or_refuse(self, waited: float) -> float:
        pause = self.gate.pause_s()
        if pause and waited + pause > self.gate.max_wait_s:
            raise LMRateLimitError("rate limited", model=self.model, status=429, retry_after=round(pause, 3))
        return pause

    def _again_or_raise(self, limited: LMRateLimitError, waited: float) -> None:
        self.gate.limited(limited.retry_after)
        pause = self.gate.pause_s()
        if not pause or waited + pause > self.gate.max_wait_s:
            raise limited


class LMs:
    """The LM of each profile, built at first use. Safe to use from any thread."""

    def __init__(
        self,
        profiles: Mapping[str, LMProfile],
        default: str | None,
        *,
        cache: bool = False,
        timeout_s: float | None = None,
        at_once: int = 1,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """`at_once` is how many operations call an LM at the same time."""
        allow_connections(at_once)
        self._profiles = dict(profiles)
        self._timeout_s = timeout_s
        self._cache = cache
        self._environ = environ
        self._built: dict[str, Any] = {}
        self._variants: dict[tuple[str, ...], Any] = {}
        self._lock = threading.Lock()
        if default is not None and default != OFFLINE and default not in self._profiles:
            raise ConfigError(f"default_lm is {default!r}, which is no profile; known are {self.names()}")
        self.default = default or (next(iter(self._profiles)) if len(self._profiles) == 1 else OFFLINE)

    def names(self) -> list[str]:
        return sorted({*self._profiles, OFFLINE})

    def check(self, name: str) -> None:
        """Raises `UnknownName` if there is no profile `name`."""
        if name not in self._profiles and name != OFFLINE:
            raise UnknownName(
                f"no LM profile {name[:80]!r}; known are {', '.join(self.names())}", profile=name[:80]
            )

    def get(self, name: str | None = None, overrides: Mapping[str, JSON] | None = None) -> Any:
        """The `dspy.LM` of profile `name` (None: the default one), for all who ask: `AnswerCache` keeps them apart.

        Raises:
            UnknownName: no such profile. ModelAuthFailed: its key's variable is not set. ConfigError: bad settings.
        """
        name = name or self.default
        lm = self._built.get(name)
        if lm is None:
            self.check(name)
            with self._lock:
                lm = self._built.get(name)
                if lm is None:
                    lm = self._built[name] = self._build(name)
        if not overrides:
            return lm
        key = (name, repr(sorted(overrides.items())))
        with self._lock:
            variant = self._variants.pop(key, None) or self._vary(lm, overrides)
            # Last in the dict is used last; the first one goes.
            self._variants[key] = variant
            if len(self._variants) > MAX_VARIANTS:
                del self._variants[next(iter(self._variants))]
        return variant

    def in_process(self, lm: Any) -> bool:
        """Whether a call to `lm` never leaves this process (and so takes well under a millisecond)."""
        return bool(lm.model == OFFLINE_MODEL)

    async def aclose(self) -> None:
        """Close the connections of this event loop and the synchronous ones."""
        for lm in list(self._built.values()):
            await lm.aclose()

    def _build(self, name: str) -> Any:
        profile = self._profiles.get(name)
        if profile is None or profile.engine == "offline":
            lm = dspy.LM(
                OFFLINE_MODEL,
                engine=OfflineEngine(),
                async_engine=AsyncOfflineEngine(),
                cache=False,
                num_retries=0,
            )
            # Not even if a program asks for it: a cached answer would lack its mark.
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
            # Reads DSPy's table of models once, or imports litellm: now, and not on the event loop at the first call.
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
        lm.gate = RateGate(profile.max_rate_limit_wait_s or 0.0)
        lm.profile = name
        return lm

    def _connection(self, name: str, profile: LMProfile) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        # A blocking program cannot be cancelled inside a call: without any bound it would keep its thread for minutes.
        if (timeout_s := profile.timeout_s or self._timeout_s) is not None:
            settings["timeout"] = timeout_s
        if profile.endpoint is not None:
            settings["api_base"] = profile.endpoint
            # Without a key of its own, an endpoint must not be sent the key that some variable holds for the provider.
            settings["api_key"] = "none"
        if profile.api_key_env is not None:
            key = self._environ.get(profile.api_key_env)
            if not key:
                raise ModelAuthFailed(
                    f"profile {name!r}: the environment variable {profile.api_key_env} is not set for this worker",
                    profile=name,
                    variable=profile.api_key_env,
                )
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
    "max_tokens": lambda v: type(v) is int and v > 0,
    "seed": lambda v: type(v) is int,
    "presence_penalty": lambda v: type(v) in (int, float) and -2 <= v <= 2,
    "frequency_penalty": lambda v: type(v) in (int, float) and -2 <= v <= 2,
    "stop": lambda v: isinstance(v, list) and 0 < len(v) <= 4 and all(isinstance(s, str) for s in v),
}


def check_overrides(overrides: Mapping[str, JSON]) -> dict[str, Any]:
    """`overrides`, if they are generation settings in range (never an endpoint or a key).

    Raises:
        InvalidRequest: naming the setting.
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
