"""What a cluster knows of its service, while processes that look after it and commands that change it come and go."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from ray.experimental import internal_kv

from dspool.core.lifecycle.upgrades import Installation
from dspool.errors import Conflict
from dspool_serve.ingress import service_record
from dspool_serve.ingress.service_record import Registration, ServiceRecord, changing, read, write


@pytest.fixture
def cluster(monkeypatch):
    """Its key-value store, and its jobs: this process is of the last one that `cluster.begin` began."""

    class Cluster:
        def __init__(self) -> None:
            self.kept: dict[bytes, bytes] = {}
            self.jobs: dict[str, bool] = {}
            self.job = ""

        def begin(self, job: str) -> None:
            self.job = job
            self.jobs[job] = True

        def put(self, key, value, *, namespace, overwrite=True) -> bool:
            was_there = key in self.kept
            if overwrite or not was_there:
                self.kept[key] = value
            return was_there

        def list(self, prefix, *, namespace) -> list[bytes]:
            return [key for key in self.kept if key.startswith(prefix)]

        def get(self, key, *, namespace):
            return self.kept.get(key)

        def delete(self, key, *, namespace) -> None:
            self.kept.pop(key, None)

    made = Cluster()
    monkeypatch.setattr(internal_kv, "_internal_kv_put", made.put)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", made.get)
    monkeypatch.setattr(internal_kv, "_internal_kv_del", made.delete)
    monkeypatch.setattr(internal_kv, "_internal_kv_list", made.list)
    monkeypatch.setattr(service_record, "this_job", lambda: made.job)
    monkeypatch.setattr(
        service_record,
        "_jobs",
        lambda: [{"JobID": job, "IsDead": not lives} for job, lives in made.jobs.items()],
    )
    made.begin("first")
    return made


def test_who_takes_a_service_over_keeps_what_an_upgrade_chose(cluster):
    old, new = (Installation(dspool=version, environment=f"/opt/{version}") for version in ("0.2", "0.3"))
    left = ServiceRecord(
        pools=("a", "b"),
        application="x",
        job="first",
        installation=new,
        chosen=True,
        upgrade=old,
        flags={"p": 1},
    )
    write(left)
    cluster.begin("second")
    registration = Registration(
        lambda: ServiceRecord(pools=("a",), application="x", job="second", installation=old)
    )
    registration.take_over(left)
    registration.write("serving")
    assert read() == msgspec.structs.replace(left, job="second", phase="serving")


async def test_one_command_at_a_time_changes_a_service(cluster):
    async with changing():
        cluster.begin("second")
        with pytest.raises(Conflict, match="another command"):
            async with changing(patience_s=0.0):
                pass
    for _ in range(3):
        async with changing():
            pass
    assert list(cluster.kept.values()) == [b""], "one key is left, and nobody's"


@pytest.mark.parametrize("others", [1, 2])
async def test_of_two_commands_that_find_a_service_free_at_once_one_changes_it(cluster, monkeypatch, others):
    async with changing():
        pass
    listed = service_record._claims()
    # Meanwhile others come first, and the last of them is at it.
    cluster.begin("second")
    for _ in range(others - 1):
        async with changing():
            pass
    async with changing():
        cluster.begin("third")
        looks = iter([listed])
        real = service_record._claims
        monkeypatch.setattr(service_record, "_claims", lambda: next(looks, None) or real())
        assert service_record._claim() is None
        assert list(cluster.kept.values()) == [b"second"]


async def test_a_command_that_was_killed_over_it_keeps_nobody_out_once_ray_knows_of_it(cluster):
    killed = changing()
    await killed.__aenter__()
    cluster.begin("second")
    asyncio.get_running_loop().call_later(0.2, cluster.jobs.update, {"first": False})
    async with changing(patience_s=60.0):
        assert cluster.kept
