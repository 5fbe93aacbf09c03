"""The script that Ray Serve starts in place of HAProxy: it corrects what Serve wrote, and then becomes HAProxy.

Serve 2.60 starts HAProxy (`RAY_SERVE_HAPROXY_BINARY_PATH`) with a configuration from a fixed template.

- `haproxy-loopback`: the metrics and statistics pages are bound to 127.0.0.1, not to all interfaces.
- `haproxy-leash`: HAProxy ends with the process that started it (Linux), and its pid is written down, so that
  `dspool down` can end it where that is not possible.
- `haproxy-frontend`: TLS; the address, as Serve itself stays on loopback; bounds on connections and on how slowly a
  request may come in (HAProxy collects a body of up to one buffer, 16 KiB, so that a slow client never reaches a
  replica); no log of requests; problem+json for what HAProxy itself refuses, with "not now" and not "no such path"
  from one that was just started and knows of no application; `x-request-timeout-seconds` under a name that Serve does
  not answer by itself in plain text; and the client's address under a name that only HAProxy and the replicas know.
  `haproxy_frontend` has the rules.
"""

from __future__ import annotations

import shlex
import ssl
import stat
import sys
from pathlib import Path

from dspool.corrections import active
from dspool.corrections.haproxy_frontend import Limits, addresses, files
from dspool.errors import ConfigError

PIDS = "haproxy.pids"
_SCRIPT = """#!/bin/sh
# Ray Serve starts this in place of HAProxy; see dspool/corrections/haproxy_script.py.
{note_pid}
previous=
for argument in "$@"; do
    if [ "$previous" = -f ]; then
        {edits}
    fi
    previous=$argument
done
exec {leash} {binary} "$@"
"""
_LOOPBACK = """sed -i -e 's/^ *bind :{metrics_port}$/    bind 127.0.0.1:{metrics_port}/' \\
               -e 's/^ *bind \\*:{stats_port}$/    bind 127.0.0.1:{stats_port}/' "$argument"
"""
_PROBLEMS = """if grep -q '^ *use_backend ' "$argument"; then unknown=404; else unknown=503; fi
        sed -i -e 's#^ *errorfile \\(50[234]\\) .*#    errorfile \\1 {directory}/\\1.http#' \\
            -e "s#^ *http-request return status 404 content-type text/plain .*\\
#    http-request return status $unknown errorfile {directory}/$unknown.http#" "$argument"
"""
"""In the place of the template's plain text: 500 where no replica takes or ends a request, and 404 for what is of no
application."""
_INSERT = """# Once only: HAProxy is started with the same file to check it and to run it.
        grep -q '^# dspool$' "$argument" || sed -i -e '/^global$/r {global_}' \\
            -e '/^frontend http_frontend$/,/^ *bind /{{
            /^ *bind /{{
                {address}
                {tls}
                r {frontend}
            }}
        }}' -e '$r {sections}' -e '$a # dspool' "$argument"
"""
_LEASH = """
import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (AttributeError, OSError):
    pass
# Who died before that can send no more signals.
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes HAProxy, which the kernel ends together with its parent (`PR_SET_PDEATHSIG`), however that ends."""


def write(
    directory: Path,
    haproxy: str,
    *,
    metrics_port: int,
    stats_port: int,
    request_s: float,
    client_header: str | None = None,
    tls: tuple[Path, Path] | None,
    host: str | None = None,
    limits: Limits | None = None,
) -> Path | None:
    """The script, in `directory`, with the corrections that are on; None when none is.

    Args:
        haproxy: the real one.
        metrics_port, stats_port: those of Serve's two pages.
        request_s: how long a client may take to send the first 16 KiB of a request's body.
        client_header: the header in which a replica gets the client's address; None: it does not.
        tls: certificate chain and private key.
        host: where the frontend listens; None leaves it where Serve has it.

    Raises:
        ConfigError: TLS is not possible, the certificate and the key do not fit, or `host` is no address.
    """
    loopback, leash, frontend = map(active, ("haproxy-loopback", "haproxy-leash", "haproxy-frontend"))
    if tls is not None and not frontend:
        raise ConfigError(
            "TLS is a part of the correction haproxy-frontend, which is off; `dspool doctor` says why",
            key="service.tls_cert",
        )
    if not (loopback or leash or frontend):
        return None
    edits = ""
    if loopback:
        edits += _LOOPBACK.format(metrics_port=metrics_port, stats_port=stats_port)
    if frontend:
        rules = files(
            directory,
            limits or Limits(),
            body_s=request_s,
            strict=tls is not None,
            client_header=client_header,
        )
        edits += _PROBLEMS.format(directory=directory) + "        "
        edits += _INSERT.format(
            global_=rules["global"],
            frontend=rules["frontend"],
            sections=rules["sections"],
            address="" if host is None else rf"s#bind .*:\([0-9]*\)$#bind {addresses(host)}#",
            tls=_tls_command(directory, tls),
        )
    script = directory / "haproxy"
    script.write_text(
        _SCRIPT.format(
            note_pid=f"echo $$ >> {shlex.quote(str(directory / PIDS))}" if leash else "",
            edits=edits or ":",
            leash=f'{shlex.quote(sys.executable)} -I -S -c {shlex.quote(_LEASH)} "$PPID"' if leash else "",
            binary=shlex.quote(haproxy),
        )
    )
    script.chmod(0o700)
    return script


def pids(directory: Path) -> list[int]:
    """The HAProxy processes ever started with the script in `directory`; most are gone."""
    try:
        return [int(line) for line in (directory / PIDS).read_text().split() if line.isdigit()]
    except OSError:
        return []


def _tls_command(directory: Path, tls: tuple[Path, Path] | None) -> str:
    """The `sed` command that makes the frontend speak TLS."""
    if tls is None:
        return ""
    certificate, key = tls
    try:
        # Also proves that the two belong together.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, lambda: b"")
        if key.stat().st_mode & stat.S_IRWXO:
            raise ConfigError(f"{key} may be read by everybody; chmod 600 it", key="service.tls_key")
        both = certificate.read_bytes() + b"\n" + key.read_bytes()
    except (OSError, ssl.SSLError) as failed:
        raise ConfigError(
            f"TLS with {certificate} and {key} is not possible: {failed.strerror or type(failed).__name__}",
            key="service.tls_cert",
        ) from failed
    pem = directory / "tls.pem"
    pem.touch(mode=0o600)
    pem.write_bytes(both)
    return f"s#$# ssl crt {pem} alpn h2,http/1.1 ssl-min-ver TLSv1.2#"


__all__ = ["pids", "write"]
