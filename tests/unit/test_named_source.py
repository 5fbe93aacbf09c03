"""What the command line says of an import path before anything starts."""

from __future__ import annotations

import sys

import pytest

from dspool.cli.named_source import check_source
from dspool.cli.new import write_project
from dspool.errors import ConfigError


def test_a_program_whose_project_is_one_folder_below_is_refused_with_the_way_there(tmp_path, monkeypatch):
    write_project(tmp_path / "shop")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"it is in the folder shop: `cd shop` first"):
        check_source("shop.answers:Answer")
    assert "shop" not in sys.modules
