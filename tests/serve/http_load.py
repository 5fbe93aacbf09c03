"""Requests by HTTP beside what a test does to the service, and what they were answered with."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import httpx

from tests.serve.test_service import ENDS_S


class HttpLoad:
    """Tasks that ask for as long as the block lasts. A subclass says what one of them asks."""

    tasks = 8

    def __init__(self, url: str) -> None:
        self.url, self.ended = url, threading.Event()
        self.answers: Counter[str] = Counter()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._thread.join(ENDS_S)

    async def _run(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=ENDS_S, trust_env=False) as http:
            await asyncio.gather(*(self.ask(http, number) for number in range(self.tasks)))

    async def ask(self, http: httpx.AsyncClient, number: int) -> None:
        """Ask until `ended` is set; `number` tells the tasks apart."""
        raise NotImplementedError
