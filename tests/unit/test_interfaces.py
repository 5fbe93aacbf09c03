"""What others rely on stays as it is, unless somebody decides otherwise."""

import pytest

from tests.interfaces import ALL, FOLDER


@pytest.mark.parametrize("name", ALL)
def test_what_others_rely_on_is_as_it_was_written_down(name):
    written = (FOLDER / name).read_text(encoding="utf-8")
    assert ALL[name]() == written, "if this is meant: python -m tests.interfaces, and a line in CHANGELOG.md"
