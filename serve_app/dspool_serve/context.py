"""What a handler gets besides its request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dspool_serve.pools import Pools, Settings


class MetricsPage(Protocol):
    async def page(self) -> bytes:
        """The metrics of all pools, in Prometheus' text format."""
        ...


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What the service says of itself: the same for everybody who asks."""

    health: bytes
    document: bytes
    """The OpenAPI document."""
    metrics: MetricsPage


@dataclass(frozen=True, slots=True)
class Context:
    """The pools as the one who asks may see them, how the service behaves for this request, and the service's facts."""

    pools: Pools
    settings: Settings
    service: ServiceFacts
