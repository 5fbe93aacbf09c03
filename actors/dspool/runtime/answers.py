"""The pool's answer cache as an actor, and the workers' side of it."""

from __future__ import annotations

from typing import Any, Final

import ray
from ray.actor import ActorHandle

from dspool.answers import LocalAnswers, SharedAnswers
from dspool.config import PoolConfig
from dspool.core.answers import CacheReply
from dspool.runtime.cluster import NAMESPACE, actor_name, find_actor
from dspool.telemetry import logs

ROLE: Final = "answers"
_ANSWER_S: Final = 0.5


class AnswersActor:
    """Holds answers in its memory. One that is restarted begins without any."""

    def __init__(self, config: PoolConfig) -> None:
        logs.configure(config)
        self._name = config.name
        self._answers = SharedAnswers(config.cache)
        self._local = LocalAnswers(self._answers)

    def __repr__(self) -> str:
        return f"dspool answers {self._name}"

    async def look_up(self, key: bytes, asker: str) -> tuple[str, bytes]:
        reply = self._answers.look_up(key, asker)
        return reply.kind, reply.answer

    async def wait(self, key: bytes, wait_s: float) -> None:
        await self._local.wait(key, wait_s)

    async def keep(self, key: bytes, asker: str, answer: bytes) -> None:
        self._answers.keep(key, asker, answer)

    async def give_up(self, key: bytes, asker: str) -> None:
        self._answers.give_up(key, asker)

    async def heard(self, askers: list[str]) -> None:
        self._answers.heard(askers)


class RemoteAnswers:
    """An `AnswersLink` to the actor, found at the first question."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._handle: ActorHandle[Any] | None = None

    async def look_up(self, key: bytes, asker: str) -> CacheReply:
        if self._handle is None:
            self._handle = await find_actor(self._pool, ROLE)
        kind, answer = await self._handle.look_up.remote(key, asker)
        return CacheReply(kind, answer)

    def look_up_blocking(self, key: bytes, asker: str) -> CacheReply:
        if self._handle is None:
            self._handle = ray.get_actor(actor_name(self._pool, ROLE), namespace=NAMESPACE)
        return CacheReply(*ray.get(self._handle.look_up.remote(key, asker), timeout=_ANSWER_S))

    async def wait(self, key: bytes, wait_s: float) -> None:
        await self._there().wait.remote(key, wait_s)

    def wait_blocking(self, key: bytes, wait_s: float) -> None:
        ray.get(self._there().wait.remote(key, wait_s), timeout=wait_s + _ANSWER_S)

    def keep(self, key: bytes, asker: str, answer: bytes) -> None:
        self._there().keep.remote(key, asker, answer)

    def give_up(self, key: bytes, asker: str) -> None:
        self._there().give_up.remote(key, asker)

    def heard(self, askers: list[str]) -> None:
        self._there().heard.remote(askers)

    def _there(self) -> ActorHandle[Any]:
        if self._handle is None:
            raise RuntimeError("nothing was looked up yet")
        return self._handle
