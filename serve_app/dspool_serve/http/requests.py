"""Reading a request: its headers, its query, its body, and the values in it.

No framework on the hot path; `docs/explanation/adr/0005-http-stack.md` says why and what it saves.
"""

from __future__ import annotations

import asyncio
import codecs
import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec

from dspool.core.admission.access import Role, Token
from dspool.errors import CallerError, Cancelled, InvalidRequest, PayloadTooLarge
from dspool.messages.limits import MAX_BODY_DEPTH, MAX_BODY_VALUES, MAX_LONG_NUMBERS, MAX_QUERY_FIELDS
from dspool_serve.http.problems import MalformedRequest, UnsupportedBody
from dspool_serve.http.responses import Message

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
T = TypeVar("T")

_ONCE = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"cookie",
        b"host",
        b"idempotency-key",
        b"last-event-id",
        b"origin",
        b"sec-fetch-mode",
        b"sec-fetch-site",
        b"traceparent",
        b"transfer-encoding",
        b"user-agent",
        b"x-dspool-csrf",
        b"x-dspool-priority",
        b"x-dspool-timeout-seconds",
        b"x-forwarded-proto",
        b"x-request-id",
        b"x-request-timeout-seconds",
    }
)
"""Headers that decide something. Of two, what stands in front of the service may have looked at the other one."""

IDENTITY = "identity"
"""The only `Content-Encoding` that is accepted: unpacked, a small body could be of any size."""
_COMPRESSED = (
    b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd",
    b"\xfd7zXZ\0",
    b"\x1f\x9d",
    b"BZh",
    b"\x78\x01",
    b"\x78\x5e",
    b"\x78\x9c",
    b"\x78\xda",
)
"""How gzip, Zstandard, xz, compress, bzip2 and deflate (four levels) begin; brotli begins as it likes."""
_BEGINS_TEXT = frozenset(b"\t\n\r") | frozenset(range(0x20, 0x7F))
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_LARGE_EXPONENT = re.compile(rb"[eE][-+]?[0-9]{3}")
_DIGITS_ALIKE = bytes.maketrans(b"123456789", b"000000000")
_HUNDRED_DIGITS = b"0" * 100
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class RequestTooSlow(CallerError):
    """The body did not arrive in time."""

    code = "request_too_slow"


class Login(NamedTuple):
    """A login to the dashboard that was recognised."""

    token: Token
    began: int
    ends: int
    nonce: str


class Trace(Protocol):
    def traceparent(self, given: str | None, principal: str | None) -> str | None:
        """The context for an operation of a request of `principal` that came with `given`."""
        ...


