"""The pytest plugin: a pool in the process of the tests, by fixture and marker.

    @pytest.mark.dspool(programs={"answer": "shop.answers:Answer"}, lm=["Paris"])
    def test_it_answers(dspool_pool, scripted_lm):
        assert dspool_pool.execute("answer", question="What is the capital of France?").answer == "Paris"
        assert scripted_lm.calls[0].inputs["question"] == "What is the capital of France?"

Loaded with every run of pytest where dspool is installed, so nothing is imported before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dspool.programs.scripted import ScriptedLM
    from dspool.testing.local import BlockingLocalPool

_MARKER = "dspool"
_CONFIG = "dspool_config"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(_CONFIG, "the pool's configuration file for `dspool_pool`, from the root directory")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(programs=None, *, config=None, lm=None, **settings): the pool of `dspool_pool`; "
        "see dspool.testing.local_pool",
    )


@pytest.fixture
def scripted_lm(request: pytest.FixtureRequest) -> ScriptedLM:
    """The model behind `dspool_pool`: it answers what the marker's `lm` says, or `scripted_lm.script(...)`."""
    from dspool.programs.scripted import ScriptedLM

    given = _options(request)[1].get("lm")
    return given if isinstance(given, ScriptedLM) else ScriptedLM(() if given is None else given)


@pytest.fixture
def dspool_pools(request: pytest.FixtureRequest) -> Iterator[Callable[..., BlockingLocalPool]]:
    """`dspool_pools(programs, lm=..., **settings)` runs a pool in this process until the test ends."""
    from dspool.testing.local import BlockingLocalPool

    with ExitStack() as stack:

        def start(programs: Any = None, **options: Any) -> BlockingLocalPool:
            options.setdefault("config", _config_file(request.config))
            return stack.enter_context(BlockingLocalPool(programs, **options))

        yield start


@pytest.fixture
def dspool_pool(
    request: pytest.FixtureRequest, dspool_pools: Callable[..., BlockingLocalPool]
) -> BlockingLocalPool:
    """A pool in this process as the marker `dspool` and the ini option `dspool_config` say: no Ray, no network."""
    programs, options = _options(request)
    if "scripted_lm" in request.fixturenames:
        options["lm"] = request.getfixturevalue("scripted_lm")
    return dspool_pools(programs, **options)


def _options(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """Of the test's own marker, else of its class or module."""
    marker = request.node.get_closest_marker(_MARKER)
    if marker is None:
        return None, {}
    options = dict(marker.kwargs)
    return (marker.args[0] if marker.args else options.pop("programs", None)), options


def _config_file(config: pytest.Config) -> str | None:
    name = config.getini(_CONFIG)
    return str(config.rootpath / name) if name else None
