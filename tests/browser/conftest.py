"""A browser and a page a file, on that file's `demo` or the common one; each test finds the page empty, and signed out.

A page of its own for each test would be a process of its own: a second of processor time each.
"""

import pytest

from tests.browser.chromium import Demo, Looking, chromium


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The common one: 500 workers, two pools, hostile names. Each file has its own, as tests change what is there."""
    service = Demo(tmp_path_factory.mktemp("demo"), "--workers", "500")
    yield service
    service.stop()


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def one_page(browser, demo):
    looking = Looking(browser, demo.url)
    yield looking
    looking.close()


@pytest.fixture
def look(one_page):
    yield one_page
    one_page.forget()
