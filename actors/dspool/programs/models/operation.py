"""The operation that a model call belongs to: whose it is, whether it may go on, and what it cost.

It travels in DSPy's settings and not in a context variable of ours: DSPy takes its settings into every thread that it
starts (`dspy.Parallel`, `dspy.asyncify`, streams), and context variables only into some of them.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import dspy
from dspy.clients.cache import Cache
from dspy.utils.usage_tracker import UsageTracker

from dspool.config import ModelPrice
from dspool.programs.models.prices import cost_usd, price_of
from dspool.programs.spans import count_tokens

SETTING: Final = "dspool_operation"
"""Where DSPy's settings hold the operation."""
_DETAILS: Final = ("cached_tokens", "cache_creation_tokens", "reasoning_tokens")
"""Counts that back ends report one level deeper, as parts of the prompt's or the completion's tokens."""

_running_scopes: set[OperationScope] = set()
"""Operations that run now and may have started threads without any settings."""


class OperationScope(UsageTracker):
    """What the model calls of one operation share. Safe to use from any thread.

    Args:
        cache_owner: whose cached answers it may use and add to; differs where operations must not share answers.
        stop: once it is set, the operation makes no further model call.
        prices: what tokens cost, by profile or model; None or empty: nobody asks.
    """

    def __init__(
        self,
        cache_owner: str = "",
        stop: threading.Event | None = None,
        prices: Mapping[str, ModelPrice] | None = None,
    ) -> None:
        self.cache_owner = cache_owner
        self.stop = stop
        self._prices = prices
        self.answers: Any = None
        """The pool's `PoolAnswers`, where there is a cache."""
        self.deadline = math.inf
        """On the monotonic clock: no model call waits beyond it for another try."""
        self.offline = False
        """Whether the offline engine answered any of its model calls."""
        self.asked = 0
        """Calls that a model answered."""
        self.hits = 0
        """Calls that a cache answered."""
        self.truncated = False
        """Whether the answer of one was cut at its longest length."""
        self._calls: list[tuple[str, dict[str, Any]]] = []
        self._costs: list[tuple[str, float]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> OperationScope:
        # dspy.Parallel gives each of its threads a deep copy of the tracker and forgets what the copies count.
        return self

    @property
    def usage_data(self) -> dict[str, list[dict[str, Any]]]:
        # `dspy.track_usage` adds its calls here when it ends; each has been counted already.
        return defaultdict(list)

    def settings(self) -> dict[str, Any]:
        """What `dspy.context` takes to run code within this operation."""
        return {"usage_tracker": self, SETTING: self}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a program that may start threads of its own, which get no settings."""
        _running_scopes.add(self)
        try:
            yield
        finally:
            _running_scopes.discard(self)

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        self.asked += 1
        if not usage_entry:
            return
        entry = self._flatten_usage_entry(usage_entry)
        self._calls.append((lm, entry))
        counts, cost = {**entry, **dict(_details(entry))}, None
        if self._prices and (price := price_of(self._prices, current_profile.get(), lm)) is not None:
            self._costs.append((lm, cost := cost_usd(price, counts)))
        count_tokens(counts, cost)

    def get_total_tokens(self) -> dict[str, dict[str, Any]]:
        totals: dict[str, dict[str, Any]] = {}
        for lm, entry in tuple(self._calls):
            totals[lm] = self._merge_usage_entries(totals.get(lm), entry)
        return totals

    @property
    def cached(self) -> bool:
        """Whether a cache answered all of its model calls."""
        return self.hits > 0 and not self.asked

    def by_model(self) -> dict[str, dict[str, int | float]]:
        """Counts (and costs, where there is a price) summed over the calls, by model; empty when none was reported."""
        totals: dict[str, dict[str, int | float]] = {}
        for lm, entry in tuple(self._calls):
            counts = totals.setdefault(lm, {})
            for key, count in (*entry.items(), *_details(entry)):
                if type(count) is int:
                    counts[key] = counts.get(key, 0) + count
        for lm, cost in tuple(self._costs):
            totals[lm]["cost_usd"] = totals[lm].get("cost_usd", 0.0) + cost
        return totals


def current() -> OperationScope | None:
    """The operation that the calling code works for; None outside of one, and in threads that lost its settings."""
    scope: OperationScope | None = dspy.settings.get(SETTING)
    return scope


def mark_offline() -> None:
    """Mark the operation for which the offline engine answers now."""
    scope = current()
    # A thread without settings does not tell for which: better one mark too many than one too few.
    for candidate in (scope,) if scope is not None else tuple(_running_scopes):
        candidate.offline = True


def count_for_operation(add_usage: Any) -> Any:
    """`add_usage` of a tracker that a program set in place of ours, made to count for the operation too."""

    @functools.wraps(add_usage)
    def add(self: Any, lm: str, usage_entry: dict[str, Any]) -> None:
        scope = current()
        # DSPy also adds up in trackers that are nobody's setting.
        if scope is not None and self is dspy.settings.usage_tracker:
            scope.add_usage(lm, usage_entry)
        add_usage(self, lm, usage_entry)

    return add


def _details(entry: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for part in entry.values():
        if isinstance(part, dict):
            yield from ((key, part[key]) for key in _DETAILS if key in part)


if not hasattr(UsageTracker.add_usage, "__wrapped__"):
    UsageTracker.add_usage = count_for_operation(UsageTracker.add_usage)


current_profile: ContextVar[str | None] = ContextVar("dspool_profile", default=None)
"""The LM profile of the call that runs now."""


def is_answer(record: Any) -> bool:
    """Whether what a call of a model gave (as DSPy keeps it) is worth keeping: not a refusal, nor a cut answer."""
    if not isinstance(record, dict) or "responses" not in record or "outputs" not in record:
        return True  # an embedding, or an answer of litellm
    for response in record["responses"]:
        parts = response.get("message", {}).get("parts", ())
        if response.get("finish_reason") in ("length", "content_filter", "error") or any(
            part.get("type") == "refusal" for part in parts
        ):
            return False
    # Of a streamed refusal DSPy leaves an empty text.
    return all(
        output.get("text") or output.get("tool_calls") if isinstance(output, dict) else output
        for output in record["outputs"]
    )


class AnswerCache(Cache):
    """A cache in which nobody finds the answers of another, whatever rollout id a program chooses.

    Outside an operation, and in threads that lost its settings, it finds and keeps nothing: there is nobody to keep it
    for.
    """

    keeps_lms = True
    """Whether it has answers of language models, too: those of a pool with a cache are in `shared_answers`."""

    def get(self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None) -> Any:
        if current() is None or not self._is_for(request):
            return None
        return super().get(request, ignored_args_for_cache_key)

    def put(self, request: dict[str, Any], value: Any, *args: Any, **kwargs: Any) -> None:
        if current() is not None and is_answer(value) and self._is_for(request):
            super().put(request, value, *args, **kwargs)

    def _is_for(self, request: dict[str, Any]) -> bool:
        return self.keeps_lms or not str(request.get("_fn_identifier", "")).startswith("dspy.clients.lm")

    def cache_key(self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None) -> str:
        scope = current()
        cache_owner = None if scope is None else scope.cache_owner
        key: str = super().cache_key(
            {**request, "_dspool": [cache_owner, current_profile.get()]}, ignored_args_for_cache_key
        )
        return key


__all__ = [
    "SETTING",
    "AnswerCache",
    "OperationScope",
    "count_for_operation",
    "current",
    "current_profile",
    "is_answer",
    "mark_offline",
]
