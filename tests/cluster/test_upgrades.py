"""A service on three machines, with sessions in PostgreSQL, becomes one of the next version while it is used."""

from __future__ import annotations

import asyncio
import tempfile
import time
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


def test_no_request_fails_and_no_change_is_lost_while_it_becomes_one_of_the_next_version(service, new):
    assert versions(service) == {dspool.__version__}

    async def upgrade() -> tuple[dict, Load, list[str]]:
        urls = [service.url_on(machine) for machine in service.nodes.machines]
        async with Load(urls, service.headers) as load:
            await load.flowing()
            upgraded = await asyncio.to_thread(service.dspool, "upgrade", python=new.python)
            await load.flowing()
            await load.end()
            return upgraded, load, await load.lost_changes()

    began = time.monotonic()
    upgraded, load, lost = asyncio.run(upgrade())
    print(f"{len(load.asked)} requests; {upgraded}")
    assert (upgraded["upgraded"], upgraded["after"]["dspool"]) == (True, NEXT)
    assert load.failed(began) == {}
    assert (load.hanging, lost, load.stale) == (0, [], [])
    assert versions(service) == {NEXT}
