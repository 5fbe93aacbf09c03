"""Bodies that are compressed: refused with what is accepted, whether or not a header says so, and whoever asks."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest

from dspool.tokens import TokenSource, issue
from dspool_serve.access.security import Security
from tests.serve.local_service import LocalService

QA = "/v1/pools/default/programs/qa/execute"
BODY = json.dumps(
    {"inputs": {"context": "Ray was started at Berkeley.", "question": "Where was Ray started?"}}
).encode()


@pytest.fixture(scope="module", params=["without tokens", "with a token"])
def http(request, tmp_path_factory):
    directory, headers, security = tmp_path_factory.mktemp("service"), {}, Security()
    if request.param == "with a token":
        text, _ = issue(directory / "tokens.yaml", "ada", "admin")
        headers, security = (
            {"authorization": f"Bearer {text}"},
            Security(TokenSource(directory / "tokens.yaml")),
        )
    with (
        LocalService(directory, security, operation_timeout_s=120.0) as service,
        httpx.Client(base_url=service.url, timeout=120, trust_env=False, headers=headers) as client,
    ):
        yield client


def sent(http, body, **headers):
    return http.post(QA, content=body, headers={"content-type": "application/json", **headers})


CODINGS = ["gzip", "deflate", "br", "zstd", "xz", "compress", "nonsense", "gzip, br", "identity, gzip"]


@pytest.mark.parametrize("key", [{}, {"idempotency-key": "k"}], ids=["", "with a key"])
@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_that_is_said_to_be_compressed_is_a_415_with_what_is_accepted(http, coding, key):
    answer = sent(http, b"\x0b\x03\x80{}\x03", **{"content-encoding": coding}, **key)
    assert answer.status_code == 415, answer.text
    assert answer.headers["accept-encoding"] == "identity"
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == "unsupported_media_type"
    assert problem["details"] == {"accept_encoding": "identity"}
    assert f"`Content-Encoding: {coding}` is not accepted, only `identity`" in problem["detail"]


def test_a_form_that_is_said_to_be_compressed_is_refused_too(http):
    form = {"content-type": "multipart/form-data; boundary=x", "content-encoding": "br"}
    answer = http.post(QA, content=b"--x--", headers=form)
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")


@pytest.mark.parametrize("coding", ["", "identity", "Identity"])
def test_a_body_as_it_is_may_say_so(http, coding):
    answer = sent(http, BODY, **{"content-encoding": coding})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"] == {"answer": "Berkeley"}


def test_a_compressed_body_that_no_header_tells_of_is_a_400_with_the_reason(http):
    answer = sent(http, gzip.compress(BODY))
    assert answer.status_code == 400
    assert "accept-encoding" not in answer.headers
    assert "the body is compressed, and no header says so" in answer.json()["detail"]


def test_a_body_of_another_type_is_no_matter_of_its_encoding(http):
    if "authorization" in http.headers:
        assert sent(http, BODY, **{"content-type": "text/plain"}).status_code == 200
    else:
        answer = sent(http, BODY, **{"content-type": "text/plain"})
        assert (answer.status_code, "accept-encoding" in answer.headers) == (415, False)
