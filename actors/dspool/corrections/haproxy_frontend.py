"""What `haproxy-frontend` puts into HAProxy's configuration: who may hold how many connections, for how long, and what
of a request goes on to a replica.

What a client holds while it sends nothing costs the service a place in a table, and there are only so many. So each
address has its share, the last quarter of all is kept for addresses from which a valid token came, and what is silent
ends soon. An IPv6 address counts with its /64: one customer has all of that.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from dspool.errors import ConfigError

HEAD_S: Final = 10.0
"""A request's head, a new connection's first byte: any client sends them at once."""
STALL_S: Final = 30.0
"""A client that neither takes what it asked for nor ends its TLS handshake is given up."""
KEEP_ALIVE_S: Final = 30.0
CROWDED_BODY_S: Final = 2.0
"""From an address without a token, while half of all connections are taken."""
SELF: Final = ("127.0.0.1", "::1")
"""The machine's own users, or a reverse proxy on it: a limit of one address would lock out all of them at once."""
_OPEN_FILES_SPARE: Final = 300
_FILES_A_CONNECTION: Final = 2.5
"""One on each side, and HAProxy sets aside pipes for every fourth."""
_MOST: Final = 10_000


class Limits(NamedTuple):
    max_connections: int = 4096
    per_address: int = 1024
    trusted_proxies: tuple[str, ...] = ()


_GLOBAL: Final = """    # So often a client may break the rules of HTTP/2 before its connection ends.
    tune.h2.fe.glitches-threshold 500
"""
_FRONTEND: Final = """    no log
    timeout http-request {head_s}s
    timeout http-keep-alive {keep_alive_s}s
    timeout client {stall_s}s
    stick-table type ipv6 size {addresses} expire 1h store conn_cur,gpt0
    acl dspool_trusted src {trusted}
    acl dspool_known sc0_get_gpt0 gt 0
    acl dspool_crowded fe_conn gt {half}
    tcp-request connection track-sc0 src,ipmask(32,64)
    tcp-request connection reject if {{ sc0_conn_cur gt {per_address} }} !dspool_trusted
    tcp-request connection reject if {{ sc0_conn_cur gt {most} }}
    tcp-request connection reject if {{ fe_conn gt {most} }} !dspool_known
    # `OPTIONS *` and CONNECT have no path; what Serve answers by itself tells names of applications.
    http-request deny deny_status 400 if !{{ path_beg / }}
    http-request deny deny_status 404 if {{ path,url_dec -i -m beg /-/ }} !{{ path /-/healthz }}
    http-request del-header upgrade
    # Serve decodes it, and answers what is no ASCII with a 500.
    http-request del-header x-request-id if {{ req.hdr(x-request-id) -m reg '[^ -~]' }}
    http-request track-sc1 src,ipmask(32,64) table dspool_streams if {{ req.ver 2.0 }}
    http-request deny deny_status 429 if {{ sc1_conn_cur gt {per_address} }} !dspool_trusted
    http-request deny deny_status 429 if {{ sc1_conn_cur gt {most} }}
    # In place of `option http-buffer-request`, which has no time of its own.
    http-request wait-for-body time {crowded_body_ms}ms if dspool_crowded !dspool_known
    http-request wait-for-body time {body_ms}ms
    http-request set-var(txn.dspool_api) bool(true) if {{ path_beg /v1/ }}
    http-response sc-set-gpt0(0) 1 if {{ status lt 400 }} {{ var(txn.dspool_api) -m found }} !dspool_known
    http-after-response set-header connection close if dspool_crowded !dspool_known
    http-request set-header x-dspool-timeout-seconds %[req.hdr(x-request-timeout-seconds)] \
if {{ req.hdr(x-request-timeout-seconds) -m found }}
    http-request del-header x-request-timeout-seconds
"""
"""Below `/v1/` every route needs a token, where there are tokens: who was not refused there is known."""
_CLIENT: Final = """    http-request set-header {header} %[src]
"""
_BEHIND_PROXIES: Final = """    acl dspool_proxy src {proxies}
    http-request set-var(txn.dspool_client) req.hdr_ip(x-forwarded-for,-1) if dspool_proxy
    http-request set-var(txn.dspool_client) src if !{{ var(txn.dspool_client) -m found }}
    http-request set-header {header} %[var(txn.dspool_client)]
"""
_STREAMS: Final = """
# Requests under way over HTTP/2, of which one connection carries many.
backend dspool_streams
    stick-table type ipv6 size {addresses} expire 1m store conn_cur
"""
_OF_SERVE: Final = """    http-response return status {as_} errorfile {file} \
if {{ status {status} }} {{ res.hdr(content-type) -m beg text/plain }}
"""
_SAID_BY_SERVE: Final = {404: 404, 408: 504, 500: 502, 503: 503}
"""The service's own errors are problem documents. A proxy of Serve's on the head, which HAProxy turns to when no
replica is there, speaks plain text: 500 where the replica died, with the exception.
"""
_STRICT: Final = "    http-response set-header strict-transport-security max-age=31536000\n"
_REFUSALS: Final = {
    400: ("Bad Request", "malformed_request", "The request cannot be read"),
    404: ("Not Found", "not_found", "Nothing is served under this path"),
    408: ("Request Timeout", "request_too_slow", "The request took too long to arrive"),
    429: ("Too Many Requests", "rejected", "This address has too many requests under way"),
    502: ("Bad Gateway", "ingress_failed", "The service did not answer"),
    503: ("Service Unavailable", "rejected", "No part of the service can take the request now"),
    504: ("Gateway Timeout", "deadline_exceeded", "The service did not answer in time"),
}
"""What HAProxy answers by itself, and the problem that is made of it. What cannot be read as HTTP at all, and a head
that comes too slowly, it refuses in its own words all the same (400 and 408 in HTML)."""


