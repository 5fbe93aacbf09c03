"""`Idempotency-Key`: the same request is done once, and everyone who sends it gets the one answer.

The key is claimed in the store before the work begins, so it holds over all ingress processes. What is done under a key
is done to its end also when its client goes away: who comes back with the key gets the answer. Only a program's stream
ends with its reader, and is remembered as cancelled. An answer that says that no work was done is not kept.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import uuid
from collections.abc import Iterable
from typing import Any

import msgspec

from dspool.errors import (
    CallerError,
    Cancelled,
    InProgress,
    InvalidRequest,
    KeyReused,
    OutcomeUnknown,
    PoolError,
)
from dspool.store.idempotency import Claim, KeptAnswer
from dspool_serve.access.deeds import REPLAYED
from dspool_serve.context import Context
from dspool_serve.http.event_stream import EVENT_STREAM, EventStream, go_on
from dspool_serve.http.forms import form_inputs, is_form
from dspool_serve.http.problems import pool_error_of, problem
from dspool_serve.http.requests import Request, holds_too_much
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Handler, Route
from dspool_serve.pools import PoolStorage

log = logging.getLogger("dspool.http")

HEADER = b"idempotency-key"
POOL = "{pool}"
MAX_KEY = 255
GRACE_S = 120.0
"""Beyond the longest deadline of an operation; a deployment with its canary may take so long."""
MAX_KEPT_STREAM = 1_048_576
"""Of a longer stream only its end is kept."""

_NOT_BEGUN = frozenset({429, 503})
"""Nothing was done: the same key may be tried again."""


def keyed(routes: Iterable[Route]) -> tuple[Route, ...]:
    """The same routes; those that take a key look for one. A request without pays one look."""
    return tuple(
        route._replace(handler=_keyed(route.handler))
        if route.method == "POST" and POOL in route.path
        else route
        for route in routes
    )


def _keyed(handler: Handler) -> Handler:
    @functools.wraps(handler)
    def looked(context: Context, request: Request) -> Any:
        key = request.headers.get(HEADER)
        return (
            handler(context, request)
            if key is None
            else _once(context, request, key.decode("latin-1"), handler)
        )

    return looked


async def _once(context: Context, request: Request, key: str, handler: Handler) -> Response | EventStream:
    """The answer of the first request with this key; `handler` makes it if this is the first.

    Raises:
        QuotaExceeded: there are too many answers kept for another one.
        InvalidRequest: the key is empty, too long, or not printable ASCII.
        KeyReused, InProgress, OutcomeUnknown: there is no answer to give.
        StoreFailed: keys cannot be kept now, and so nothing was done.
    """
    if not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        raise InvalidRequest(f"an Idempotency-Key has 1 to {MAX_KEY} printable ASCII characters")
    settings = context.settings
    pool = context.pools.get(request.params["pool"])
    body = await request.body(settings.max_body_bytes)
    request.put_back(body)
    held = _Held(pool, key, request.principal)
    claim = await pool.claim_key(
        key,
        principal=request.principal,
        fingerprint=fingerprint(request, body),
        holder=held.holder,
        patience_s=settings.operation_timeout_s + GRACE_S,
        keep_s=settings.idempotency_ttl_s,
        limits=request.token.storage if request.token is not None else None,
    )
    if claim.outcome != "new":
        return _replayed(claim)
    # A task of its own: a client that goes away must not leave the work half done.
    answer: Response | EventStream = await asyncio.shield(go_on(_work(context, request, handler, held)))
    return answer


async def _work(context: Context, request: Request, handler: Handler, held: _Held) -> Response | EventStream:
    try:
        answer: Response | EventStream = await handler(context, request)
    except Exception as failed:
        answer = problem(pool_error_of(failed))
    if isinstance(answer, EventStream):
        _Recording(answer, held)
        return answer
    await held.keep(answer)
    return answer


class _Held:
    """A claim of ours."""

    def __init__(self, pool: PoolStorage, key: str, principal: str | None) -> None:
        self.holder = uuid.uuid4().hex
        self._pool, self._key, self._principal = pool, key, principal

    async def keep(self, answer: Response) -> None:
        """Keep `answer`, or free the key if it says that nothing was done. A store that fails costs the repetition."""
        try:
            await self._keep(answer)
        except PoolError as failed:
            log.warning("the answer to a request with an Idempotency-Key was not kept: %s", failed.message)

    async def _keep(self, answer: Response) -> None:
        if answer.status in _NOT_BEGUN:
            await self._pool.drop_key(self._key, principal=self._principal, holder=self.holder)
            return
        kept = KeptAnswer(
            answer.status,
            answer.content_type.decode(),
            [(name.decode(), value.decode()) for name, value in answer.headers],
            answer.body,
        )
        await self._pool.settle_key(self._key, principal=self._principal, holder=self.holder, answer=kept)


class _Recording:
    """Keeps what a stream sent, to be sent again all at once."""

    def __init__(self, stream: EventStream, held: _Held) -> None:
        self._held = held
        self._sent = bytearray()
        self._last = b""
        self._whole = True
        self._answer: Response | None = None
        self._kept = False
        stream.on_sent = self._heard
        stream.on_refused = self._refused
        stream.before_close = self._keep
        stream.on_end.append(self._ended)

    def _heard(self, data: bytes) -> None:
        self._last = data
        if self._whole and len(self._sent) + len(data) <= MAX_KEPT_STREAM:
            self._sent += data
        else:
            self._whole = False
            self._sent.clear()

    def _refused(self, answer: Response) -> None:
        self._answer = answer

    async def _keep(self) -> None:
        self._kept = True
        body = bytes(self._sent) if self._whole else self._last
        await self._held.keep(self._answer or Response(200, body, EVENT_STREAM))

    def _ended(self) -> None:
        if self._kept:
            return
        # It never came to its close: the key is used up all the same, and that must be written down.
        self._answer = problem(Cancelled("the client went away before the stream ended"))
        go_on(self._keep())


def fingerprint(request: Request, body: bytes) -> str:
    """The same for the same method, path, query and JSON value, however it was written; of a form the inputs count,
    since clients make a boundary up."""
    try:
        if is_form(request):
            # Read within its bounds already. As JSON it may be six times as long, and is not read once more.
            canonical = msgspec.json.encode(form_inputs(request, body), order="sorted")
        elif holds_too_much(body):
            # What is too much for the route, which says so itself, is too much here.
            canonical = body
        else:
            canonical = msgspec.json.encode(msgspec.json.decode(body), order="sorted") if body else b""
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, CallerError):
        canonical = body
    scope = request.scope
    parts = (
        scope["method"].encode(),
        scope.get("raw_path") or scope["path"].encode(),
        scope.get("query_string", b""),
    )
    digest = hashlib.sha256()
    for part in (*parts, canonical):
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()


def _replayed(claim: Claim) -> Response:
    if claim.outcome == "done" and claim.answer is not None:
        kept = claim.answer
        headers = [(name.encode(), value.encode()) for name, value in kept.headers]
        return Response(kept.status, kept.body, kept.content_type.encode(), (*headers, REPLAYED))
    if claim.outcome == "other":
        raise KeyReused("this Idempotency-Key was used for another request; use a new one")
    if claim.outcome == "running":
        raise InProgress("the first request with this Idempotency-Key is still running", retry_after_s=1.0)
    raise OutcomeUnknown(
        "the server that ran the first request with this Idempotency-Key was lost: it may or may not have been "
        "done; look, then use a new key"
    )


__all__ = ["HEADER", "fingerprint", "keyed"]
