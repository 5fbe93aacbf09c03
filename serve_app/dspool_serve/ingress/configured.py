"""What a configuration says of the HTTP layer, and of who is let in."""

from __future__ import annotations

from typing import Any

from dspool.config import PoolConfig
from dspool.tokens import TokenSource
from dspool_serve.access.audit import NAME as AUDIT_NAME
from dspool_serve.access.audit import Audit
from dspool_serve.access.security import LOOPBACK_NAMES, Security


def settings_of(
    config: PoolConfig, *, client_header: str | None = None, echo_request_id: bool = True
) -> dict[str, Any]:
    """The arguments of `Settings`."""
    return {
        "max_body_bytes": config.service.max_body_bytes,
        "max_batch": config.service.max_batch,
        "body_timeout_s": config.service.body_timeout_s,
        "heartbeat_s": config.service.heartbeat_s,
        "idempotency_ttl_s": config.service.idempotency_ttl_s,
        "operation_timeout_s": config.operation_timeout_s,
        "execute_code": config.service.execute_code,
        "session_imports": config.service.session_imports,
        "echo_request_id": echo_request_id,
        "tls": config.service.tls_cert is not None,
        "client_header": client_header,
        "root_path": config.service.root_path,
        "cors_origins": config.service.cors_origins,
    }


def security_of(config: PoolConfig, tokens: str | None) -> Security:
    """What one ingress process lets in. `tokens` is the variable with tokens as the service was started with it.

    Raises:
        ConfigError: the tokens cannot be read, or the audit log cannot be written.
    """
    service = config.service
    source = TokenSource(service.tokens_file, tokens) if service.tokens_file or tokens else None
    return Security(
        source,
        hosts=None if source is not None else (*LOOPBACK_NAMES, service.host),
        origins=service.cors_origins,
        audit=Audit(
            config.state_dir / AUDIT_NAME, max_bytes=service.audit_max_bytes, files=service.audit_files
        ),
        max_waiting=service.fair_waiting,
        max_streams=service.max_streams,
        max_streams_each=service.max_streams_per_principal,
    )


__all__ = ["security_of", "settings_of"]
