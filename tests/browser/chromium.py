"""A real Chromium on the dashboard: a browser and a page for a module, and what it complained about."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A process less.
    "--in-process-gpu",
]
WIDE = {"width": 1440, "height": 1000}
PHONE = {"width": 390, "height": 844}
VIEWS = {
    "overview": "Utilization",
    "workers": "Workers",
    "sessions": "Sessions",
    "operations": "Operations",
    "errors": "Errors",
    "sizing": "Sizing",
    "deployments": "Warm-up and deployments",
    "try": "Try it",
    "events": "Events, alerts and audit",
    "report": "Report and export",
}
"""View -> a heading on it."""
WAIT_MS = 60_000

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser. Not longer than a module: while it runs, its loop is in the way of asyncio's tests."""
    from playwright.sync_api import sync_playwright

    # Chromium keeps settings beside its profile, in the home.
    with tempfile.TemporaryDirectory(prefix="dsp-c-") as home, sync_playwright() as playwright:
        own = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"), home)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, env={**os.environ, **own})
        try:
            yield browser
        finally:
            browser.close()


class Looking:
    """A page of its own at `url`, with all that its console said and what went wrong in it."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(viewport=context.pop("viewport", WIDE), **context)
        self.context.set_default_timeout(WAIT_MS)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.troubles.append(f"{message.type}: {message.text}")

    def go(self, path: str = "", pool: str = "default") -> Any:
        """The view at `path` of `pool`, when it is there."""
        self.page.goto(f"{self.url}/dashboard#/{pool}/{path}")
        # The frames of the view before this one may still be there for a moment.
        self.page.locator(f'#main[data-shows="{path.partition("?")[0]}"]').wait_for()
        return self.page

    def sign_in(self, token: str) -> Any:
        self.page.goto(f"{self.url}/dashboard")
        self.page.get_by_label("Access token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.locator("#pool").wait_for()
        return self.page

    def widest(self) -> int:
        return self.page.evaluate("document.documentElement.scrollWidth")

    def forget(self) -> None:
        """As if nothing had been looked at."""
        self.page.unroute_all(behavior="ignoreErrors")
        self.context.clear_cookies()
        self.page.goto("about:blank")
        self.troubles.clear()
        self.asked.clear()

    def close(self) -> None:
        self.context.close()


class Demo:
    """The service with simulated data, as a process of its own: no Ray, up in a second."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.arguments, self.log = arguments, directory / "demo.log"
        self.start()

    def start(self) -> None:
        root = Path(__file__).parents[2]
        path = os.pathsep.join([str(root), str(root / "actors"), str(root / "serve_app")])
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.dashboard_demo",
                "--port",
                str(self.port),
                "--history-s",
                "400",
                *self.arguments,
            ],
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            cwd=root,
        )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.url}/dashboard", timeout=5.0)
                return
            except httpx.TransportError:
                assert self.process.poll() is None, self.log.read_text()[-2000:]
                time.sleep(0.1)
        raise AssertionError(f"the demo did not start: {self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


class SignedDemo(Demo):
    """One that asks for a token: `tokens` of `root`, an admin, and `eve`, a reader."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        super().__init__(directory, "--tokens", *arguments)
        self.tokens: dict[str, str] = json.loads(self.log.read_text().splitlines()[0])


def serious(page: Any) -> list[str]:
    """What axe finds serious or critical on `page` as it stands."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']} at {[node['target'] for node in one['nodes']][:4]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
