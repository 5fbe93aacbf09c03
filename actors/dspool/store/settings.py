"""What a configuration says of the pool's store."""

from __future__ import annotations

from dspool.config import PoolConfig
from dspool.core.admission.quotas import Quotas
from dspool.messages import StorageLimits


def quotas_of(config: PoolConfig) -> Quotas:
    limits = config.limits
    return Quotas(
        principal=StorageLimits(
            limits.max_sessions, limits.max_session_mb, limits.max_stored_mb, limits.max_answers_mb
        ),
        sessions=limits.max_pool_sessions,
        stored_mb=limits.max_pool_stored_mb,
    )


def store_url(config: PoolConfig) -> str:
    return config.store_url or f"sqlite:///{config.state_dir / 'sessions.db'}"
