"""Errors of DSPy, its engines and programs as errors of dspool's own tree, without a word of prompts or answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dspy.utils import exceptions as lm_errors

from dspool.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    ModelAuthFailed,
    ModelError,
    ModelRateLimited,
    ModelRefused,
    ModelUnreachable,
    PoisonRequest,
    PoolError,
    ProgramError,
    QueueFull,
    Rejected,
    Unreachable,
    WorkerLost,
    is_own,
    place_of,
)
from dspool.messages.plain import plain_text
from dspool.programs.models.endings import NoAnswer
from dspool.programs.models.profile_lm import timed_out

_OF_CALLERS = (Rejected, DeadlineExceeded, WorkerLost, Unreachable, PoisonRequest)
_FILTERED = frozenset({"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"})
"""What providers call a prompt that their filter stops."""
_NO_ANSWER = {
    "refused": "{model} refused to answer: `refusal` has its words, if it gave any",
    "filtered": "a content filter stopped the answer of {model}",
    "truncated": "the answer of {model} was cut at its longest length: raise max_tokens, or ask for less",
}


def translate(error: BaseException) -> PoolError:
    """The `PoolError` that `error` means. Messages name models, statuses, fields and types, never content.

    Raises nothing, even if reading `error` does.
    """
    try:
        single = _single(error)
        return _pool_error(single) or ProgramError.of(single)
    except BaseException:
        return ProgramError.of(error)


@contextmanager
def translate_errors(
    what: str = "the program", *, loading: bool = False, hide: Callable[[str], str] = str
) -> Iterator[None]:
    """For a block that runs anybody's code: whatever it raises leaves as a `PoolError`.

    The arguments are those of `ProgramError.of`.
    """
    try:
        yield
    except BaseException as raised:
        try:
            error = _pool_error(_single(raised))
        except BaseException:
            error = None
        raise error or ProgramError.of(raised, what, loading=loading, hide=hide) from raised


def _pool_error(error: BaseException) -> PoolError | None:
    """None: it is the program's own."""
    if isinstance(error, lm_errors.LMUnexpectedError) and isinstance(error.__cause__, PoolError):
        # Raised by us below DSPy's engine boundary, such as by a listener that went away.
        error = error.__cause__
    if isinstance(error, PoolError) and is_own(error):
        return _of_call(error) if _is_of_call(error) else error
    if isinstance(error, lm_errors.AdapterParseError):
        return _unparsable(error)
    if isinstance(error, lm_errors.LMError):
        return _with_way(_model_error(error), error)
    if isinstance(error, ValueError) and place_of(error).startswith("dspy.clients.execution:"):
        # DSPy's own check of what it sends; its message quotes nothing, but names positions in the prompt.
        return InvalidRequest(
            "an input or setting cannot be sent: text that is not valid Unicode, or a bad n"
        )
    if isinstance(error, ImportError) and place_of(error).startswith("dspy."):
        # DSPy imports some packages when they are first needed.
        return ConfigError(f"a module is not installed: {error.name}", module=error.name or "")
    return None


def _with_way(error: PoolError, failed: lm_errors.LMError) -> PoolError:
    """`error`, which also says by which profile, through which proxy and how often the model was asked."""
    message, more = error.message, {}
    if profile := getattr(failed, "profile", None):
        more["profile"] = profile
    if proxy := getattr(failed, "proxy", None):
        message += f"; it was asked through the proxy {proxy} (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY)"
        more["proxy"] = proxy
    if (attempts := getattr(failed, "attempts", 1)) > 1:
        message += f"; it was tried {attempts} times"
        more["attempts"] = attempts
    return type(error)(message, **error.details, **more) if more else error


def _is_of_call(error: PoolError) -> bool:
    """Whether a pool that the program itself called answered so: only callers see such errors."""
    return "operation_id" in error.details or isinstance(error, _OF_CALLERS)


def _of_call(error: PoolError) -> ProgramError:
    """The caller's operation is another one than that which the program began: it needs an error of its own."""
    details = dict(ProgramError.of(error).details)
    full = isinstance(error, QueueFull) or error.details.get("phase") == "queue"
    hint = (
        "; if it is the program's own pool, operations that wait for others may fill all its slots"
        if full
        else ""
    )
    if "operation_id" in error.details:
        details["cause_operation_id"] = error.details["operation_id"]
    return ProgramError(
        f"a pool that the program called at {details['at']} answered {error.code}{hint}",
        **{**details, "reason": "nested_call", "cause": error.code},
    )


