"""What a handler gets besides its request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dspool_serve.costly import CostlyReads
from dspool_serve.fresh import Fresh
from dspool_serve.pools import CallerView, Pools, Settings


class MetricsPage(Protocol):
    async def page(self) -> bytes:
        """The metrics of all pools, in Prometheus' text format."""
        ...


class Document(Protocol):
    async def current(self) -> bytes: ...


class Places(Protocol):
    def enter(self, principal: str) -> None:
        """Raises: RateLimited: there is no place left, for this principal or in all."""
        ...

    def leave(self, principal: str) -> None: ...


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What the service says of itself: the same for everybody who asks."""

    health: bytes
    document: bytes
    """The OpenAPI document, for everybody."""
    typed_document: Document
    """The same with an operation for each program, for those who may look at programs."""
    metrics: MetricsPage
    answers: Fresh[Any]
    """Answers that are large or cost much, for all who ask within a second."""
    worker_answers: Fresh[Any]
    """What single workers answered lately: small, but of many workers."""
    waits: Places
    """Questions for news that a pool's metrics actor keeps until there are some."""
    costly: CostlyReads
    """What takes a thread for long: days of charts, traces, replays."""


@dataclass(frozen=True, slots=True)
class Context:
    """The pools, how the service behaves for this request, and the service's facts."""

    pools: Pools
    """For operators: whatever is asked here, is asked by the service itself."""
    caller: Callable[[str], CallerView]
    """A pool, by name, as the one who asks may use it: what runs operations or touches sessions asks here.

    Raises:
        UnknownPool: there is none; the message names those there are.
    """
    settings: Settings
    service: ServiceFacts
