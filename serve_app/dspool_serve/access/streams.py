"""The event streams that are open in one ingress process: how many there may be, and when each loses its right.

A stream may last for days; that it was allowed when it began is not enough. Once a second each is looked at, whatever
it sends and whoever made it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from dspool.core.admission.access import Token
from dspool.errors import PoolError, RateLimited, Unauthenticated
from dspool.tokens import TokenSource
from dspool_serve.access.logins import Logins
from dspool_serve.http.event_stream import EventStream
from dspool_serve.http.requests import Login

log = logging.getLogger("dspool.http")
CHECK_S: Final = 1.0
MAX_OPEN: Final = 2048
MAX_EACH: Final = 512


class Right(NamedTuple):
    """What a stream was opened with."""

    token: Token
    login: Login | None

    def holds(self, tokens: TokenSource, logins: Logins | None, now: float) -> bool:
        if not tokens.current().still_has(self.token, now=now):
            return False
        return self.login is None or (logins is not None and logins.still_has(self.login))


class OpenStreams:
    """At most `most` streams, and `each` of one principal. One event loop owns it.

    Args:
        tokens: None: everybody may do everything, for as long as they like.
    """

    def __init__(
        self,
        most: int = MAX_OPEN,
        each: int = MAX_EACH,
        *,
        tokens: TokenSource | None = None,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._most, self._each = most, each
        self._tokens, self._wall, self._sleep = tokens, wall, sleep
        self._by_principal: Counter[str] = Counter()
        self._watched: dict[EventStream, Right] = {}
        self._logins: Logins | None = None
        self._watching: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return self._by_principal.total()

    def enter(self, principal: str) -> None:
        """Count one more stream of `principal`; `leave` when it ended, or did not come about.

        Raises:
            RateLimited: it has too many, or all together have.
        """
        if self._by_principal[principal] >= self._each:
            raise RateLimited(f"{principal} has {self._each} event streams open", retry_after_s=CHECK_S)
        if len(self) >= self._most:
            raise RateLimited(f"{self._most} event streams are open here", retry_after_s=CHECK_S)
        self._by_principal[principal] += 1

    def leave(self, principal: str) -> None:
        self._by_principal[principal] -= 1
        if not self._by_principal[principal]:
            del self._by_principal[principal]

    def watch(self, stream: EventStream, right: Right, logins: Logins | None) -> None:
        """End `stream` when `right` is no more."""
        self._logins = logins
        self._watched[stream] = right
        stream.on_end.append(lambda: self._forget(stream))
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    def _forget(self, stream: EventStream) -> None:
        self._watched.pop(stream, None)

    async def _watch(self) -> None:
        while self._watched:
            await self._sleep(CHECK_S)
            try:
                await self._check()
            except Exception:
                # Else all that are open would never be looked at again.
                log.exception("the rights of open event streams could not be checked")

    async def _check(self) -> None:
        assert self._tokens is not None
        if self._logins is not None and any(right.login for right in self._watched.values()):
            await self._logins.refresh()
        now = self._wall()
        for stream, right in list(self._watched.items()):
            if not right.holds(self._tokens, self._logins, now):
                # Once is enough, also where its end takes a while.
                del self._watched[stream]
                stream.end(_NO_MORE)


_NO_MORE: Final[PoolError] = Unauthenticated("what this stream was opened with is not valid any more")

__all__ = ["OpenStreams", "Right"]
