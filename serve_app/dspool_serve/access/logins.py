"""Who looks at the dashboard: a cookie made by logging in with a token, and the word that guards against forged forms.

Nothing is kept on the server, so every ingress process knows every login: the cookie says which token it was made
with, when it began and when it ends, under an HMAC whose key is known to this pool's processes alone and which covers
the token's hash. A token that is removed, replaced or expired takes its logins with it. A copy of the tokens file is
worth nothing here either, for the key is not in it.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import time
from collections.abc import Callable
from typing import Final

from dspool.core.admission.access import Token, Tokens
from dspool_serve.http.requests import Login

COOKIE: Final = "dspool_login"
PATH: Final = "/"
"""The page is below `/dashboard/`, what it asks below `/v1/`; nothing else takes the cookie."""
IDLE_S: Final = 3600.0
"""A login ends when the page was closed for so long."""
LONGEST_S: Final = 12 * 3600.0
"""And after this in any case."""
_VALUE: Final = re.compile(r"([0-9a-f]{8})\.(\d{1,12})\.(\d{1,12})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})")
_NOBODY: Final = "0" * 64


class Logins:
    """Makes and recognises cookies. `key` is 32 bytes that all ingress processes of the service share."""

    def __init__(self, key: Callable[[], bytes], *, wall: Callable[[], float] = time.time) -> None:
        self._key = key
        self._wall = wall

    def begin(self, token: Token) -> Login:
        now = int(self._wall())
        return self._lasting(Login(token, now, now, secrets.token_urlsafe(16)), now)

    def renewed(self, login: Login) -> Login | None:
        """The same login for longer; None if it need not be renewed yet, or cannot be any more."""
        now = int(self._wall())
        if login.ends - now > IDLE_S / 2:
            return None
        longer = self._lasting(login, now)
        return longer if longer.ends > login.ends else None

    def _lasting(self, login: Login, now: int) -> Login:
        limits = [now + IDLE_S, login.began + LONGEST_S]
        if login.token.expires_at is not None:
            limits.append(login.token.expires_at)
        return login._replace(ends=int(min(limits)))

    def recognise(self, cookie: str | None, tokens: Tokens) -> Login | None:
        """The login that a cookie of ours names; None if it is none, has ended, or its token is no more."""
        shape = _VALUE.fullmatch(cookie or "")
        if shape is None:
            return None
        id, began, ends, nonce, seal = shape.groups()
        token = tokens.get(id)
        body = f"{id}.{began}.{ends}.{nonce}"
        # An unknown id costs the same comparison, so that the time taken does not tell which ids exist.
        same = hmac.compare_digest(seal, self._seal(body, token.sha256 if token is not None else _NOBODY))
        if token is None or not same or token.expired(self._wall()):
            return None
        login = Login(token, int(began), int(ends), nonce)
        return login if self.still_has(login) else None

    def still_has(self, login: Login) -> bool:
        """Whether `login`, recognised earlier, goes on; what became of its token is another question."""
        return self._wall() < login.ends

    def cookie(self, login: Login, *, secure: bool) -> bytes:
        """The value of `Set-Cookie` that begins or prolongs a login."""
        body = f"{login.token.id}.{login.began}.{login.ends}.{login.nonce}"
        value = f"{body}.{self._seal(body, login.token.sha256)}"
        return _set_cookie(value, max(0, login.ends - int(self._wall())), secure=secure)

    def csrf(self, login: Login | None) -> str:
        """What a request that changes something must repeat in a header, which no form and no other site can send.

        Without tokens everybody is the same, and so is the word; that a header is there is the guard then.
        """
        about = "local" if login is None else f"{login.token.id}.{login.nonce}"
        return _text(hmac.digest(self._key(), f"csrf:{about}".encode(), "sha256"))

    def _seal(self, body: str, hash_of_token: str) -> str:
        return _text(hmac.digest(self._key(), f"session:{hash_of_token}:{body}".encode(), "sha256"))


def end(*, secure: bool) -> bytes:
    """The value of `Set-Cookie` that ends a login in the browser."""
    return _set_cookie("", 0, secure=secure)


def cookie_of(header: bytes | None) -> str | None:
    """The value of our cookie in a `Cookie` header."""
    for part in (header or b"").decode("latin-1").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return None


def _set_cookie(value: str, seconds: int, *, secure: bool) -> bytes:
    flags = "; Secure" if secure else ""
    return f"{COOKIE}={value}; Path={PATH}; Max-Age={seconds}; HttpOnly; SameSite=Strict{flags}".encode()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


__all__ = ["COOKIE", "Logins", "cookie_of", "end"]