class Request:
    """One HTTP request. `params` are the path's parameters, decoded."""

    __slots__ = (
        "_body",
        "_body_timeout_s",
        "_client_header",
        "headers",
        "is_stranger",
        "login",
        "params",
        "principal",
        "receive",
        "role",
        "scope",
        "token",
        "trace",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        body_timeout_s: float = 30.0,
        client_header: bytes | None = None,
    ) -> None:
        self.scope = scope
        self._body_timeout_s = body_timeout_s
        self._client_header = client_header
        self.receive = receive
        # Of a repeated header the last counts, but for those that `refuse_repeated` knows.
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.params: dict[str, str] = {}
        self.principal: str | None = None
        """Who asks; None is nobody in particular, or the pool's own."""
        self.role: Role = "admin"
        """What the principal may do; without tokens everybody may do everything."""
        self.is_stranger = False
        """On a route that is open to everybody: there are tokens, and it came without a right one."""
        self.token: Token | None = None
        """What the principal was recognised by; None without tokens."""
        self.login: Login | None = None
        """The login to the dashboard that the request came with."""
        self._body: bytes | None = None
        self.trace: Trace | None = None

    def refuse_repeated(self) -> None:
        """
        Raises:
            MalformedRequest: a header that decides something came twice.
        """
        if len(self.headers) == len(self.scope["headers"]):
            return
        names = Counter(name for name, _ in self.scope["headers"])
        if repeated := sorted(name.decode() for name in _ONCE if names[name] > 1):
            raise MalformedRequest(f"send the header {repeated[0]!r} once")

    def put_back(self, body: bytes) -> None:
        """`body` was read ahead; the next one who reads it gets it."""
        self._body = body

    @property
    def client(self) -> str:
        """The address of who asks, as far as it is known; nothing that the client itself says."""
        if self._client_header is not None:
            given = self.headers.get(self._client_header)
            if given is not None:
                return given.decode("latin-1")
        peer = self.scope.get("client")
        return str(peer[0]) if peer else ""

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context that an operation of this request runs in, if any; reading it decides on tracing."""
        value = self.headers.get(b"traceparent")
        well_formed = value is not None and _TRACEPARENT.fullmatch(value) is not None
        given = value.decode("ascii") if value is not None and well_formed else None
        return given if self.trace is None else self.trace.traceparent(given, self.principal)

    def query(self, allowed: frozenset[str]) -> dict[str, str]:
        """The query parameters; the first of a name counts.

        Raises:
            InvalidRequest: a parameter that is not in `allowed`.
        """
        raw: bytes = self.scope.get("query_string", b"")
        if not raw:
            return {}
        try:
            pairs = parse_qsl(
                raw.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS, errors="strict"
            )
        except ValueError as bad:
            raise InvalidRequest("the query string cannot be read") from bad
        values: dict[str, str] = {}
        for name, value in pairs:
            if name not in allowed:
                expected = ", ".join(sorted(allowed)) or "none"
                raise InvalidRequest(f"unknown query parameter {name[:50]!r}; known: {expected}")
            values.setdefault(name, value)
        return values

    @property
    def has_body(self) -> bool:
        """Whether one is announced."""
        return self.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.headers

    def refuse_compressed(self) -> None:
        """Raises: UnsupportedBody: the body is said to be encoded."""
        said = self.headers.get(b"content-encoding")
        if said is None or not self.has_body:
            return
        codings = {coding.strip().lower() for coding in said.decode("latin-1").split(",")}
        if codings - {"", IDENTITY}:
            raise UnsupportedBody(
                f"`Content-Encoding: {said.decode('latin-1')[:50]}` is not accepted, only `{IDENTITY}`: send the body "
                "as it is, without compression and without this header",
                accept_encoding=IDENTITY,
            )

    async def body(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            UnsupportedBody: it is said to be compressed; nothing of it is read.
            PayloadTooLarge: more than `limit` bytes, announced or sent; the rest is not read.
            Cancelled: the client went away first.
            RequestTooSlow: it took longer than the body may take.
        """
        if self._body is not None:
            return self._body
        self.refuse_compressed()
        announced = self.headers.get(b"content-length")
        if announced is not None and (
            len(announced) > 18 or not announced.isdigit() or int(announced) > limit
        ):
            raise _too_large(limit)
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client went away while sending its request")
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(body) > limit:
                raise _too_large(limit)
            return body
        # A body in one piece never comes here: it pays for no timer.
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await self._rest(bytearray(body), limit)
        except TimeoutError:
            raise RequestTooSlow(f"the body took longer than {self._body_timeout_s:g} s to arrive") from None

    async def _rest(self, parts: bytearray, limit: int) -> bytes:
        more = True
        while more:
            if len(parts) > limit:
                raise _too_large(limit)
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("the client went away while sending its request")
            parts += message.get("body", b"")
            more = message.get("more_body", False)
        if len(parts) > limit:
            raise _too_large(limit)
        return bytes(parts)


