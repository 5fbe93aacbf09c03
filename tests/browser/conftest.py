"""A browser a file, and a fresh page a test, on that file's `demo`."""

import pytest

from tests.browser.chromium import Looking, chromium


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def look(browser, demo):
    looking = Looking(browser, demo.url)
    yield looking
    looking.close()
