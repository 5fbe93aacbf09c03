"""Who logs in, from where, and until when."""

from __future__ import annotations

import asyncio
import base64

import httpx
import pytest

from dspool.core.admission.access import Token, new_token
from dspool.core.admission.attempts import Attempts, holder_of
from dspool.errors import StoreFailed
from dspool.store.logins import KEPT_EACH, RECORD
from dspool.store.store import SessionStore
from dspool.tokens import TokenSource, write
from dspool_console.dashboard.service import WRONG_AT_ONCE
from dspool_serve.http.requests import Request
from tests.dashboard_demo import application, tokens_for
from tests.simulated_pool import SimulatedPool

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


# --- until when a login counts ----------------------------------------------------------------------


class Processes:
    """Two ingress processes of one service, whose time the test tells."""

    def __init__(self, pool, tmp_path):
        self.now = self.clock = 1_800_000_000.0
        self.file = tmp_path / "tokens.yaml"
        self.text, self.token = new_token("root", "admin", "A" * 43, "0000000a")
        write(self.file, [self.token])
        ticks = iter(range(1_000_000))
        source = TokenSource(self.file, clock=lambda: float(next(ticks)))
        self.apps = [application(pool, tokens=source) for _ in range(2)]
        for app in self.apps:
            app._security._wall = lambda: self.now
            logins = app._console.dashboard.logins
            logins._wall, logins._clock = lambda: self.now, lambda: self.clock

    async def ask(self, number, method, path, *, cookie=None, **options):
        headers = OWN_PAGE | ({"cookie": cookie} if cookie else {}) | options.pop("headers", {})
        transport = httpx.ASGITransport(app=self.apps[number])
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.request(method, path, headers=headers, **options)

    async def log_in(self, number=0, cookie=None):
        answer = await self.ask(number, "POST", LOGIN, json={"token": self.text}, cookie=cookie)
        assert answer.status_code == 200
        return answer.headers["set-cookie"].split(";")[0]

    async def counts(self, cookie):
        """Whether it does, by what each process says in each way."""
        found = set()
        for number in (0, 1):
            self.clock += 1.0
            for path in ("/v1/pools", "/v1/audit"):
                found.add((await self.ask(number, "GET", path, cookie=cookie)).status_code == 200)
            found.add(
                not (await self.ask(number, "GET", "/dashboard/me", cookie=cookie)).json()["login_needed"]
            )
        assert len(found) == 1, "the ways do not agree"
        return found.pop()


@pytest.fixture
def processes(tmp_path):
    return Processes(SimulatedPool(workers=1, history_s=2), tmp_path)


async def test_a_cookie_is_worth_nothing_after_logging_out_at_any_process(processes):
    cookie, other = await processes.log_in(), await processes.log_in()
    assert await processes.counts(cookie)
    answer = await processes.ask(0, "POST", "/dashboard/logout", cookie=cookie)
    assert answer.status_code == 204
    assert all("Max-Age=0" in one for one in answer.headers.get_list("set-cookie"))
    assert not await processes.counts(cookie)
    assert await processes.counts(other), "another login with the same token goes on"


async def test_a_login_that_was_prolonged_ends_with_all_its_cookies(processes):
    cookie = await processes.log_in()
    processes.now += 2000
    longer = (await processes.ask(1, "GET", "/dashboard/me", cookie=cookie)).headers["set-cookie"]
    longer = longer.split(";")[0]
    assert longer != cookie
    await processes.ask(1, "POST", "/dashboard/logout", cookie=cookie)
    assert not await processes.counts(cookie)
    assert not await processes.counts(longer)


async def test_logging_in_again_ends_the_login_before(processes):
    cookie = await processes.log_in()
    again = await processes.log_in(cookie=cookie)
    assert not await processes.counts(cookie)
    assert await processes.counts(again)


async def test_a_process_that_begins_later_knows_what_was_ended(processes, tmp_path):
    cookie = await processes.log_in()
    await processes.ask(0, "POST", "/dashboard/logout", cookie=cookie)
    pool = processes.apps[0]._pools.get("default")
    later = Processes(pool, tmp_path)
    assert not await later.counts(cookie)


async def test_a_login_ends_when_nobody_used_it_for_an_hour_and_after_half_a_day(processes):
    cookie = await processes.log_in()
    processes.now += 3599
    assert await processes.counts(cookie)
    processes.now += 1
    assert not await processes.counts(cookie)
    cookie, began = await processes.log_in(), processes.now
    while processes.now < began + 12 * 3600 - 1800:
        processes.now += 1800
        answer = await processes.ask(0, "GET", "/dashboard/me", cookie=cookie)
        cookie = answer.headers.get("set-cookie", cookie).split(";")[0]
    processes.now = began + 12 * 3600 - 1
    assert await processes.counts(cookie)
    processes.now += 1
    assert not await processes.counts(cookie)


@pytest.mark.parametrize(
    "change",
    [{"role": "reader"}, {"name": "somebody"}, {"sha256": "0" * 64}, {"expires_at": 1.0}, {"id": "0000000b"}, None],
)  # fmt: skip
async def test_a_login_ends_with_its_token(processes, change):
    cookie = await processes.log_in()
    fields = {name: getattr(processes.token, name) for name in Token.__struct_fields__}
    write(processes.file, [] if change is None else [Token(**(fields | change))])
    for number in (0, 1):
        assert (await processes.ask(number, "GET", "/v1/pools", cookie=cookie)).status_code == 401


