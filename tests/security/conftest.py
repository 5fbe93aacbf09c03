"""What files of attacks share. Doubles of the unit tests (`http_doubles`, ...) serve here too."""

from __future__ import annotations

import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from dspool.store.store import SessionStore
from tests.security.limited_stores import POSTGRES
from tests.security.shop_files import write_shop

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
_MODULES = ("shop", "shopping", "outside", "told")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """The package `shop`, fresh; `shop()` is what was run of it that should not have been."""
    write_shop(tmp_path)
    canary = tmp_path / "canary"
    monkeypatch.setenv("SHOP_CANARY", str(canary))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda: canary.read_text().splitlines() if canary.exists() else []
    for name in [name for name in sys.modules if name.partition(".")[0] in _MODULES]:
        del sys.modules[name]


@pytest.fixture(params=["sqlite", *(["postgresql"] if POSTGRES else [])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Of a database for stores: SQLite, and PostgreSQL too when DSPOOL_TEST_POSTGRES_URL names one."""
    return POSTGRES if request.param == "postgresql" else f"sqlite:///{tmp_path}/state/dspool.db"


@pytest.fixture
def pool() -> str:
    """The name of a pool that no other test has: on PostgreSQL they share a database."""
    return f"pool-{uuid.uuid4()}"


@pytest.fixture
async def opened(url: str) -> AsyncIterator[Callable[..., Awaitable[SessionStore]]]:
    """Opens stores with the limits that a test wants."""
    stores = []

    async def open_store(quotas=None, **more):
        store = SessionStore(url, quotas=quotas, **more)
        await store.open()
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        await store.close()
