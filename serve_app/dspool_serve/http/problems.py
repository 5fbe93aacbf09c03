"""Errors as HTTP answers: one table, RFC 9457 `application/problem+json`.

A problem's `type` is `urn:dspool:problem:<code>`; codes are those of `dspool.errors` and the few that
only HTTP has (defined here). Types and codes are stable: clients may match on them.
"""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import msgspec

from dspool.errors import CallerError, InternalError, PoolError, UnknownName
from dspool_serve.http.responses import Response

log = logging.getLogger("dspool.http")

PROBLEM_JSON = b"application/problem+json"
TYPE_PREFIX = "urn:dspool:problem:"


class RouteNotFound(UnknownName):
    code = "not_found"


class MethodNotAllowed(CallerError):
    code = "method_not_allowed"


class MalformedRequest(CallerError):
    """The body is not JSON, or the path or a header cannot be read."""

    code = "malformed_request"


class UnsupportedBody(CallerError):
    """The body is said to be something else than JSON, as a form or a page of another origin would send it, or to be
    compressed."""

    code = "unsupported_media_type"


class Kind(NamedTuple):
    status: int
    title: str


TABLE: dict[str, Kind] = {
    # The request cannot succeed as it is.
    "malformed_request": Kind(400, "The request cannot be read"),
    "config_error": Kind(400, "The configuration was refused"),
    "caller_error": Kind(400, "The request was refused"),
    "invalid_request": Kind(422, "The request is not valid"),
    "unauthenticated": Kind(401, "An access token is needed"),
    "not_allowed": Kind(403, "Not allowed"),
    "csrf": Kind(403, "Not sent by the dashboard's own page"),
    "not_found": Kind(404, "No such path"),
    "unknown_name": Kind(404, "Nothing of that name"),
    "unknown_pool": Kind(404, "No such pool"),
    "unknown_program": Kind(404, "No such program"),
    "unknown_session": Kind(404, "No such session"),
    "unknown_worker": Kind(404, "No such worker"),
    "method_not_allowed": Kind(405, "Method not allowed"),
    "conflict": Kind(409, "Conflict with what is there"),
    "idempotency_in_progress": Kind(409, "The first request with this key is still running"),
    "idempotency_outcome_unknown": Kind(409, "Nobody knows whether the first request with this key was done"),
    "idempotency_key_reused": Kind(422, "The key was used for another request"),
    "request_too_slow": Kind(408, "The request took too long to arrive"),
    "poison_request": Kind(422, "The request ends workers"),
    "payload_too_large": Kind(413, "The request is too large"),
    "unsupported_media_type": Kind(415, "The body is not said to be JSON, or is compressed"),
    "quota_exceeded": Kind(429, "No more may be kept"),
    # Refused before any work was done: safe to repeat.
    "queue_full": Kind(429, "The queue is full"),
    "rate_limited": Kind(429, "More than this key may ask for"),
    "too_many_sessions": Kind(429, "Too many sessions"),
    "rejected": Kind(503, "Refused for now"),
    "pool_paused": Kind(503, "The pool is paused"),
    "pool_not_ready": Kind(503, "The pool is not ready"),
    "pool_closed": Kind(503, "The pool is closed"),
    # It went wrong on the way. 499 is what proxies log for a client that went away.
    "cancelled": Kind(499, "Cancelled"),
    "pool_error": Kind(500, "The pool failed"),
    "internal_error": Kind(500, "A defect in dspool"),
    "program_error": Kind(500, "The program failed"),
    "model_error": Kind(502, "The language model failed"),
    "model_unreachable": Kind(502, "The language model cannot be reached"),
    "model_auth_failed": Kind(502, "The language model refused our key"),
    # Asking again would be refused again.
    "model_refused": Kind(422, "The language model gave no answer"),
    "model_rate_limited": Kind(503, "The language model limits our rate"),
    "sandbox_unavailable": Kind(501, "There is no sandbox to run code in"),
    "worker_lost": Kind(502, "The worker died while running the operation"),
    "worker_start_failed": Kind(503, "A worker could not be started"),
    "change_went_back": Kind(503, "A change of settings went back"),
    "unreachable": Kind(502, "Another service cannot be reached"),
    "ingress_failed": Kind(502, "The service did not answer"),
    "stale_lease": Kind(503, "The session is moving"),
    "store_failed": Kind(503, "The session store failed"),
    "deadline_exceeded": Kind(504, "The deadline passed"),
}
"""Error code -> status and title. A test holds it complete."""

_RETRY_LATER = frozenset(
    # Waiting alone does not help against a quota.
    code
    for code, kind in TABLE.items()
    if kind.status in (429, 503) and code != "quota_exceeded"
)
_UNKNOWN = TABLE["internal_error"]
_encode = msgspec.json.Encoder().encode


def kind_of(code: str) -> Kind:
    return TABLE.get(code, _UNKNOWN)


def problem_body(error: PoolError) -> dict[str, Any]:
    """RFC 9457 problem details of `error`."""
    kind = kind_of(error.code)
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + error.code,
        "title": kind.title,
        "status": kind.status,
        "detail": str(error),
        "code": error.code,
    }
    if operation_id := error.details.get("operation_id"):
        body["operation_id"] = operation_id
    if error.details:
        body["details"] = error.details
    return body


def pool_error_of(failed: Exception) -> PoolError:
    """The error that the client gets. The traceback of a defect goes to our log; the client gets its type."""
    if isinstance(failed, PoolError):
        return failed
    log.error("a request failed", exc_info=failed)
    return InternalError(f"unexpected {type(failed).__name__}; the service's log has the details")


def problem(error: PoolError) -> Response:
    """The answer for `error`: status, problem+json body, and `Retry-After` where trying again helps."""
    kind = kind_of(error.code)
    body = problem_body(error)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    retry_after_s = error.details.get("retry_after_s")
    if retry_after_s is None and error.code in _RETRY_LATER:
        retry_after_s = 1.0
    if isinstance(retry_after_s, (int, float)) and math.isfinite(retry_after_s):
        headers = ((b"retry-after", b"%d" % max(0, math.ceil(retry_after_s))),)
    if kind.status == 401:
        headers += ((b"www-authenticate", b'Bearer realm="dspool"'),)
    if allowed := error.details.get("allow"):
        headers += ((b"allow", str(allowed).encode()),)
    if codings := error.details.get("accept_encoding"):
        headers += ((b"accept-encoding", str(codings).encode()),)
    return Response(kind.status, _encode(body), PROBLEM_JSON, headers)