async def test_a_store_that_is_away_keeps_nobody_out_and_lets_nobody_out_in_silence(processes):
    pool = processes.apps[0]._pools.get("default")
    cookie = await processes.log_in()

    async def away(*_):
        raise StoreFailed("the session store is not reachable")

    pool.end_login = pool.ended_logins = away
    processes.clock += 10
    assert (await processes.ask(0, "GET", "/v1/pools", cookie=cookie)).status_code == 200
    answer = await processes.ask(0, "POST", "/dashboard/logout", cookie=cookie)
    assert (answer.status_code, answer.json()["code"]) == (503, "store_failed")
    assert len(answer.headers.get_list("set-cookie")) == 2
    # The process that was asked knows, whatever the store says.
    assert (await processes.ask(0, "GET", "/v1/pools", cookie=cookie)).status_code == 401


async def test_the_store_is_not_asked_for_each_request(processes):
    pool, asked = processes.apps[0]._pools.get("default"), []
    known = pool.ended_logins

    async def counted():
        asked.append(1)
        return await known()

    pool.ended_logins = counted
    cookie = await processes.log_in()
    processes.clock += 1
    await asyncio.gather(*(processes.ask(0, "GET", "/v1/pools", cookie=cookie) for _ in range(20)))
    bearer = {"authorization": f"Bearer {processes.text}"}
    processes.clock += 1
    await processes.ask(0, "GET", "/v1/pools", headers=bearer)
    assert len(asked) <= 2


async def test_the_cookie_goes_to_the_page_and_the_api_alone(processes):
    answer = await processes.ask(0, "POST", LOGIN, json={"token": processes.text})
    paths = [one.split("Path=")[1].split(";")[0] for one in answer.headers.get_list("set-cookie")]
    assert paths == ["/dashboard", "/v1"]
    cookie = answer.headers["set-cookie"].split(";")[0]
    assert (await processes.ask(0, "GET", "/metrics", cookie=cookie)).status_code == 401


async def test_the_store_keeps_the_ended_logins_of_a_token_bounded_and_forgets_those_that_are_over(tmp_path):
    now = 0.0
    store = SessionStore(f"sqlite:///{tmp_path}/dspool.db", clock=lambda: now)
    await store.open()
    for number in range(KEPT_EACH + 10):
        ended = await store.end_login("p", "a", f"n{number}", 100.0 + number)
    assert len(ended["a"]) == KEPT_EACH
    assert "n73" in ended["a"]
    now = 200.0
    assert await store.end_login("p", "b", "m", 300.0) == {"b": {"m": 300.0}}
    await store.close()
    again = SessionStore(f"sqlite:///{tmp_path}/dspool.db", clock=lambda: now)
    await again.open()
    assert await again.get_record("p", RECORD) == {"b": {"m": 300.0}}
    assert await again.get_record("other", RECORD) is None
    await again.close()


# --- what is no token -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        lambda token: [("authorization", f"Bearer {token}"), ("authorization", "Bearer dsp_no")],
        lambda token: [("authorization", "Bearer dsp_no"), ("authorization", f"Bearer {token}")],
        lambda token: [("authorization", f"Bearer {token}"), ("authorization", f"Bearer {token}")],
        lambda token: [("authorization", f"Bearer {token}, Bearer {token}")],
        lambda token: [("authorization", f"Bearer {token},")],
        lambda token: [("authorization", f"Bearer\t{token}")],
        lambda token: [("authorization", f"Bearer{token}")],
        lambda token: [("authorization", f"bearer:{token}")],
        lambda token: [("authorization", f"Token {token}")],
        lambda token: [("authorization", token)],
        lambda token: [("authorization", f"Basic {base64.b64encode(f'root:{token}'.encode()).decode()}")],
        lambda token: [("authorization", f"Bearer {token[:20]} {token[20:]}")],
        lambda token: [("authorization", f"Bearer {token.upper()}")],
        lambda token: [("authorization", f'Bearer "{token}"')],
        lambda token: [("cookie", f"dspool_login={token}")],
        lambda token: [("cookie", f"authorization=Bearer {token}")],
        lambda token: [("x-authorization", f"Bearer {token}")],
        lambda token: [("proxy-authorization", f"Bearer {token}")],
        lambda token: [("x-api-key", token)],
    ],
)
async def test_a_token_counts_in_the_one_header_alone(processes, headers):
    transport = httpx.ASGITransport(app=processes.apps[0])
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        answer = await http.get("/v1/pools", headers=headers(processes.text))
        # A header that comes twice is refused before anybody reads it.
        assert answer.json()["code"] in ("unauthenticated", "malformed_request")
        assert processes.text[13:] not in answer.text


@pytest.mark.parametrize("name", ["token", "access_token", "authorization", "api_key", "bearer", "key"])
async def test_a_token_in_an_address_counts_nothing(processes, name):
    for path in ("/v1/pools", "/v1/pools/default/live", "/metrics", "/v1/pools/default/events/stream"):
        for value in (processes.text, f"Bearer {processes.text}"):
            answer = await processes.ask(0, "GET", path, params={name: value})
            assert answer.status_code == 401
            assert processes.text[13:] not in answer.text


async def test_every_401_says_the_same(processes):
    _, expired = new_token("old", "admin", "B" * 43, "0000000c", expires_at=1.0)
    write(processes.file, [processes.token, expired])
    wrong = (
        "dsp_0000000a_" + "B" * 43,
        "dsp_0000000c_" + "B" * 43,
        "dsp_99999999_" + "B" * 43,
        "nonsense",
        "",
        processes.text + "x",
        processes.token.sha256,
    )
    said = set()
    for token in wrong:
        answer = await processes.ask(0, "GET", "/v1/pools", headers={"authorization": f"Bearer {token}"})
        said.add((answer.status_code, answer.text, answer.headers["www-authenticate"]))
    assert len(said) == 1
