"""How often each address may be wrong. Pure: `now` is an argument."""

from __future__ import annotations

import ipaddress
from typing import Final

from dspool.core.admission.rates import Rate

REMEMBERED: Final = 4096
"""Addresses. Who has more of them than this gets more attempts, and no memory of ours."""
_LONGEST: Final = 64
_V6_HOST_BITS: Final = 64


class Attempts:
    """`at_once` wrong attempts of one address, and as many again in each `period_s`."""

    def __init__(self, at_once: int, period_s: float, *, remembered: int = REMEMBERED) -> None:
        self._at_once, self._per_s = at_once, at_once / period_s
        self._remembered = remembered
        self._by_address: dict[str, Rate] = {}
        """The one that was wrong last stands last."""

    def __len__(self) -> int:
        return len(self._by_address)

    def count(self, address: str, *, now: float) -> float:
        """One more of `address` was wrong. 0 if it may be told so, else the seconds until its next one may."""
        key = holder_of(address)
        rate = self._by_address.pop(key, None) or Rate(self._per_s, self._at_once, now=now)
        self._by_address[key] = rate
        if len(self._by_address) > self._remembered:
            del self._by_address[next(iter(self._by_address))]
        return rate.take(now)


def holder_of(address: str) -> str:
    """Who has `address`: itself, or for IPv6 its network of 64 bits, all of which one holder has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:_LONGEST]
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(ip) >> _V6_HOST_BITS << _V6_HOST_BITS, 128 - _V6_HOST_BITS)))


__all__ = ["Attempts", "holder_of"]
