"""Whether a service's own port answers, seen from this machine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable

import httpx

from dspool.errors import WorkerStartFailed

_LOOK_S = 0.05


async def wait_until_it_answers(url: str, pools: Iterable[str], limit_s: float) -> None:
    """Until the proxy knows the routes of `pools`: at first it answers 404 or 503 for ones that exist.

    Raises:
        WorkerStartFailed: it did not within `limit_s`; says what it answered last.
    """
    deadline = time.monotonic() + limit_s
    wanted = ["/healthz", "/readyz", *(f"/v1/pools/{pool}" for pool in pools)]
    last = "no answer"
    # Our own door, seen from inside: what is checked is that it answers, not who it says it is.
    async with httpx.AsyncClient(base_url=url, timeout=5.0, trust_env=False, verify=False) as http:
        while wanted:
            with contextlib.suppress(httpx.TransportError):
                answer = await http.get(wanted[0])
                # With tokens, a route that knows it needs one is a route.
                if answer.status_code in (200, 401):
                    wanted.pop(0)
                    continue
                last = f"{answer.status_code} {answer.text[:200]}"
            if time.monotonic() > deadline:
                raise WorkerStartFailed(
                    f"{url}{wanted[0]} did not answer 200 within {limit_s:g} s; last: {last}"
                )
            await asyncio.sleep(_LOOK_S)


__all__ = ["wait_until_it_answers"]
