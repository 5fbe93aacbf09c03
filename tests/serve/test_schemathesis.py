"""Generated requests for every route of the OpenAPI document: no 5xx but those documented, nothing undocumented.

The short form runs with the tests; `DSPOOL_SCHEMATHESIS=long` runs all checks with at least 5,000 requests, and
`DSPOOL_SCHEMATHESIS_URL` (with `DSPOOL_SCHEMATHESIS_TOKEN`) aims both at a service that runs, HAProxy and all.
Without a URL the application itself is asked, over a pool that answers as a real one does but has no workers.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

schemathesis = pytest.importorskip("schemathesis")

from http_doubles import FakePool, FixedPools  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from schemathesis.checks import load_all_checks  # noqa: E402

from dspool_serve.app import Application  # noqa: E402
from dspool_serve.pools import Settings  # noqa: E402

URL = os.environ.get("DSPOOL_SCHEMATHESIS_URL")
TOKEN = os.environ.get("DSPOOL_SCHEMATHESIS_TOKEN")
LONG = os.environ.get("DSPOOL_SCHEMATHESIS") == "long"
EXAMPLES = 150 if LONG else 6
