"""Generated requests for every route of the OpenAPI document: no defect, and no answer that it does not tell of.

Twice: straight at the application, and as people run it, through HAProxy to two ingress processes with a token and TLS.
The short form runs with the tests. `SCHEMATHESIS_FORM=long` sends at least 5,000 requests each way, and
`SCHEMATHESIS_URL` (with `SCHEMATHESIS_TOKEN`) aims either at a service that runs.
"""

from __future__ import annotations

import os
import ssl
import time
from collections import Counter
from typing import NamedTuple

import httpx
import pytest

schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis import checks  # noqa: E402
from schemathesis.specs.openapi import checks as openapi_checks  # noqa: E402

from dspool_serve.api import ROUTES  # noqa: E402
from dspool_serve.api.openapi import document  # noqa: E402
from tests.serve.local_service import LocalService  # noqa: E402
from tests.serve.test_service import ENDS_S  # noqa: E402

URL = os.environ.get("SCHEMATHESIS_URL")
TOKEN = os.environ.get("SCHEMATHESIS_TOKEN")
LONG = os.environ.get("SCHEMATHESIS_FORM") == "long"
EXAMPLES = 160 if LONG else 8

THROUGH_HAPROXY = EXAMPLES if LONG else 2
"""Each costs more there, and what it may find is what HAProxy and Serve add."""

pytestmark = pytest.mark.timeout(3600 if LONG else 600)

# The document says which shapes are read, not which names exist: a right shape may well be refused (422). And a
# deadline of no time at all rightly ends in a 504, which must be documented, as the other checks hold. What must never
# be is a defect.
LEFT_OUT = [openapi_checks.positive_data_acceptance, checks.not_a_server_error]
NAMES = {"pool": "default", "program": "qa", "session": "ada"}
sent: Counter = Counter()


class Target(NamedTuple):
    """Where requests go, with what, and the names of what exists there."""

    url: str
    headers: dict[str, str] | None = None
    trust: str | bool = True
    names: dict[str, str] = NAMES
    context: ssl.SSLContext | bool = True
    """`trust` for httpx."""


DIRECT = "direct"
HAPROXY = pytest.param("haproxy", marks=pytest.mark.serve)


@pytest.fixture(scope="module", params=[DIRECT] if URL else [DIRECT, HAPROXY])
def target(request, tmp_path_factory):
    if URL is not None:
        yield Target(URL, {"authorization": f"Bearer {TOKEN}"} if TOKEN else None)
    elif request.param == DIRECT:
        with LocalService(tmp_path_factory.mktemp("service")) as service:
            yield Target(service.url)
    else:
        up = request.getfixturevalue("guarded")
        # Short deadlines: some requests wait for what never comes.
        headers = {"authorization": f"Bearer {up.tokens['root']}", "x-request-timeout-seconds": "5"}
        # Versions of a program that other tests do not ask.
        found = Target(up.url, headers, str(up.cert), NAMES | {"program": "generated"}, up.trust)
        yield found
        _as_it_was(found)


def _as_it_was(target: Target) -> None:
    """Some requests have paused or resized the pool."""
    with httpx.Client(
        base_url=f"{target.url}/v1/pools/default",
        headers=target.headers,
        verify=target.context,
        trust_env=False,
    ) as http:
        http.post("/resume").raise_for_status()
        http.post("/resize", json={"size": 2}).raise_for_status()
        until = time.monotonic() + ENDS_S
        while http.get("/stats").json()["actual"] != 2:
            assert time.monotonic() < until
            time.sleep(0.1)


SCHEMA = schemathesis.openapi.from_dict(document(ROUTES, version="0"))
OPERATIONS = {
    operation.ok().label: operation.ok()
    for operation in SCHEMA.get_all_operations()
    # It never ends; see test_http_streams.
    if not operation.ok().path.endswith("/events/stream")
}


@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_finds_a_defect_or_an_answer_that_is_not_documented(label, target, request):
    """No answer of 5xx that is not documented, no undocumented status, content type or shape."""
    direct = URL is not None or request.node.callspec.params["target"] == DIRECT
    if not direct:
        # An earlier request may have paused it.
        resume = f"{target.url}/v1/pools/default/resume"
        httpx.post(resume, headers=target.headers, verify=target.context, timeout=30, trust_env=False)
    operation = OPERATIONS[label]
    # It takes the schema of a stream for that of each event; see test_http_streams for those.
    stream = label.endswith(("/stream", "/warm"))
    left_out = [*LEFT_OUT, openapi_checks.response_schema_conformance] if stream else LEFT_OUT
    right = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
    try:
        wrong = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    except Unsatisfiable:
        wrong = right

    @settings(
        max_examples=EXAMPLES if direct else THROUGH_HAPROXY,
        deadline=None,
        derandomize=not LONG,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(right, wrong), st.sampled_from((True, True, True, False)))
    def ask(case, known):
        sent[target.url] += 1
        # Most made-up names lead nowhere: three times out of four they are those of things that exist.
        for name, value in target.names.items() if known else ():
            if case.path_parameters and name in case.path_parameters:
                case.path_parameters[name] = value
        answer = case.call_and_validate(
            base_url=target.url,
            headers=target.headers,
            verify=target.trust,
            excluded_checks=left_out,
            timeout=60,
        )
        assert answer.status_code < 500 or answer.json()["code"] != "internal_error", answer.text

    ask()


def test_enough_was_asked():
    """Runs last, by its place in the file. With `-rP` it shows how many requests were sent, and where to."""
    print(dict(sent))
    if LONG:
        assert min(sent.values()) >= 5000, sent
