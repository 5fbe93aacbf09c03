"""Take the pictures of `docs/images/` anew: `make pictures`. Of made-up data, so that they always show the same."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.browser.chromium import PHONE, Demo, Looking, chromium
from tests.browser.palette import smaller

IMAGES = Path(__file__).parents[2] / "docs" / "images"
DESKTOP = {"width": 1360, "height": 940}
LARGEST_KB = 150
SETTLED_MS = 1500
"""Charts are drawn one a frame, and cells of slots are asked for after the table stands."""


def stay(page: Any) -> None:
    """The view as it opens."""


def first_worker(page: Any) -> None:
    page.locator("tbody a.id").first.click()
    page.get_by_role("heading", name="Warm-up by step").wait_for()


def first_operation(page: Any) -> None:
    page.locator(".list tbody a.id").first.click()
    page.get_by_role("heading", name="Where the time went").wait_for()
    page.locator(".waterfall button").nth(4).click()


def first_error(page: Any) -> None:
    page.locator("tbody a.id").first.click()
    page.get_by_text("All operations that ended so").wait_for()


def other_bounds(page: Any) -> None:
    page.get_by_role("slider", name="Target utilization").fill("0.5")
    page.wait_for_timeout(SETTLED_MS)


def answered(page: Any) -> None:
    page.get_by_label("question").fill("Where is my order?")
    page.get_by_label("order").fill('{"number": 4711, "lines": ["lamp", "bulb"]}')
    page.get_by_role("button", name="Run").click()
    page.get_by_text("Done in").wait_for()


VIEWS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "overview": ("overview?range=900", stay),
    "workers": ("workers", stay),
    "worker": ("workers", first_worker),
    "sessions": ("sessions", stay),
    "operations": ("operations", stay),
    "waterfall": ("operations", first_operation),
    "errors": ("errors", stay),
    "error": ("errors", first_error),
    "sizing": ("sizing", other_bounds),
    "deployments": ("deployments", stay),
    "try": ("try", answered),
    "events": ("events", stay),
    "report": ("report", stay),
}
ON_A_PHONE = (
    "overview",
    "workers",
    "operations",
    "waterfall",
    "errors",
    "error",
    "sizing",
    "deployments",
    "try",
)


def take(looking: Looking, name: str, into: Path, manner: str) -> None:
    path, arrive = VIEWS[name]
    page = looking.go(path)
    arrive(page)
    page.locator("#connection", has_text="live").wait_for()
    page.evaluate("scrollTo(0, 0)")
    page.mouse.move(0, 0)
    page.wait_for_timeout(SETTLED_MS)
    write(page, into / f"{name}-{manner}.png")


def write(page: Any, file: Path) -> None:
    shot = page.screenshot(animations="disabled")
    # A page of its own: that of the dashboard lets nothing be fetched but from its service.
    blank = page.context.new_page()
    file.write_bytes(smaller(blank, shot))
    blank.close()
    size = file.stat().st_size / 1024
    print(f"{file.name}: {size:.0f} kB" + ("  TOO LARGE" if size > LARGEST_KB else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=IMAGES)
    parser.add_argument("--only", nargs="*", choices=VIEWS, default=list(VIEWS))
    asked = parser.parse_args()
    asked.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dsp-") as directory, chromium() as browser:
        demo = Demo(Path(directory), "--workers", "8", "--history-s", "3600", "--pretty")
        try:
            for manner in ("light", "dark", "phone"):
                size = (
                    {"viewport": PHONE}
                    if manner == "phone"
                    else {"viewport": DESKTOP, "color_scheme": manner}
                )
                looking = Looking(browser, demo.url, reduced_motion="reduce", **size)
                for name in asked.only:
                    if manner != "phone" or name in ON_A_PHONE:
                        take(looking, name, asked.into, manner)
                looking.close()
            if "report" in asked.only:
                file = Path(directory) / "report.html"
                looking = Looking(browser, demo.url)
                page = looking.go("report")
                with page.expect_download() as download:
                    page.get_by_role("link", name="Download the report").click()
                download.value.save_as(file)
                page.set_viewport_size(DESKTOP)
                page.goto(file.as_uri())
                write(page, asked.into / "report-file.png")
                looking.close()
        finally:
            demo.stop()


if __name__ == "__main__":
    main()
