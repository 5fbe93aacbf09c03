"""Callers of a service over HTTP, who write down what each request met, and what follows from their books.

Some ask a program that may be repeated, at fixed times whatever became of the requests before, as the users of a
service do; the others change a variable of a session and read it back, one after the other. Nobody tries again: a
balancer or a client that does so would meet less.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, NamedTuple

import httpx

POOL: Final = "/v1/pools/default"
QUESTION: Final = {"context": "Ray was started at Berkeley.", "question": "Where was Ray started?"}
DEADLINE_S: Final = 20.0
GRACE_S: Final = 5.0
"""An answer that comes later than its deadline by more is none."""
PAUSE_S: Final = 0.1
ASK_EVERY_S: Final = 0.2
SLOW_ANSWER_S: Final = 2.0
READ_S: Final = 30.0


class Asked(NamedTuple):
    """One request. Times are monotonic seconds."""

    caller: str
    began: float
    ended: float
    trouble: str
    """What it met; empty if it went well."""


class Load:
    """`async with Load(urls, headers) as load`: they ask at each of `urls` in turn until the block ends."""

    def __init__(
        self, urls: Sequence[str], headers: dict[str, str], *, sessions: int = 8, askers: int = 4
    ) -> None:
        self._urls = list(urls)
        self._headers = headers
        self._sessions = [f"bench-{time.monotonic_ns()}-{number}" for number in range(sessions)]
        self._askers = askers
        self.asked: list[Asked] = []
        self.hanging = 0
        self.stale: list[str] = []
        """Reads that found a value older than an acknowledged one, and no change that failed explains it: such a change
        may still be made, as a request that a lost connection held up."""
        self.acknowledged: dict[str, int] = {}
        self._acknowledged_at: dict[str, list[float]] = {session: [] for session in self._sessions}
        self._failed_changes: dict[str, set[int]] = {session: set() for session in self._sessions}
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._http = httpx.AsyncClient(
            headers=self._headers,
            timeout=httpx.Timeout(DEADLINE_S + GRACE_S, connect=2.0),
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )
        for number in range(self._askers):
            self._tasks.append(asyncio.ensure_future(self._ask(f"asker {number}", number)))
        for number, session in enumerate(self._sessions):
            self._tasks.append(asyncio.ensure_future(self._change(session, number)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()
        await self._http.aclose()

    async def end(self) -> None:
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        self._tasks.clear()

    async def flowing(self) -> None:
        """Returns once every caller had an answer since this was called."""
        began = time.monotonic()
        callers = {*self._sessions, *(f"asker {number}" for number in range(self._askers))}

        def well() -> set[str]:
            return {one.caller for one in self.asked if one.began >= began and not one.trouble}

        while not callers <= well():  # noqa: ASYNC110
            await asyncio.sleep(PAUSE_S)

    # --- what follows from the books ---

    def failed(self, since: float) -> Counter[str]:
        return Counter(one.trouble for one in self.asked if one.trouble and one.ended >= since)

    def traffic_gap_s(self, since: float) -> float:
        """The longest time in which nobody who asked the program got an answer."""
        return max(self._gaps(lambda caller: caller.startswith("asker"), since), default=0.0)

    def sessions_back_s(self, since: float) -> float | None:
        """How long after `since` the last of the sessions was served again: its first answer after its longest gap.
        None: one of them is not served yet."""
        backs = [self._back_s(session, since) for session in self._sessions]
        return None if None in backs else max((back for back in backs if back is not None), default=0.0)

    def _back_s(self, session: str, since: float) -> float | None:
        """0.0 for a session that was served all the time: no gap of it is longer than a slow answer."""
        asked = [one for one in self.asked if one.caller == session and one.ended >= since]
        ends = sorted(one.ended for one in asked if not one.trouble)
        gaps = [(late - early, late) for early, late in itertools.pairwise([since, *ends])]
        longest, back_at = max(gaps, default=(0.0, since))
        if time.monotonic() - (ends or [since])[-1] > max(longest, SLOW_ANSWER_S):
            return None
        return back_at - since if longest > SLOW_ANSWER_S or any(one.trouble for one in asked) else 0.0

    def changes_back_s(self, since: float) -> float | None:
        """How long after `since` a change of each of the sessions was acknowledged. None: one of them had none yet."""
        backs = [
            next((at - since for at in self._acknowledged_at[session] if at >= since), None)
            for session in self._sessions
        ]
        return None if None in backs else max((back for back in backs if back is not None), default=0.0)

    def _gaps(self, mine: Callable[[str], bool], since: float) -> list[float]:
        ends = sorted(
            one.ended for one in self.asked if mine(one.caller) and not one.trouble and one.ended >= since
        )
        return [late - early for early, late in itertools.pairwise([since, *ends])]

    async def lost_changes(self) -> list[str]:
        """Sessions that have no longer what was acknowledged, and what they have. Call it after the load has ended."""
        lost = []
        for session, acknowledged in self.acknowledged.items():
            answer = await self._read(session)
            if answer.status_code != 200 or self._is_older(session, answer.json()["value"], acknowledged):
                lost.append(
                    f"{session}: {acknowledged} acknowledged, {answer.status_code} {answer.text[:200]}"
                )
        return lost

    async def _read(self, session: str) -> httpx.Response:
        """What a session has: its first answer, or the last error of half a minute."""
        until = time.monotonic() + READ_S
        while True:
            answer = await self._http.get(f"{self._urls[0]}{POOL}/sessions/{session}/variables/n")
            if answer.status_code < 500 or time.monotonic() > until:
                return answer
            await asyncio.sleep(PAUSE_S)

    # --- callers ---

    async def _ask(self, caller: str, number: int) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as under_way:
            for count in itertools.count():
                await asyncio.sleep(began + count * ASK_EVERY_S - time.monotonic())
                if self._stopping.is_set():
                    return
                url = f"{self._url(number + count)}{POOL}/programs/qa/execute"
                request = self._http.post(url, json={"inputs": QUESTION, "timeout_s": DEADLINE_S})
                under_way.create_task(self._asked(caller, request))

    async def _change(self, session: str, number: int) -> None:
        for count in itertools.count(1):
            if self._stopping.is_set():
                return
            url = f"{self._url(number + count)}{POOL}/sessions/{session}/variables/n"
            if await self._asked(session, self._http.put(url, json={"value": count})) is not None:
                self.acknowledged[session] = count
                self._acknowledged_at[session].append(time.monotonic())
            else:
                self._failed_changes[session].add(count)
            known = self.acknowledged.get(session, 0)
            answer = await self._asked(session, self._http.get(url)) if known else None
            if answer is not None and self._is_older(session, answer.json()["value"], known):
                self.stale.append(f"{session}: {answer.json()['value']} after {known}")
            await asyncio.sleep(PAUSE_S)

    def _is_older(self, session: str, value: int, acknowledged: int) -> bool:
        return value < acknowledged and value not in self._failed_changes[session]

    def _url(self, number: int) -> str:
        return self._urls[number % len(self._urls)]

    async def _asked(
        self, caller: str, request: Coroutine[Any, Any, httpx.Response]
    ) -> httpx.Response | None:
        began, trouble, answer = time.monotonic(), "", None
        try:
            async with asyncio.timeout(DEADLINE_S + 2 * GRACE_S):
                answer = await request
        except TimeoutError:
            trouble = "hanging"
        except httpx.HTTPError as failed:
            trouble = type(failed).__name__
        else:
            if answer.status_code >= 400:
                kind = answer.headers.get("content-type", "")
                code = _json_of(answer).get("code", "?") if "json" in kind else "no problem document"
                trouble = f"{answer.status_code} {code}"
            elif answer.status_code == 200 and not answer.content:
                trouble = f"{answer.status_code} without a body"
        self.hanging += trouble in ("hanging", "ReadTimeout")
        self.asked.append(Asked(caller, began, time.monotonic(), trouble))
        return None if trouble else answer


def _json_of(answer: httpx.Response) -> dict[str, Any]:
    """Empty where it is none: an answer that was cut off."""
    try:
        document: dict[str, Any] = answer.json()
    except ValueError:
        return {}
    return document
