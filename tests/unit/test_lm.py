"""LMs by profile, rate limits, and errors told without content."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.clients.errors import wrap_error
from dspy.utils import exceptions as lm_errors

from dspool.config import LMProfile
from dspool.errors import (
    ConfigError,
    InvalidRequest,
    ModelAuthFailed,
    ModelError,
    ModelRateLimited,
    ModelUnreachable,
    PoolError,
    ProgramError,
    UnknownName,
)
from dspool.programs.models.errors import translate
from dspool.programs.models.lm import LMs, check_overrides
from dspool.programs.models.profile_lm import RateGate
from dspool.programs.offline.engine import OFFLINE_MODEL

SECRET = "my secret prompt"


def lms(environ: dict[str, str] | None = None, *, cache: bool = False, **profiles: dict[str, Any]) -> LMs:
    return LMs({n: LMProfile(**p) for n, p in profiles.items()}, None, cache=cache, environ=environ or {})


def test_without_profiles_the_offline_engine_answers():
    found = lms().get()
    assert found.model == OFFLINE_MODEL
    assert found("Rome is big.") == ["Rome is big."]


def test_a_single_profile_is_the_default_and_built_once():
    models = lms(fast={"model": "openai/gpt-4o-mini", "endpoint": "http://127.0.0.1:9/v1"})
    assert models.default == "fast"
    assert models.get() is models.get("fast")


def test_a_profile_makes_an_lm_on_lm15_that_leaves_retries_and_cache_to_the_pool():
    model = lms(
        {"KEY": "k"},
        fast={
            "model": "openai/gpt-4o-mini",
            "endpoint": "http://127.0.0.1:9/v1",
            "api_key_env": "KEY",
            "temperature": 0.3,
            "max_tokens": 99,
            "timeout_s": 4.0,
        },
    ).get("fast")
    assert (model.engine, model.num_retries, model.cache) == ("lm15", 0, False)
    wanted = {"api_key": "k", "temperature": 0.3, "max_tokens": 99, "timeout": 4.0}
    assert {key: model.kwargs[key] for key in wanted} == wanted


def test_a_profile_without_a_timeout_is_bounded_by_the_pool_s():
    profile = LMProfile(model="openai/gpt-4o-mini", endpoint="http://127.0.0.1:9/v1")
    assert LMs({"fast": profile}, None, timeout_s=30.0).get().kwargs["timeout"] == 30.0


def test_an_endpoint_never_gets_a_key_that_is_not_its_own():
    environ = {"OPENAI_API_KEY": "sk-real"}
    model = lms(environ, local={"model": "openai/gpt-4o-mini", "endpoint": "http://127.0.0.1:9/v1"}).get()
    assert model.kwargs["api_key"] == "none"


def test_a_missing_key_names_its_variable():
    with pytest.raises(ModelAuthFailed, match="OTHER_KEY is not set") as error:
        lms(fast={"model": "openai/gpt-4o-mini", "api_key_env": "OTHER_KEY"}).get("fast")
    assert error.value.details == {"profile": "fast", "variable": "OTHER_KEY"}


@pytest.mark.parametrize("key", ["secret\n", " secret", "sec ret", "secret\x00"])
def test_a_key_with_white_space_names_its_variable_and_not_its_value(key: str):
    with pytest.raises(ModelAuthFailed, match="KEY holds white space") as error:
        lms({"KEY": key}, fast={"model": "openai/gpt-4o-mini", "api_key_env": "KEY"}).get("fast")
    assert "secret" not in str(error.value.to_wire())


@pytest.mark.parametrize(
    "profile",
    [
        {"model": "nobody/knows-this", "engine": "lm15"},
        {"model": OFFLINE_MODEL},
        {"model": "openai/gpt-4o-mini", "extra": {"api_version": "1"}},
    ],
)
def test_a_profile_that_cannot_work_is_a_configuration_error(profile: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"lm_profiles\.odd"):
        lms(odd=profile).get("odd")


def test_an_unknown_profile_is_refused_by_name():
    with pytest.raises(UnknownName, match="no LM profile 'x'; known are offline"):
        lms().get("x")
    with pytest.raises(ConfigError, match="default_lm"):
        LMs({}, "x")


def test_overrides_are_a_variant_that_leaves_the_profile_as_it_is():
    models = lms(fast={"model": "openai/gpt-4o-mini", "endpoint": "http://127.0.0.1:9/v1"})
    varied = models.get("fast", {"temperature": 0.9})
    assert varied.kwargs["temperature"] == 0.9
    assert models.get("fast").kwargs["temperature"] is None
    assert models.get("fast", {"temperature": 0.9}) is varied
    assert varied.gate is models.get("fast").gate


@pytest.mark.parametrize("name", ["api_key", "api_base", "model", "engine", "cache", "headers"])
def test_no_override_reaches_the_connection(name: str):
    with pytest.raises(InvalidRequest, match="unknown LM setting"):
        check_overrides({name: "x"})


def test_variants_are_bounded_and_those_in_use_stay():
    models = lms(fast={"model": "openai/gpt-4o-mini", "endpoint": "http://127.0.0.1:9/v1"})
    first = models.get("fast", {"seed": 0})
    for number in range(400):
        models.get("fast", {"seed": number})
        assert models.get("fast", {"seed": 0}) is first
    assert len(models._variants) <= 256


def test_a_rate_gate_stays_shut_for_the_longest_pause_asked_for():
    now = [0.0]
    gate = RateGate(5.0, clock=lambda: now[0])
    gate.pause_for(3.0)
    gate.pause_for(1.0)
    gate.pause_for(None)
    assert gate.pause_s() == 3.0
    now[0] = 3.5
    assert gate.pause_s() == 0.0


def test_no_pause_that_a_back_end_asks_for_lasts_longer_than_an_hour():
    gate = RateGate(5.0, clock=lambda: 100.0)
    gate.pause_for(1e12)
    assert gate.pause_s() == 3600.0


def test_while_the_pause_is_too_long_no_call_is_sent():
    model = lms(
        fast={"model": "openai/gpt-4o-mini", "endpoint": "http://127.0.0.1:9/v1", "max_rate_limit_wait_s": 1}
    ).get()
    model.gate.pause_for(60.0)
    with pytest.raises(lm_errors.LMRateLimitError) as error:
        model("hello")
    told = translate(error.value)
    assert isinstance(told, ModelRateLimited)
    assert 59.0 < told.retry_after_s <= 60.0


CASES: list[tuple[Exception, type[PoolError], dict[str, Any]]] = [
    (
        lm15.RateLimitError(SECRET, status=429, retry_after=7.0),
        ModelRateLimited,
        {"status": 429, "retry_after_s": 7.0},
    ),
    (lm15.AuthError(SECRET, status=401), ModelAuthFailed, {"status": 401}),
    (lm15.ServerError(SECRET, status=503), ModelError, {"status": 503}),
    (lm15.ContextLengthError(SECRET, status=400), ModelError, {"reason": "context_window"}),
    (lm15.InvalidRequestError(SECRET, status=400), ModelError, {"reason": "invalid_request"}),
    (lm15.TransportError(SECRET), ModelUnreachable, {"reason": "transport"}),
    (lm15.TimeoutError(SECRET), ModelUnreachable, {"reason": "timeout"}),
    (lm15.UnsupportedModelError(SECRET, status=404), ModelError, {"reason": "unsupported_model"}),
    (lm15.BillingError(SECRET, status=402), ModelAuthFailed, {"status": 402}),
    (RuntimeError(SECRET), ModelError, {"reason": "unexpected"}),
]


@pytest.mark.parametrize(("raised", "kind", "details"), CASES, ids=lambda v: getattr(v, "__name__", None))
def test_an_lm_error_is_told_by_kind_status_and_pause_without_content(
    raised: Exception, kind: type[PoolError], details: dict[str, Any]
):
    told = translate(wrap_error(raised, model="openai/m", provider="p"))
    assert type(told) is kind
    assert details.items() <= told.details.items()
    assert told.details["model"] == "openai/m"
    assert SECRET not in str(told.to_wire())


def test_an_answer_that_does_not_fit_is_an_error_of_the_program_without_the_answer():
    signature = dspy.Signature("question -> answer")
    told = translate(lm_errors.AdapterParseError("ChatAdapter", signature, SECRET, SECRET, {}))
    assert type(told) is ProgramError
    assert told.details["expected"] == ["answer"]
    assert SECRET not in str(told.to_wire())


def test_a_pool_error_and_a_lonely_group_come_out_as_what_is_inside():
    mine = UnknownName("x")
    assert translate(mine) is mine
    assert translate(ExceptionGroup("g", [ExceptionGroup("h", [mine])])) is mine
    # One of ours is a setting; of a program, as here, it is the program that lacks it.
    assert type(translate(ModuleNotFoundError("no", name="litellm"))) is ProgramError
