"""What the asynchronous and the blocking client share."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx

from dspool.errors import DeadlineExceeded, PoolError, Unreachable
from dspool.remote.requests import HttpCall

TIMEOUT_S = 30.0
MAX_BATCH = 256
"""Sets of inputs that are sent at once; a service that takes fewer (`service.max_batch`) says so."""
GRACE_S = 2.0
"""How much longer than the deadline we wait for the service to say that it passed."""


class Remote:
    """What both twins know."""

    def __init__(
        self,
        url: str,
        *,
        pool: str = "default",
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        priority: str | None = None,
        ca_file: Path | str | None = None,
        transport: httpx.AsyncBaseTransport | httpx.BaseTransport | None = None,
    ) -> None:
        self.name = pool
        self.timeout_s = timeout_s
        headers = {"accept": "application/json, text/event-stream"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        if priority is not None:
            headers["x-dspool-priority"] = priority
        verify: ssl.SSLContext | bool = (
            True if ca_file is None else ssl.create_default_context(cafile=str(ca_file))
        )
        options: dict[str, Any] = {
            "base_url": url.rstrip("/"),
            "headers": headers,
            "verify": verify,
            # Never follow a redirect: the token would go along.
            "follow_redirects": False,
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=100),
        }
        if transport is not None:
            options["transport"] = transport
        self._connect(options)

    def _connect(self, options: dict[str, Any]) -> None:
        """Make the HTTP client."""
        raise NotImplementedError

    def _path(self, rest: str = "") -> str:
        return f"/v1/pools/{self.name}{rest}"


def options_of(call: HttpCall, left_s: float) -> dict[str, Any]:
    return {
        "json": call.body,
        "headers": call.headers(max(0.001, left_s)),
        "timeout": httpx.Timeout(left_s + GRACE_S, connect=min(5.0, left_s + GRACE_S)),
    }


def connection_error(call: HttpCall, failed: httpx.HTTPError) -> PoolError:
    kind = type(failed).__name__
    if isinstance(failed, httpx.ConnectError):
        return Unreachable(f"the service cannot be reached ({kind})", status=503)
    if isinstance(failed, httpx.TimeoutException):
        return DeadlineExceeded(f"no answer to {call.method} {call.path.partition('?')[0]} in time")
    return Unreachable(f"the connection to the service broke ({kind})")