def most_connections(open_files: int, wanted: int | None) -> int:
    """How many connections HAProxy takes at once where a process may open so many files.

    Raises:
        ConfigError: not as many as `wanted`.
    """
    room = int((open_files - _OPEN_FILES_SPARE) / _FILES_A_CONNECTION)
    if wanted is None:
        return max(100, min(_MOST, room))
    if wanted > room:
        needed = math.ceil(wanted * _FILES_A_CONNECTION) + _OPEN_FILES_SPARE
        raise ConfigError(
            f"{wanted} connections need {needed:,} open files and a process may open {open_files:,}; "
            "raise that (`ulimit -Hn`, `LimitNOFILE=`), or lower this",
            key="service.max_connections",
        )
    return wanted


def files(
    directory: Path, limits: Limits, *, body_s: float, strict: bool, client_header: str | None
) -> Mapping[str, Path]:
    """What goes into the sections `global` and `frontend` and behind all sections, each in a file of `directory`.

    Args:
        body_s: how long a client may take to send the first 16 KiB of a body.
        strict: browsers are to come back over TLS only.
        client_header: the header in which a replica gets the client's address; None: it does not.
    """
    addresses = 2 * limits.max_connections
    most = limits.max_connections * 3 // 4
    proxies = " ".join(limits.trusted_proxies)
    texts = {
        "global": _GLOBAL,
        "frontend": _FRONTEND.format(
            head_s=max(1, math.ceil(min(HEAD_S, body_s))),
            keep_alive_s=round(KEEP_ALIVE_S),
            stall_s=math.ceil(max(STALL_S, body_s)),
            addresses=addresses,
            trusted=" ".join((*SELF, *limits.trusted_proxies)),
            half=limits.max_connections // 2,
            most=most,
            per_address=min(limits.per_address, most),
            crowded_body_ms=_milliseconds(min(CROWDED_BODY_S, body_s)),
            body_ms=_milliseconds(body_s),
        )
        + (
            ""
            if client_header is None
            else (_BEHIND_PROXIES if proxies else _CLIENT).format(proxies=proxies, header=client_header)
        )
        + (_STRICT if strict else "")
        + _error_files(directory),
        "sections": _STREAMS.format(addresses=addresses),
    }
    paths = {}
    for name, text in texts.items():
        paths[name] = directory / f"{name}.cfg"
        paths[name].write_text(text)
    return paths


def addresses(host: str) -> str:
    r"""What HAProxy is to bind for the service's `host`, with `\1` in the place of the port."""
    if not re.fullmatch(r"[A-Za-z0-9.:_%-]+", host):
        raise ConfigError(f"{host!r} is no address and no name of this machine", key="service.host")
    return rf"[{host}]:\1" if ":" in host else rf"{host}:\1"


def _milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))


def _error_file(directory: Path, status: int) -> Path:
    return directory / f"{status}.http"


def _error_files(directory: Path) -> str:
    lines = []
    for status, (phrase, code, detail) in _REFUSALS.items():
        problem = {
            "type": f"urn:dspool:problem:{code}",
            "title": phrase,
            "status": status,
            "detail": detail,
            "code": code,
        }
        body = json.dumps(problem)
        head = [
            f"HTTP/1.1 {status} {phrase}",
            f"content-length: {len(body)}",
            "content-type: application/problem+json",
            "cache-control: no-store",
            "x-content-type-options: nosniff",
            "connection: close",
        ]
        if status in (429, 503):
            head.append("retry-after: 1")
        file = _error_file(directory, status)
        file.write_bytes("\r\n".join([*head, "", body]).encode())
        lines.append(f"    errorfile {status} {file}\n")
    for said, status in _SAID_BY_SERVE.items():
        lines.append(_OF_SERVE.format(status=said, as_=status, file=_error_file(directory, status)))
    return "".join(lines)


__all__ = ["Limits", "addresses", "files", "most_connections"]
