"""What data URLs, base64 and files of a form hold, and which URLs may be passed on: texts in, texts out."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import unicodedata
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

_DATA: Final = re.compile(
    r"data:([a-zA-Z0-9.+-]+/[a-zA-Z0-9.+-]+)?((?:;[a-zA-Z0-9.+_-]+=[^;,]*)*);base64,", re.A
)
_NAME: Final = re.compile(r";(?:file)?name=([^;,]*)")
OCTETS: Final = "application/octet-stream"
_SIGNS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mp3"),
    (b"\xff\xfb", "audio/mp3"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
)
"""How files of these kinds begin."""
_CONTAINERS: Final = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}


_OWN_NAMES: Final = (".localhost", ".localdomain", ".local", ".internal", ".home.arpa", ".lan")
_HOST: Final = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)+")
_IN_NUMBERS: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""The last part of a host that whoever resolves it takes for an address."""
_LEADS_TO_V4: Final = ipaddress.IPv6Network("64:ff9b::/96")
_MADE_OF_V4: Final = tuple(map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48")))
"""Old and local ways to write an IPv4 address: nobody on the internet has one."""


class NotAMedium(ValueError):
    """`str()` says what is wanted, and nothing of what came."""


class Content(NamedTuple):
    """What a data URL, base64 or a file of a form holds."""

    mime: str
    text: str
    """Base64."""
    filename: str | None = None

    @property
    def url(self) -> str:
        return f"data:{self.mime};base64,{self.text}"


def content_of(value: Any, wanted: str = "") -> Content | None:
    """What a data URL, base64 or a file of a form holds, if `value` is one; `wanted` is how its kind must begin.

    Raises:
        NotAMedium: it is one, but broken, or of another kind.
    """
    name = None
    if isinstance(value, dict) and value.keys() <= {"file_data", "filename"} and "file_data" in value:
        name, value = value.get("filename"), value["file_data"]
    if not isinstance(value, str):
        return None
    if (head := _DATA.match(value)) is not None:
        mime, text = (head[1] or OCTETS).lower(), value[head.end() :]
        named = _NAME.search(head[2] or "")
        name = name or (unquote(named[1]) if named is not None else None)
    elif value.startswith("data:"):
        raise NotAMedium("expected a data URL with base64: data:<type>;base64,<content>")
    else:
        mime, text = OCTETS, value
    start = decoded(text)
    if mime in (OCTETS, "text/plain") or (wanted and not mime.startswith(wanted)):
        mime = _kind(start) or mime
    if wanted and not mime.startswith(wanted):
        raise NotAMedium(f"expected content of a type that begins with {wanted}")
    return Content(mime, text, name if isinstance(name, str) else None)


def decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NotAMedium("expected a data URL, or content in base64") from None


def _kind(content: bytes) -> str | None:
    if content[:4] == b"RIFF":
        return _CONTAINERS.get(content[8:12])
    return next((mime for sign, mime in _SIGNS if content.startswith(sign)), None)


def refuse_own_network(url: str) -> None:
    """Refuse a URL by which whoever fetches it would reach a machine of its own network.

    Raises:
        NotAMedium: it names this machine, or an address that is not of the internet.
    """
    try:
        own = "\\" in url or not _is_of_the_internet(urlsplit(url).hostname or "")
    except ValueError:
        # Such as an address in hexadecimal or with fewer than four parts, which some take for one.
        own = True
    if own:
        raise NotAMedium("expected a URL of a host on the internet")


def _is_of_the_internet(host: str) -> bool:
    """Raises `ValueError` where it is nobody's name."""
    # As whoever fetches it writes the name down: other digits, letters and dots become those of ASCII, and what is not
    # seen goes.
    host = unicodedata.normalize("NFKC", host).replace("\u3002", ".").rstrip(".").lower()
    if ":" in host:
        return _is_global(ipaddress.ip_address(host))
    if not host.isascii():
        host = host.encode("idna").decode()
    # A name without a dot is of a network's own.
    if _HOST.fullmatch(host) is None or host.endswith(_OWN_NAMES):
        return False
    last = host.rpartition(".")[2]
    return _IN_NUMBERS.fullmatch(last) is None or _is_global(ipaddress.ip_address(host))


def _is_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in _MADE_OF_V4):
            return False
        if address in _LEADS_TO_V4:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        else:
            address = address.ipv4_mapped or address.sixtofour or address
    return address.is_global


__all__ = ["OCTETS", "Content", "NotAMedium", "content_of", "decoded", "refuse_own_network"]
