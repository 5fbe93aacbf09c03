"""A bench for each file here: three machines with Ray, a database on a fourth, and a service on them.

One file's machines are off before those of the next are on: they share the processors of this one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.database import Database
from tests.cluster.machine import Machine
from tests.cluster.possible import why_not
from tests.cluster.ray_nodes import RayNodes
from tests.cluster.service import Service
from tests.cluster.switch import Switch

ALL = "DSPOOL_TEST_CLUSTER"
"""Set, every scenario runs (`make test-cluster`); else those that are not marked `scenario`, which is what CI runs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("scenario") and ALL not in os.environ:
            item.add_marker(
                pytest.mark.skip(reason="a scenario of many minutes: `make test-cluster` runs it")
            )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    """Four machines on one switch. Those that are off are booted by whoever wants them."""
    if why := why_not():
        pytest.skip(why)
    directory: Path = tmp_path_factory.mktemp("machines")
    directory.chmod(0o711)
    with ExitStack() as stack:
        switch = stack.enter_context(Switch())
        machines = [Machine(f"node{number}", number, switch, directory) for number in range(1, 5)]
        for machine in machines:
            stack.callback(machine.close)
        yield machines


@pytest.fixture(scope="module")
def database(bench: list[Machine]) -> Database:
    if why := Database.why_not():
        pytest.skip(why)
    database = Database(bench[3])
    database.start()
    return database


@pytest.fixture(scope="module")
def nodes(bench: list[Machine]) -> RayNodes:
    """Ray on three machines; each test leaves all of them running."""
    nodes = RayNodes(bench[:3])
    nodes.start()
    return nodes


@pytest.fixture(scope="module")
def service(nodes: RayNodes, database: Database) -> Iterator[Service]:
    """A pool of three workers and a spare, whose sessions are in the database."""
    config = {"pool_size": 3, "spares": 1, "store_url": database.url, "enable_optimizer": False}
    service = Service(nodes, {**config, "ingress": {"per_node": 1}})
    yield service
    service.end()
