"""How the session store uses its database."""

from __future__ import annotations

from pydantic import model_validator

from dspool.config.base import Count, Part, Seconds, refuse


class StoreConfig(Part):
    """How the session store uses a PostgreSQL server. SQLite knows only `statement_timeout_s`."""

    connections: Count = 8
    """Connections at most, of which one writes. Of a pool, not of a worker or an ingress replica."""
    connect_timeout_s: Seconds = 5.0
    """Longest wait for one host to answer a new connection."""
    statement_timeout_s: Seconds = 10.0
    """Longest time for a statement and for a lock. A transaction of a store that stands still ends after 3 s."""

    @model_validator(mode="after")
    def _rules(self) -> StoreConfig:
        if self.connections < 2:
            refuse("connections", self.connections, "must be at least 2: one writes, the others read")
        return self
