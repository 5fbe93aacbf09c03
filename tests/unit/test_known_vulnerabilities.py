"""No pin falls back below a version that fixed a published vulnerability. A table, since CI asks no database."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

FIXED = {
    "aiohttp": ("3.13.3", "CVE-2025-69223 to 69230"),
    "filelock": ("3.20.3", "CVE-2025-68146, CVE-2026-22701"),
    "h11": ("0.16.0", "CVE-2025-43859"),
    "h2": ("4.3.0", "CVE-2025-57804"),
    "Jinja2": ("3.1.6", "CVE-2025-27516"),
    "orjson": ("3.11.6", "CVE-2025-67221"),
    "protobuf": ("6.33.5", "CVE-2025-4565, CVE-2026-0994"),
    "pyasn1": ("0.6.2", "CVE-2026-23490"),
    "ray": ("2.52.0", "CVE-2025-62593"),
    "requests": ("2.32.4", "CVE-2024-47081"),
    "starlette": ("0.49.1", "CVE-2025-54121, CVE-2025-62727"),
    "urllib3": ("2.6.3", "CVE-2025-66418, CVE-2025-66471, CVE-2026-21441"),
    "virtualenv": ("20.36.1", "CVE-2026-22702"),
    "Werkzeug": ("3.1.5", "CVE-2025-66221, CVE-2026-21860"),
}


@pytest.mark.parametrize("package", FIXED)
def test_a_pin_is_not_below_the_version_that_fixed_it(package):
    root = Path(__file__).parents[2]
    pins = dict(
        line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line
    )
    fixed, which = FIXED[package]
    # One that is not installed any more is no danger either.
    assert Version(pins.get(package, fixed)) >= Version(fixed), which
