"""Who logs in, from where, and until when."""

from __future__ import annotations

import httpx
import pytest

from dspool.core.admission.attempts import Attempts, holder_of
from dspool_console.dashboard.service import WRONG_AT_ONCE
from dspool_serve.http.requests import Request
from tests.dashboard_demo import SimulatedPool, application, tokens_for

LOGIN = "/dashboard/login"
OWN_PAGE = {"x-dspool-csrf": "login"}


@pytest.fixture(scope="module")
def pool():
    return SimulatedPool(workers=1, history_s=2)


class Service:
    """The dashboard of a service with an admin, seen from several addresses."""

    def __init__(self, pool, **settings):
        self.texts, self.source = tokens_for(root="admin")
        self.app = application(pool, tokens=self.source, **settings)

    def http(self, address="192.0.2.1", **headers):
        transport = httpx.ASGITransport(app=self.app, client=(address, 1234))
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=OWN_PAGE | headers)

    async def wrong(self, times, address="192.0.2.1", **headers):
        """The statuses of so many logins with a wrong token."""
        async with self.http(address, **headers) as http:
            return [(await http.post(LOGIN, json={"token": "dsp_no"})).status_code for _ in range(times)]

    async def right(self, address="192.0.2.1"):
        async with self.http(address) as http:
            return (await http.post(LOGIN, json={"token": self.texts["root"]})).status_code


# --- wrong tokens -----------------------------------------------------------------------------------


async def test_a_right_token_gets_in_however_many_wrong_ones_anybody_sends(pool):
    service = Service(pool)
    assert await service.wrong(WRONG_AT_ONCE + 5) == [401] * WRONG_AT_ONCE + [429] * 5
    assert await service.right("192.0.2.2") == 200
    assert await service.right() == 200, "also from the address that sent the wrong ones"


async def test_wrong_tokens_of_one_address_cost_no_other_address_an_answer(pool):
    service = Service(pool)
    await service.wrong(WRONG_AT_ONCE + 1)
    assert await service.wrong(1, "192.0.2.2") == [401]


async def test_an_address_is_what_haproxy_saw_and_not_what_the_client_says_of_itself(pool):
    service = Service(pool, client_header="x-dspool-client-secret")
    forged = [
        {name: f"203.0.113.{number}"}
        for number in range(WRONG_AT_ONCE)
        for name in ("x-forwarded-for", "x-real-ip", "forwarded", "x-dspool-client", "true-client-ip")
    ]
    for headers in forged[:WRONG_AT_ONCE]:
        assert await service.wrong(1, **headers) == [401]
    for headers in forged:
        assert await service.wrong(1, **headers) == [429]
    # What HAProxy set: the connection itself is its own.
    assert await service.wrong(1, **{"x-dspool-client-secret": "192.0.2.7"}) == [401]


def test_a_request_knows_the_address_of_its_connection_if_nothing_is_in_front():
    async def receive():
        return {}

    scope = {"type": "http", "headers": [(b"x-dspool-client", b"203.0.113.1")], "client": ("192.0.2.1", 5)}
    assert Request(scope, receive).client == "192.0.2.1"
    assert Request({"type": "http", "headers": []}, receive).client == ""


def test_who_was_wrong_is_remembered_for_a_bounded_number_of_addresses():
    attempts = Attempts(2, 60.0, remembered=100)
    for number in range(10_000):
        attempts.count(f"10.0.{number // 256}.{number % 256}", now=0.0)
    assert len(attempts) == 100


def test_attempts_come_back_with_time():
    attempts = Attempts(2, 60.0)
    assert [attempts.count("a", now=0.0) for _ in range(3)] == [0.0, 0.0, 30.0]
    assert [attempts.count("a", now=30.0) for _ in range(2)] == [0.0, 30.0]


@pytest.mark.parametrize(
    ("address", "holder"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("x" * 1000, "x" * 64),
        ("", ""),
    ],
)
def test_an_address_stands_for_whoever_holds_it(address, holder):
    assert holder_of(address) == holder


@pytest.mark.parametrize("token", ["\ud800", "\x00", "x" * 4000, "dsp_é", " "])
async def test_a_token_that_is_none_is_a_401_like_any_other(pool, token):
    service = Service(pool)
    body = httpx.Request("POST", "http://x", json={"token": "@"}).content.replace(
        b"@", b"\\ud800" if token == "\ud800" else token.encode().replace(b"\x00", b"\\u0000")
    )
    async with service.http() as http:
        answer = await http.post(LOGIN, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 401, 422), answer.text
    assert "xxxx" not in answer.text
