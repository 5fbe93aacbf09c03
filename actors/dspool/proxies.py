"""What goes through the environment's HTTP proxies (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`), and what never does."""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableMapping
from ipaddress import ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine itself: a name below `localhost`, 127.0.0.0/8, ::1 (with brackets or without)."""
    host = host.strip("[]").rstrip(".").lower()
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def keep_loopback_direct(
    urls: Iterable[str | None] = (), environ: MutableMapping[str, str] | None = None
) -> None:
    """If the environment has a proxy, add this machine to `NO_PROXY`, and what of `urls` is on it.

    For this process and what it starts: all HTTP clients of Python read it. What stands there already stays.
    """
    environ = os.environ if environ is None else environ
    if not any(environ.get(name) or environ.get(name.upper()) for name in _PROXIES):
        return
    # Where both are set, the lower-case one holds.
    kept = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").strip()
    names = [name for part in kept.split(",") if (name := part.strip())]
    if "*" in names:
        return
    hosts = [host for url in urls if url and (host := urlsplit(url).hostname) and is_loopback(host)]
    names += [host for host in (*_LOOPBACK, *hosts) if host not in names]
    environ["no_proxy"] = environ["NO_PROXY"] = ",".join(dict.fromkeys(names))


def proxy_for(url: str | None) -> str | None:
    """`host:port` of the proxy through which this process reaches `url` (None: some HTTPS address); None: directly."""
    target = urlsplit(url or "https://")
    proxies = getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if not proxy or (target.hostname and proxy_bypass(target.hostname)):
        return None
    return _shown(urlsplit(proxy if "://" in proxy else f"http://{proxy}"))


def _shown(proxy: SplitResult) -> str:
    """Without a user's name and password."""
    _, _, place = proxy.netloc.rpartition("@")
    return place
