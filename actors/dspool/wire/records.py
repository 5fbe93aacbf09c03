"""Messages under a key: encrypted, authenticated, in order.

A message travels as one record, or as several if it is long. A record is a 4-byte header (its highest bit: the message
goes on; the rest: the length) and AES-256-GCM of the piece, under the key of this direction of this connection. The
header is authenticated too. The nonce is the number of the record, which does not travel: a record that was changed,
left out, repeated, moved or sent back does not open.

Records are short: without the key nobody makes an end keep more than one, and ciphers do not hold the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Raw

HEADER_BYTES = 4
RECORD_BYTES = 256 * 1024
"""At most, of a message in one record."""
MAX_SEALED_BYTES = RECORD_BYTES + 16
_MORE = 1 << 31
_TAG_BYTES = 16
_NONCE_BYTES = 12

Payload = bytes | Raw
Arrived = bytes | bytearray | memoryview


class BadRecord(Exception):
    """`str()` says why."""


class Sealer:
    """Makes the records of one direction."""

    def __init__(self, key: bytes) -> None:
        self._encrypt = AESGCM(key).encrypt
        self._count = 0

    def seal(self, parts: Sequence[Payload]) -> Iterator[bytes]:
        """The records of the message that `parts` make together; all of them have to be sent, in this order.

        Each is made when it is asked for, and has bytes of one part only: no part is copied.
        """
        pieces = [
            memoryview(part)[start : start + RECORD_BYTES]
            for part in parts
            for start in range(0, len(part), RECORD_BYTES)
        ]
        for piece in pieces[:-1]:
            yield self.record(piece, _MORE)
        yield self.record(pieces[-1] if pieces else b"")

    def record(self, piece: Payload | memoryview, more: int = 0) -> bytes:
        """The next record: `piece` of at most `RECORD_BYTES`, a whole message unless there is `more`."""
        header = (more | len(piece) + _TAG_BYTES).to_bytes(HEADER_BYTES, "big")
        nonce = self._count.to_bytes(_NONCE_BYTES, "big")
        self._count += 1
        return header + self._encrypt(nonce, piece, header)


class Opener:
    """Opens the records of one direction, and puts messages together."""

    def __init__(self, key: bytes, max_message_bytes: int) -> None:
        self._decrypt = AESGCM(key).decrypt
        self._count = 0
        self._max_message_bytes = max_message_bytes
        self._begun = bytearray()

    def open(self, header: Arrived, sealed: Arrived) -> bytes | bytearray | None:
        """The message that ends with this record; None if it goes on.

        Raises:
            BadRecord: it is not the next one of the other end, or the message is too long.
        """
        nonce = self._count.to_bytes(_NONCE_BYTES, "big")
        self._count += 1
        try:
            piece = self._decrypt(nonce, sealed, header)
        except (InvalidTag, ValueError):
            raise BadRecord("a record is not the next one of the other end") from None
        more = header[0] & 0x80
        if not more and not self._begun:
            return piece
        if len(self._begun) + len(piece) > self._max_message_bytes:
            raise BadRecord(f"a message has more than {self._max_message_bytes:,} bytes")
        self._begun += piece
        if more:
            return None
        message, self._begun = self._begun, bytearray()
        return message


def length(header: Arrived) -> int:
    """Bytes of what follows this header."""
    return int.from_bytes(header, "big") & ~_MORE