def _model_error(error: lm_errors.LMError) -> PoolError:
    model = error.model or "the model"
    details: dict[str, Any] = {"model": error.model or ""}
    if error.status is not None:
        details["status"] = error.status
    if error.provider:
        details["provider"] = error.provider
    if error.request_id:
        details["request_id"] = error.request_id
    status = f" (status {error.status})" if error.status is not None else ""
    if isinstance(error, lm_errors.LMRateLimitError):
        details["retry_after_s"] = error.retry_after
        wait = f"; it asks for a pause of {error.retry_after:g} s" if error.retry_after is not None else ""
        return ModelRateLimited(f"{model} refused the call: too many requests{status}{wait}", **details)
    if isinstance(error, lm_errors.LMNotConfiguredError):
        variables = " or ".join(getattr(error, "env_keys", None) or ()) or "the profile's api_key_env"
        return ModelAuthFailed(f"no key for {model}: set {variables} for the workers", **details)
    if isinstance(error, lm_errors.LMAuthError):
        return ModelAuthFailed(f"{model} refused the key{status}: check the profile's api_key_env", **details)
    if isinstance(error, lm_errors.LMBillingError):
        return ModelAuthFailed(f"{model} refused the call for billing reasons{status}", **details)
    if isinstance(error, lm_errors.LMTimeoutError):
        return ModelUnreachable(f"{model} did not answer in time{status}", reason="timeout", **details)
    if isinstance(error, (lm_errors.LMTransportError, lm_errors.LMLockTimeoutError)):
        if timed_out(error):
            return ModelUnreachable(f"{model} did not answer in time", reason="timeout", **details)
        return ModelUnreachable(
            f"{model} cannot be reached: check the profile's endpoint", reason="transport", **details
        )
    if error.retry_after is not None:
        details["retry_after_s"] = error.retry_after
    if isinstance(error, NoAnswer):
        if error.refusal:
            details["refusal"] = plain_text(error.refusal)
        return ModelRefused(_NO_ANSWER[error.reason].format(model=model), reason=error.reason, **details)
    if error.provider_code in _FILTERED:
        return ModelRefused(
            f"a content filter stopped the prompt for {model}{status}", reason="filtered", **details
        )
    if isinstance(error, lm_errors.ContextWindowExceededError):
        return ModelError(f"the prompt is too long for {model}{status}", reason="context_window", **details)
    if isinstance(error, lm_errors.LMUnsupportedModelError):
        return ModelError(
            f"the back end does not know {model}{status}", reason="unsupported_model", **details
        )
    if isinstance(error, lm_errors.LMUnsupportedFeatureError):
        features = ", ".join(error.features) or "something in this request"
        return ModelError(f"{model} does not support {features}", reason="unsupported_feature", **details)
    if isinstance(error, lm_errors.LMConfigurationError):
        return ConfigError(f"the settings of {model} do not fit", **details)
    if isinstance(error, lm_errors.LMInvalidRequestError):
        return ModelError(f"{model} refused the request{status}", reason="invalid_request", **details)
    if isinstance(error, lm_errors.LMUnexpectedError):
        return ModelError(f"the engine of {model} failed", reason=error.code or "unexpected", **details)
    return ModelError(f"{model} failed{status}", reason=error.code or "", **details)


def _unparsable(error: lm_errors.AdapterParseError) -> ProgramError:
    fields = list(getattr(error.signature, "output_fields", ()))
    result: Any = error.parsed_result
    parsed = [name for name in fields if isinstance(result, dict) and name in result]
    return ProgramError(
        f"the model's answer did not fit the signature: wanted {', '.join(fields)} in the format of "
        f"{error.adapter_name}",
        reason="unparsable",
        adapter=error.adapter_name,
        expected=fields,
        found=parsed,
    )


def _single(error: BaseException) -> BaseException:
    """The one error in an exception group, or the one that Python turned into a `RuntimeError`."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if type(error) is RuntimeError and isinstance(error.__cause__, StopIteration | StopAsyncIteration):
        error = error.__cause__
    return error
