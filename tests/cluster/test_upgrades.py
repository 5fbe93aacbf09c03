"""A service on three machines, with sessions in PostgreSQL, becomes one of the next version while it is used."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import dspool
from tests.cluster.load import POOL, Load
from tests.installations import Installed

pytestmark = [pytest.mark.serve, pytest.mark.scenario]

NEXT = "99.0.0"


@pytest.fixture(scope="module")
def new() -> Iterator[Installed]:
    """At the same path on each machine: all see this directory, and have a /tmp of their own."""
    with tempfile.TemporaryDirectory(prefix="dspu-", dir="/var/tmp") as home:
        Path(home).chmod(0o755)
        yield Installed(Path(home) / "new", NEXT)


def versions(service) -> set[str]:
    """What the supervisor and all workers say, and the HTTP processes that answer on each machine."""
    found = set()
    with httpx.Client(headers=service.headers, timeout=60, trust_env=False) as http:
        pool = http.get(f"{service.url}{POOL}").json()
        found |= {pool["version"], *(worker["version"] for worker in pool["workers"])}
        for machine in service.nodes.machines:
            found |= {http.get(f"{service.url_on(machine)}/healthz").json()["version"] for _ in range(6)}
    return found


async def answers(url: str) -> None:
    """Returns once the machine's proxy is there: the last one comes after the service is ready on the head."""
    async with asyncio.timeout(300), httpx.AsyncClient(timeout=5.0, trust_env=False) as http:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await http.get(f"{url}/healthz")).status_code == 200:
                    return
            await asyncio.sleep(0.2)


def test_no_request_fails_and_no_change_is_lost_while_it_becomes_one_of_the_next_version(service, new):
    async def upgrade() -> tuple[dict, Load, Counter[str], list[str]]:
        urls = [service.url_on(machine) for machine in service.nodes.machines]
        await asyncio.gather(*(answers(url) for url in urls))
        async with Load(urls, service.headers) as load:
            await load.flowing()
            before = await asyncio.to_thread(versions, service)
            assert before == {dspool.__version__}
            began = time.monotonic()
            upgraded = await asyncio.to_thread(service.dspool, "upgrade", python=new.python)
            await load.flowing()
            await load.end()
            failed = load.failed(began)
            return upgraded, load, failed, await load.lost_changes()

    upgraded, load, failed, lost = asyncio.run(upgrade())
    print(f"{len(load.asked)} requests; {upgraded}")
    assert (upgraded["upgraded"], upgraded["after"]["dspool"]) == (True, NEXT)
    assert failed == {}
    assert (load.hanging, lost, load.stale) == (0, [], [])
    assert versions(service) == {NEXT}
