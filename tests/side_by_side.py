"""Running tests side by side (`pytest -n 2 --dist loadfile`): what begins first, and who has the machine to itself.

Each process of pytest-xdist takes whole files and has its own Ray cluster. A test that measures time
(`@pytest.mark.alone`) runs while no other test does: the others hold a lock together, it holds it alone.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

TOGETHER = {
    "test_dashboard_live": "plain",
    "test_service": "plain",
    "test_dashboard_service": "guarded",
    "test_privacy_over_http": "guarded",
    "test_schemathesis": "guarded",
    "test_typed_programs": "guarded",
    "test_access": "guarded",
    "test_machines": "bench",
    "test_services": "bench",
    "test_upgrades": "bench",
}
"""Files that share a service go to one process, in this order: the last one ends it. Whatever uses one stands here."""
LONGEST = (
    *TOGETHER,
    "test_changing_a_service",
    "test_http_full",
    "test_prometheus",  # the agent of a cluster keeps 2,000 series of a metric: those of many pools fill it
    "test_size_and_warmth",
    "test_faults",
    "test_joined_cluster",
    "test_forked_workers",
    "test_observing_a_pool",
    "test_roll_outs",
    "test_privacy",
    "test_ray_token_of_a_pool",
)
"""Files that take longest begin first, so that no process is left with one in the end; folders then as in ORDER."""
ORDER = (
    "serve",
    "cluster",
    "browser",
    "integration",
    "programs",
    "chaos",
    "simulation",
    "property",
    "security",
    "unit",
)
FILES = ("gate", "turn")
_TURNS = "dspool_turns"


class Files(LoadFileScheduling):
    """Hands out whole files, and those that share a service as if they were one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return TOGETHER.get(Path(file).stem, file)


class Order:
    """In each process that collects tests."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        elsewhere = {
            f"{item.path.name} uses {service!r}"
            for item in items
            for service in set(TOGETHER.values()).intersection(getattr(item, "fixturenames", ()))
            if TOGETHER.get(item.path.stem) != service
        }
        if elsewhere:
            # It would find the service ended, or start a second one, as the files happen to be handed out.
            raise pytest.UsageError(f"not in side_by_side.TOGETHER: {', '.join(sorted(elsewhere))}")

        def place(item: pytest.Item) -> int:
            name, folder = item.path.stem, item.path.parent.name
            if name in LONGEST:
                return LONGEST.index(name) - len(LONGEST)
            return ORDER.index(folder) if folder in ORDER else len(ORDER)

        items.sort(key=place)


class Processes:
    """In the process that hands tests out: gives the others a directory to meet in."""

    def __init__(self) -> None:
        self._turns = tempfile.TemporaryDirectory(prefix="dspool-turns-")
        for name in FILES:
            (Path(self._turns.name) / name).touch()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[_TURNS] = self._turns.name

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Files | None:
        return Files(config, log) if config.getoption("dist") == "loadfile" else None

    def pytest_unconfigure(self) -> None:
        self._turns.cleanup()


class Turns:
    """In each process that runs tests."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    # Outermost: waiting for the turn is no part of a test's own time limit.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        with self._turn(fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH):
            return (yield)

    @contextmanager
    def _turn(self, kind: int) -> Iterator[None]:
        gate_file, turn_file = (self._directory / name for name in FILES)
        with gate_file.open("wb") as gate, turn_file.open("wb") as turn:
            # Who wants to be alone keeps the gate shut while the others finish; they would never all pause by chance.
            fcntl.flock(gate, kind)
            fcntl.flock(turn, kind)
            fcntl.flock(gate, fcntl.LOCK_UN)
            yield


def register(config: pytest.Config) -> None:
    config.pluginmanager.register(Order())
    given = getattr(config, "workerinput", None)
    if given is not None:
        config.pluginmanager.register(Turns(Path(given[_TURNS])))
    elif config.getoption("numprocesses", None):
        config.pluginmanager.register(Processes())
