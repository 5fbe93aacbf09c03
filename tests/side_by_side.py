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

ORDER = ("serve", "integration", "chaos", "property", "unit")
"""What takes longest begins first, so that no process is left with it in the end."""
FILES = ("gate", "turn")
_TURNS = "dspool_turns"


class Processes:
    """In the process that hands tests out: gives the others a directory to meet in."""

    def __init__(self) -> None:
        self._turns = tempfile.TemporaryDirectory(prefix="dspool-turns-")
        for name in FILES:
            (Path(self._turns.name) / name).touch()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[_TURNS] = self._turns.name

    def pytest_unconfigure(self) -> None:
        self._turns.cleanup()


class Turns:
    """In each process that runs tests."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        def place(item: pytest.Item) -> int:
            folder = item.path.parent.name
            return ORDER.index(folder) if folder in ORDER else len(ORDER)

        items.sort(key=place)

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
    given = getattr(config, "workerinput", None)
    if given is not None:
        config.pluginmanager.register(Turns(Path(given[_TURNS])))
    elif config.getoption("numprocesses", None):
        config.pluginmanager.register(Processes())
