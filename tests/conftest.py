"""What tests with a real Ray share: one cluster for all of them, and pools that are gone when a test ends."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio

from tests import left_behind, side_by_side

# Helpers that check something: what failed there shows its values, as in a test.
pytest.register_assert_rewrite(
    "tests.property.dispatcher_world", "tests.security.limited_stores", "tests.unit.dispatch_world"
)

# Time limits belong to pytest: a shared machine stalls for longer than any example takes.
hypothesis.settings.register_profile(
    "dspool", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("dspool")

HARNESS = Path(__file__).parent / "integration"
PROGRAMS = Path(__file__).parent / "programs"
PATIENCE = {
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "120",
}
"""Ray kills what takes so long to start, and a machine that is busy with something else is slow at it."""

LONG_S = 900
"""What a test marked `long` may take."""

StartPool = Callable[..., Awaitable[Any]]


def pytest_configure(config: pytest.Config) -> None:
    os.environ.update(PATIENCE)
    # xdist sets it for its processes; for ours it would mean a terminal of so many columns.
    os.environ.pop("COLUMNS", None)
    # A job in the background of a script ignores it, and with it all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    side_by_side.register(config)
    left_behind.register(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG_S))


def pytest_collection_finish() -> None:
    # All that is loaded now stays: no collection of what a test leaves has to look through it again.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a pool whose test names no `state_dir` keeps its files: not where those of whoever runs the tests do."""
    with pytest.MonkeyPatch.context() as patched:
        directory = tmp_path_factory.mktemp("state")
        patched.setenv("XDG_STATE_HOME", str(directory))
        yield directory


@pytest.fixture(scope="session")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workers of the cluster write down that they are warm; see `noted`."""
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="session")
def model_port() -> int:
    """Where the programs of the tutorials look for their model; nobody listens yet."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return int(reserved.getsockname()[1])


@pytest.fixture(scope="session")
def cluster(notes: Path, model_port: int) -> Iterator[str]:
    """The address of a Ray cluster of our own, whose workers can import what lies beside the integration tests, in
    `programs` or in `notes`."""
    import ray

    from dspool.runtime.cluster import own_cluster

    names = ("PYTHONPATH", "NOTED_DIR", "MODEL_URL", "MODEL_KEY", "RAY_enable_metrics_collection")
    before = {name: os.environ.get(name) for name in names}
    places = [str(HARNESS), str(PROGRAMS), str(notes), before["PYTHONPATH"]]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    os.environ["NOTED_DIR"] = str(notes)
    os.environ["MODEL_URL"] = f"http://127.0.0.1:{model_port}/v1"
    os.environ["MODEL_KEY"] = "sk-the-tutorials-own-key"
    # As on a cluster that an operator started: a Prometheus scrapes Ray.
    os.environ |= {"RAY_enable_metrics_collection": "1"}
    try:
        with own_cluster("dsp-t-"):
            yield ray.get_runtime_context().gcs_address
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@asynccontextmanager
async def _pools(state_dir: Path, **usual: Any) -> AsyncIterator[StartPool]:
    """Runs pools until the block ends, however many."""
    from harness import settings

    from dspool import Pool, PoolConfig

    async with AsyncExitStack() as stack:

        async def start(**overrides: Any) -> Pool:
            config = PoolConfig(**settings(state_dir, **{**usual, **overrides}))
            return await stack.enter_async_context(Pool.start(config))

        yield start


@pytest_asyncio.fixture(loop_scope="session")
async def start_pool(cluster: str, tmp_path: Path, worker_start: str) -> AsyncIterator[StartPool]:
    """`await start_pool(pool_size=1, ...)` runs a pool until the test ends."""
    async with _pools(tmp_path, worker_start=worker_start) as start:
        yield start


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def start_module_pool(
    cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[StartPool]:
    """As `start_pool`, for all tests of a file: the start of a pool is most of a short test."""
    async with _pools(tmp_path_factory.mktemp("pool")) as start:
        yield start


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What `both_starts` marks runs on forked workers and on executed ones."""
    if "worker_start" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_starts"):
        executed = pytest.param("exec", marks=pytest.mark.long)
        metafunc.parametrize("worker_start", ["fork", executed], indirect=True)


@pytest.fixture
def worker_start(request: pytest.FixtureRequest) -> str:
    """How workers are started: as the configuration says, unless a test wants it both ways."""
    from dspool import PoolConfig

    return getattr(request, "param", None) or PoolConfig().worker_start


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def common_pools(
    cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """A pool of two workers for all tests that leave it as they found it, one for each way of starting workers."""
    pools: dict[str, Any] = {}
    async with _pools(tmp_path_factory.mktemp("common"), min_pool_size=1, max_pool_size=4) as start:

        async def of(worker_start: str) -> Any:
            if worker_start not in pools:
                pools[worker_start] = await start(worker_start=worker_start)
            return pools[worker_start]

        yield of


@pytest_asyncio.fixture(loop_scope="session")
async def pool(common_pools: Callable[[str], Awaitable[Any]], worker_start: str) -> Any:
    """The common pool, with all its workers warm and connected."""
    from harness import full

    found = await common_pools(worker_start)
    await full(found)
    return found


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The service as it comes, without tokens, for the files that `side_by_side.TOGETHER` names: its home is empty, and
    it has the operator's Ray token, which is for clusters that are joined."""
    from tests.serve.test_service import FOREIGN_TOKEN, Up

    directory = tmp_path_factory.mktemp("service")
    home, config = directory / "home", directory / "pool.yaml"
    home.mkdir()
    settings = {
        "pool_size": 2,
        "min_pool_size": 1,
        "max_pool_size": 3,
        "enable_optimizer": False,
        "telemetry": {"sampling": 1},
        # So long would a service that stops wait for what runs.
        "operation_timeout_s": 300,
    }
    config.write_text(json.dumps(settings))
    service = Up(directory / "state", "--config", str(config), HOME=str(home), RAY_AUTH_TOKEN=FOREIGN_TOKEN)
    service.home, service.config = home, config
    yield service
    service.end()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """As `tmp_path`, where a path must fit into the 107 bytes of a socket's."""
    with tempfile.TemporaryDirectory(prefix="dsp-t-", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def log(tmp_path: Path) -> Any:
    """What the program `noted` did: give it `path=str(log.path)`."""
    from harness import Log

    return Log(tmp_path / "log")


sys.path.insert(0, str(HARNESS))
