"""Who looks at the dashboard: a cookie made by logging in with a token, and the word that guards against forged forms.

Every ingress process knows every login: the cookie says which token it was made with, when it began and when it ends,
under an HMAC whose key is known to this pool's processes alone and which covers the token's hash, name and role. A
token that is removed, replaced, expired or of another role takes its logins with it, and the end of the pool takes all.
A copy of the tokens file is worth nothing here either, for the key is not in it.

Only logins that were ended by their owners are kept, in the pool's store, until they would have ended anyway.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import re
import secrets
import time
from collections.abc import Callable
from typing import Final, Protocol

from dspool.core.admission.access import Token, Tokens
from dspool.errors import PoolError
from dspool.store.logins import Ended, together
from dspool_serve.http.requests import Login

COOKIE: Final = "dspool_login"
PATHS: Final = ("/dashboard", "/v1")
"""Where the page is, and what it asks. Nothing else takes the cookie, and so nothing else gets it."""
IDLE_S: Final = 3600.0
"""A login ends when the page was closed for so long."""
LONGEST_S: Final = 12 * 3600.0
"""And after this in any case."""
FRESH_S: Final = 1.0
"""How long what was heard of ended logins counts."""
ANSWER_S: Final = 2.0
AGAIN_S: Final = 5.0
"""After so long a store that did not answer is asked again."""
_VALUE: Final = re.compile(r"([0-9a-f]{8})\.(\d{1,12})\.(\d{1,12})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})")
_NOBODY: Final = "0" * 64


Header = tuple[bytes, bytes]


class LoginStore(Protocol):
    """Where all ingress processes keep which logins were ended."""

    async def end_login(self, token: str, login: str, until: float) -> Ended: ...
    async def ended_logins(self) -> Ended: ...


class Logins:
    """Makes and recognises cookies. `key` is 32 bytes that all ingress processes of the service share."""

    def __init__(
        self,
        key: Callable[[], bytes],
        store: Callable[[], LoginStore | None] = lambda: None,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key, self._store = key, store
        self._wall, self._clock = wall, clock
        self._ended: Ended = {}
        self._ask_at = clock()
        self._asking = asyncio.Lock()

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
        same = hmac.compare_digest(seal, self._seal(body, token))
        if token is None or not same or token.expired(self._wall()):
            return None
        login = Login(token, int(began), int(ends), nonce)
        return login if self.still_has(login) else None

    def still_has(self, login: Login) -> bool:
        """Whether `login`, recognised earlier, goes on; what became of its token is another question."""
        return self._wall() < login.ends and login.nonce not in self._ended.get(login.token.id, ())

    async def refresh(self) -> None:
        """Hear of logins that were ended at other ingress processes, if that was not done just now.

        While the store is away, what is known counts: who is logged in must be able to look what is wrong.
        """
        if self._clock() < self._ask_at:
            return
        async with self._asking:
            store = self._store()
            if store is None or self._clock() < self._ask_at:
                return
            try:
                self._hear(await asyncio.wait_for(store.ended_logins(), ANSWER_S))
                self._ask_at = self._clock() + FRESH_S
            except (PoolError, TimeoutError):
                self._ask_at = self._clock() + AGAIN_S

    async def end(self, login: Login) -> None:
        """The login counts no more, here at once and at all other ingress processes within about a second.

        Raises:
            PoolError: they cannot be told now.
        """
        token, until = login.token.id, login.began + LONGEST_S
        self._hear({token: {login.nonce: until}})
        if (store := self._store()) is not None:
            self._hear(await store.end_login(token, login.nonce, until))

    def _hear(self, ended: Ended) -> None:
        # Nothing is taken back: the store may have lost what this process still knows.
        self._ended = together(self._ended, ended, now=self._wall())

    def cookies(self, login: Login, *, secure: bool, root_path: str = "") -> tuple[Header, ...]:
        """The headers that begin or prolong a login. `root_path` stands before the service's paths in the browser."""
        body = f"{login.token.id}.{login.began}.{login.ends}.{login.nonce}"
        value = f"{body}.{self._seal(body, login.token)}"
        return _set_cookies(value, max(0, login.ends - int(self._wall())), secure=secure, root_path=root_path)

    def csrf(self, login: Login | None) -> str:
        """What a request that changes something must repeat in a header, which no form and no other site can send.

        Without tokens everybody is the same, and so is the word; that a header is there is the guard then.
        """
        about = "local" if login is None else f"{login.token.id}.{login.nonce}"
        return _text(hmac.digest(self._key(), f"csrf:{about}".encode(), "sha256"))

    def _seal(self, body: str, token: Token | None) -> str:
        about = _NOBODY if token is None else f"{token.sha256}:{token.role}:{token.name}"
        return _text(hmac.digest(self._key(), f"login:{about}:{body}".encode(), "sha256"))


def no_cookies(*, secure: bool, root_path: str = "") -> tuple[Header, ...]:
    """The headers that end a login in the browser."""
    return _set_cookies("", 0, secure=secure, root_path=root_path)


def cookie_of(header: bytes | None) -> str | None:
    """The value of our cookie in a `Cookie` header."""
    for part in (header or b"").decode("latin-1").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return None


def _set_cookies(value: str, seconds: int, *, secure: bool, root_path: str) -> tuple[Header, ...]:
    flags = "HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")
    return tuple(
        (b"set-cookie", f"{COOKIE}={value}; Path={root_path}{path}; Max-Age={seconds}; {flags}".encode())
        for path in PATHS
    )


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


__all__ = ["COOKIE", "Logins", "cookie_of", "no_cookies"]
