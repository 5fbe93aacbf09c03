"""What tests leave behind fails the run and names the tests, where the surroundings are ours alone (`tests.fresh`).

What outlives a test may belong to a fixture of its file, and the tests of other processes run meanwhile. So each
process notes during which test something came, and what is still there in the end was left by the test then noted.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

from tests.surroundings import LEFT_BEHIND, Surroundings, described, taken

_PLACES, _CAME_DURING = "dspool_fresh_places", "dspool_came_during"


class Arrivals:
    """In each process that runs tests: during which one something came that is still there."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self.came_during: dict[str, str] = {}

    # Outermost: a test's own fixtures are gone when it is looked at.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            there = sorted(self._surroundings.new())
            self.came_during = {thing: self.came_during.get(thing, item.nodeid) for thing in there}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[_CAME_DURING] = self.came_during


class LeftBehind:
    """In the process that ends last."""

    def __init__(self, surroundings: Surroundings, places: dict[str, str], own: Arrivals | None) -> None:
        self._surroundings, self._places = surroundings, places
        self._own = own
        self._of_others: list[dict[str, str]] = []
        self._lines: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[_PLACES] = self._places

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._of_others.append(getattr(node, "workeroutput", {}).get(_CAME_DURING, {}))

    # After all fixtures and all other processes have ended.
    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        notes = [*self._of_others, *([self._own.came_during] if self._own else [])]
        failed = session.exitstatus != pytest.ExitCode.OK
        # A run that has failed anyway does not wait for what may still go.
        for thing in self._surroundings.left(0.0 if failed else None):
            tests = sorted({came[thing] for came in notes if thing in came})
            self._lines.append(f"{described(thing)}: came during {' or '.join(tests) or 'no test'}")
        if self._lines and not failed:
            session.exitstatus = LEFT_BEHIND

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._lines:
            terminalreporter.section("left behind")
            for line in self._lines:
                terminalreporter.write_line(line)


def register(config: pytest.Config) -> None:
    given = getattr(config, "workerinput", None)
    # Taken out of the environment: a pytest that a test starts is not alone here.
    places = given.get(_PLACES, {}) if given is not None else taken(os.environ)
    surroundings = Surroundings.of(places)
    if surroundings is None:
        return
    arrivals = None
    if given is not None or not config.getoption("numprocesses", None):
        arrivals = Arrivals(surroundings)
        config.pluginmanager.register(arrivals)
    if given is None:
        config.pluginmanager.register(LeftBehind(surroundings, places, arrivals))
