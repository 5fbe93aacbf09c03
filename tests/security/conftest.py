"""What files of attacks share. Doubles of the unit tests (`http_doubles`, ...) serve here too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
