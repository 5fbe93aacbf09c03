"""How a client and a worker prove to each other that they know the pool's secret, and the keys that come of it.

    worker to client   Challenge(share, version)
    client to worker   Hello(proof, client, share, version)
    worker to client   Welcome(proof)

A proof is an HMAC under the secret over the role of who gives it and a transcript: the version, both ids, both shares.
So none serves for another connection, worker, client, direction or version, whoever carries it where.
A share is a fresh X25519 key, and the keys of the connection come of both shares and the secret: nobody can make one
end use old keys again, and who learns the secret later cannot read what was recorded before.

What goes over the wire until then is a message of this module behind its length (4 bytes), and nothing else.
"""

from __future__ import annotations

import hmac
from typing import Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

VERSION = 2
"""Of what both ends say to each other. Another one is refused: nobody can talk two ends down to an older."""
MAX_HELLO_BYTES = 1024
_KEY_BYTES = 32


class HandshakeFailed(ConnectionError):
    """`str()` says why, and with whom."""


class Challenge(Struct, frozen=True, array_like=True, tag="challenge"):
    """The worker's first word. All versions can read this much of it; version 1 does not name itself."""

    share: bytes
    version: int = 1


class Hello(Struct, frozen=True, array_like=True, tag="hello"):
    proof: bytes
    client: str
    share: bytes
    version: int = 1


class Welcome(Struct, frozen=True, array_like=True, tag="welcome"):
    proof: bytes


class Keys(Struct, frozen=True):
    to_worker: bytes
    to_client: bytes


class Handshake:
    """One end's part in the handshake of one connection. `secret` is the pool's; its key is new, unless given."""

    def __init__(self, secret: bytes, private: X25519PrivateKey | None = None) -> None:
        self._secret = secret
        self._private = X25519PrivateKey.generate() if private is None else private
        self.share = self._private.public_key().public_bytes_raw()

    def transcript(self, *, worker: str, worker_share: bytes, client: str, client_share: bytes) -> bytes:
        return _encode(("dspool", VERSION, worker, worker_share, client, client_share))

    def proof(self, role: Literal["client", "worker"], transcript: bytes) -> bytes:
        return hmac.digest(self._secret, _encode((role, transcript)), "sha256")

    def proven(self, role: Literal["client", "worker"], transcript: bytes, proof: bytes) -> bool:
        return hmac.compare_digest(self.proof(role, transcript), proof)

    def keys(self, other_share: bytes, transcript: bytes) -> Keys:
        """For an end that has proven itself: others do not get this far.

        Raises:
            HandshakeFailed: the share is no key.
        """
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(other_share))
        except ValueError:
            raise HandshakeFailed("its share is no key") from None
        both = HKDF(SHA256(), 2 * _KEY_BYTES, salt=self._secret, info=transcript).derive(shared)
        return Keys(to_worker=both[:_KEY_BYTES], to_client=both[_KEY_BYTES:])


def rehearse() -> None:
    """Have OpenSSL load what a handshake takes, before a fork. No random number is drawn: children would share it."""
    end = Handshake(b"", X25519PrivateKey.from_private_bytes(bytes(_KEY_BYTES)))
    end.keys(end.share, end.proof("worker", b""))


_encode = msgspec.msgpack.Encoder().encode
decode_challenge = msgspec.msgpack.Decoder(Challenge).decode
decode_hello = msgspec.msgpack.Decoder(Hello).decode
decode_welcome = msgspec.msgpack.Decoder(Welcome).decode


def greeting(message: Challenge | Hello | Welcome) -> bytes:
    """`message` as it goes over the wire."""
    data = _encode(message)
    return len(data).to_bytes(4, "big") + data


def other_version(version: int) -> str:
    """What to say of an end that speaks `version`."""
    return f"it speaks version {version} of the exchange, this end version {VERSION}: upgrade the older one"
