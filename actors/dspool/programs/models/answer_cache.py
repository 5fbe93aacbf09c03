"""DSPy's cache of answers, with the asker and the LM profile in each key.

DSPy has one cache a process, for LMs, embedders and retrievers alike, also those that a program brings itself. Its keys
hold what was asked and of which model: neither who asked, nor at which endpoint.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from dspy.clients.cache import Cache

from dspool.programs.models.operation import current

profile_called: ContextVar[str | None] = ContextVar("dspool_profile", default=None)
"""The LM profile that is being called."""


class AnswerCache(Cache):
    """Nobody finds what another asked, whatever rollout id a program chooses.

    Outside of an operation, and in threads that lost its settings, nothing is found and nothing is kept: there is
    nobody to keep it for.
    """

    def get(self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None) -> Any:
        return None if current() is None else super().get(request, ignored_args_for_cache_key)

    def put(self, request: dict[str, Any], value: Any, *args: Any, **kwargs: Any) -> None:
        if current() is not None:
            super().put(request, value, *args, **kwargs)

    def cache_key(self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None) -> str:
        scope = current()
        asker = None if scope is None else scope.asker
        key: str = super().cache_key(
            {**request, "_dspool": [asker, profile_called.get()]}, ignored_args_for_cache_key
        )
        return key


__all__ = ["AnswerCache", "profile_called"]
