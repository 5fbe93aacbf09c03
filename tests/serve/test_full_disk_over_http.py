"""A service whose state directory is on a full disk: what callers are told, what they still read, and that it ends."""

from __future__ import annotations

import httpx
import pytest

from tests.serve.local_service import LocalService
from tests.small_disk import fill, make_room, small_disk

SESSIONS = "/v1/pools/default/sessions"
VALUE = f"{SESSIONS}/s/variables/x"


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    with small_disk(tmp_path_factory.mktemp("full")) as place:
        yield place


@pytest.fixture(scope="module")
def http(disk):
    with LocalService(disk) as service, httpx.Client(base_url=service.url, trust_env=False) as client:
        client.post(SESSIONS, json={"id": "s"}).raise_for_status()
        client.put(VALUE, json={"value": 41}).raise_for_status()
        yield client


@pytest.fixture
def full(disk, http):
    fill(disk)
    yield http
    make_room(disk)


def refused(answer):
    assert answer.status_code == 503, answer.text
    problem = answer.json()
    assert (problem["code"], problem["details"]["cause"]) == ("store_failed", "no_space")
    assert "there is no space left on the device" in problem["detail"]


def test_what_is_new_is_refused_by_its_cause(full):
    refused(full.put(VALUE, json={"value": 42}))
    refused(full.post(SESSIONS, json={"id": "other"}))


def test_values_and_sessions_are_read_before_and_after_a_refusal(full):
    assert full.get(VALUE).json()["value"] == 41
    refused(full.put(VALUE, json={"value": 42}))
    for _ in range(20):
        assert full.get(VALUE).json()["value"] == 41
    assert [one["id"] for one in full.get(SESSIONS).json()["sessions"]] == ["s"]
    assert full.get("/v1/pools/default/programs").status_code == 200


def test_operations_without_a_session_are_answered(full):
    body = {"inputs": {"context": "Tea is made of leaves.", "question": "What is tea made of?"}}
    assert full.post("/v1/pools/default/programs/qa/execute", json=body).status_code == 200


def test_writing_goes_on_by_itself_once_there_is_room(disk, http):
    fill(disk)
    refused(http.put(VALUE, json={"value": 42}))
    make_room(disk)
    assert http.put(VALUE, json={"value": 43}).status_code < 300
    assert http.get(VALUE).json()["value"] == 43
    http.put(VALUE, json={"value": 41}).raise_for_status()