# --- from text to values ----------------------------------------------------------------------------


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The value of `body`, checked. The last of a repeated key counts (one parser reads it, so nobody disagrees).

    Raises:
        MalformedRequest: not JSON, bad UTF-8, nested too deep, or a number that does not fit in 64 bits.
        InvalidRequest: JSON of another shape. PayloadTooLarge: it holds too many values.
    """
    if not body:
        raise MalformedRequest("the body is empty; send a JSON object")
    body = body.removeprefix(codecs.BOM_UTF8)
    if body.startswith(_COMPRESSED):
        raise MalformedRequest(
            "the body is compressed, and no header says so; send it as it is, without compression"
        )
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in body[:4]:
        raise MalformedRequest("the body is not text in UTF-8, as JSON is: it looks like UTF-16 or UTF-32")
    if body and body[0] not in _BEGINS_TEXT:
        raise MalformedRequest("the body does not begin as text does; if it is compressed, send it as it is")
    refuse_too_much(body)
    try:
        # Brackets are counted first, at memchr speed: only suspicious bodies pay for the exact check.
        if body.count(b"[") + body.count(b"{") > MAX_BODY_DEPTH or _LONG_NUMBER.search(body) is not None:
            _check(msgspec.json.decode(body), 1)
        return decoder.decode(body)
    except msgspec.ValidationError as failed:
        raise InvalidRequest(_cut(failed)) from failed
    except (msgspec.DecodeError, UnicodeDecodeError) as failed:
        raise MalformedRequest(f"the body is not valid JSON: {_cut(failed)}") from failed
    except RecursionError as failed:
        raise MalformedRequest(f"the body is nested more than {MAX_BODY_DEPTH} deep") from failed


def _cut(failed: Exception) -> str:
    """What it says: it may repeat a name that is as long as a body."""
    text = str(failed)
    return text if len(text) <= 300 else f"{text[:300]}..."


def refuse_too_much(body: bytes) -> None:
    """Raises: PayloadTooLarge: `holds_too_much`."""
    if holds_too_much(body):
        raise PayloadTooLarge(
            f"the body holds more than {MAX_BODY_VALUES} values, or {MAX_LONG_NUMBERS} numbers of a hundred digits or "
            "with an exponent of three",
            limit=MAX_BODY_VALUES,
        )


def holds_too_much(body: bytes) -> bool:
    """Whether its values cost more than its bytes: each takes every later hop about as long as a hundred characters,
    and reading some numbers takes as long as a hundred values.

    Counts only what is outside of texts, if need be without these.
    """
    if len(body) <= MAX_BODY_VALUES or not _exceeds(body):
        return False
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # A value is at most a key and a text, so four quotes; fewer of them are quickly taken apart.
    if bare.count(b'"') > 4 * MAX_BODY_VALUES:
        return True
    return _exceeds(b"".join(bare.split(b'"')[::2]))


def _exceeds(body: bytes) -> bool:
    if _separators(body) > MAX_BODY_VALUES:
        return True
    if body.translate(_DIGITS_ALIKE).count(_HUNDRED_DIGITS) > MAX_LONG_NUMBERS:
        return True
    if b"e" not in body and b"E" not in body:
        return False
    return next(islice(_LARGE_EXPONENT.finditer(body), MAX_LONG_NUMBERS, None), None) is not None


def _separators(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _check(value: Any, depth: int) -> None:
    """Refuse what cannot travel on: deep nesting, and integers beyond 64 bits."""
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise msgspec.DecodeError("an integer does not fit in 64 bits")
        return
    if not isinstance(value, (list, dict)):
        return
    if depth > MAX_BODY_DEPTH:
        raise RecursionError
    for item in value.values() if isinstance(value, dict) else value:
        _check(item, depth + 1)


def number(query: dict[str, str], name: str, default: float, *, least: float, most: float) -> float:
    """A number of the query string; without it, `default`.

    Raises:
        InvalidRequest: not a number, or one out of bounds.
    """
    text = query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise InvalidRequest(
            f"{name} must be a number from {least:g} to {most:g}, got {text[:20]!r}", field=name
        )
    return value


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is larger than {limit} bytes; raise service.max_body_bytes if that is right", limit=limit
    )
