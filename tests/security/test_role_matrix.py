"""Every route, asked by everybody, in every way and under every spelling of its path; and what is one principal's never
comes to another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from dspool.core.admission.access import ROLES
from dspool.tokens import TokenSource, issue
from dspool_serve.access.security import Security
from dspool_serve.http.routing import Route
from tests.security import matrix
from tests.security.matrix import JSON_BODY, WAYS, Way, World, expected, filled
from tests.serve.local_service import LocalService

OPEN = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/docs/docs.js"),
    ("GET", "/docs/docs.css"),
    ("GET", "/"),
    ("GET", "/dashboard"),
    ("GET", "/dashboard/"),
    ("GET", "/dashboard/static/{version}/{file}"),
    ("GET", "/dashboard/static/{version}/{file}/{inner}"),
    ("GET", "/dashboard/me"),
    ("POST", "/dashboard/login"),
    ("POST", "/dashboard/logout"),
}
"""What everybody who reaches the port may ask. Whoever adds to it does so here, too."""
METHODS = (
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "get",
    "PROPFIND",
    "",
)
WEAK = tuple(way for way in WAYS if way.name in ("nobody", "reader", "caller", "caller*", "admin*!"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_each_way_of_asking_gets_through_to_what_its_role_may_do_and_no_further(tmp_path):
    found = await matrix.cells(tmp_path)
    assert len(found) >= 80 * len(WAYS)
    assert [cell for cell in found if cell.found != cell.expected] == []


def test_what_is_open_to_all_is_known_by_name(world):
    routes = world.guarded.routes
    assert {(route.method, route.path) for route in routes if route.role is None} == OPEN
    assert len({(route.method, route.path) for route in routes}) == len(routes)


async def test_a_method_that_a_path_does_not_have_reaches_nothing(world):
    service = world.guarded
    by_path: dict[str, set[str]] = {}
    for route in service.routes:
        by_path.setdefault(route.path, set()).add(route.method)
    for path, has in by_path.items():
        for method in METHODS:
            for way in WEAK:
                proof = await world.proof(way, method)
                service.security.reached.clear()
                answer = await service.ask(method, filled(path), JSON_BODY, *proof, body=b"{}")
                reached = service.security.reached
                if method in has or (method == "HEAD" and "GET" in has):
                    assert all(expected(route, way) == "yes" for route in reached), (method, path, way)
                else:
                    assert reached == [], (method, path, way)
                    assert answer.status == 405, (method, path, answer)
                    assert answer.headers[b"allow"].decode().split(", ") == sorted(has)


def spellings(path: str) -> list[str]:
    """Other ways to write a path that some server, proxy or file system takes for the same."""
    first, *rest = path[1:].split("/")
    last = rest[-1] if rest else first
    head = path[: -len(last) - 1]
    found = [
        "/" + path,
        path + "/",
        path + "//",
        path.replace("/", "//"),
        path.replace("/", "/./"),
        path + "/.",
        path + "/..",
        f"/x/..{path}",
        f"/{first}/../{first}{path[len(first) + 1 :]}",
        f"/healthz/..{path}",
        f"/dashboard/static/1/..{path}",
        f"/dashboard/..%2f..{path}",
        path.replace("/", "%2f")[len("%2f") :],
        "/" + path[1:].replace("/", "%2F"),
        f"{head}%2f{last}",
        f"{head}%252f{last}",
        f"{head}\\{last}",
        f"{head}%5c{last}",
        f"{head}/%2e/{last}",
        f"{head}/%2e%2e/{last}",
        f"{head}/{last}%00",
        f"{head}/{last}%20",
        f"{head}/{last}.",
        f"{head}/{last};x=y",
        f"{head}/{last}.json",
        f"{head}/{last}%3fx",
        f"{head}/{last}%23",
        f"{head}/{''.join(f'%{ord(char):02x}' for char in last)}",
        f"{head}/{last.upper()}",
        path.upper(),
        path.replace("v1", "V1"),
        path.replace("/v1", "", 1) or "/",
        f"http://localhost{path}",
        path[1:],
        f"{head}/{last}?_method=GET&token=x&role=admin",
    ]
    return [spelling for spelling in dict.fromkeys(found) if spelling != path]


async def test_no_spelling_of_a_path_leads_to_what_needs_less_than_the_path_itself(world):
    rank = {None: 0, **{role: number for number, role in enumerate(ROLES, 1)}}
    service, asked = world.guarded, 0
    for route in service.routes:
        for spelling in spellings(filled(route.path)):
            for way in WEAK:
                proof = await world.proof(way, route.method)
                for raw in (True, False):
                    service.security.reached.clear()
                    answer = await service.ask(route.method, spelling, JSON_BODY, *proof, body=b"{}", raw=raw)
                    asked += 1
                    assert answer.status < 500, (route, spelling, answer)
                    for reached in service.security.reached:
                        assert expected(reached, way) == "yes", (route, spelling, reached)
                        assert rank[reached.role] >= rank[route.role] or _is_a_name(reached, spelling), (
                            f"{route.method} {spelling} is {reached.path}"
                        )
    assert asked > 10_000


def _is_a_name(reached: Route, spelling: str) -> bool:
    """Whether the odd part was taken for a name, such as that of a program: an escaped slash is no slash."""
    fixed = [part for part in reached.path.split("/") if not part.startswith("{")]
    return all(part in spelling.split("?")[0].split("/") for part in fixed)


async def test_nothing_is_served_over_websocket(world):
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    for route in world.open.routes:
        path = filled(route.path)
        scope = {"type": "websocket", "path": path, "raw_path": path.encode(), "headers": []}
        await world.open.app(scope, receive, send)
    assert {message["type"] for message in sent} == {"websocket.close"}
    assert world.open.security.reached == []


@pytest.mark.parametrize(
    "proofs",
    [
        # Which of two would count may differ from server to server: the weaker or none.
        ("caller", "admin"),
        ("admin", "caller"),
        ("wrong", "admin"),
    ],
)
async def test_two_tokens_in_one_request_are_never_more_than_one_of_them(world, proofs):
    ways = [next(way for way in WAYS if way.name == name) for name in proofs]
    both = [header for way in ways for header in await world.proof(way, "POST")]
    last = ways[-1]
    for route in world.guarded.routes:
        world.guarded.security.reached.clear()
        await world.guarded.ask(route.method, filled(route.path), JSON_BODY, *both, body=b"{}")
        assert all(expected(reached, last) == "yes" for reached in world.guarded.security.reached)


async def test_a_bad_token_is_not_made_good_by_a_login_that_is_sent_along(world):
    cookie = await world.proof(Way("admin*", "admin", cookie=True), "POST")
    for name in ("wrong", "expired"):
        bad = await world.proof(Way(name), "POST")
        for route in world.guarded.routes:
            world.guarded.security.reached.clear()
            await world.guarded.ask(route.method, filled(route.path), JSON_BODY, *bad, *cookie, body=b"{}")
            assert all(reached.role is None for reached in world.guarded.security.reached), route.path


# --- two principals on a real worker, with a real store ---

CANARY = "Zanzibar4471"
PEOPLE = {"ada": "caller", "bob": "caller", "eve": "reader", "root": "admin"}
POOL = "/v1/pools/default"


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    """HTTP to a service that several use, as each of PEOPLE, as nobody, and with a token of nobody."""
    directory = tmp_path_factory.mktemp("shared")
    tokens = directory / "tokens.yaml"
    texts = {name: issue(tokens, name, role)[0] for name, role in PEOPLE.items()}  # type: ignore[arg-type]
    texts["wrong"] = "dsp_00000000_" + "x" * 43
    with LocalService(directory, Security(TokenSource(tokens))) as service, ExitStack() as stack:

        def client(text: str | None) -> httpx.Client:
            headers = {} if text is None else {"authorization": f"Bearer {text}"}
            http = httpx.Client(
                base_url=service.url, headers=headers, timeout=60, trust_env=False, verify=False
            )
            return stack.enter_context(http)

        yield {"nobody": client(None), **{name: client(text) for name, text in texts.items()}}


def with_things(ada: httpx.Client, session: str) -> None:
    """A session of ada's with a program, a variable and a history, all of which hold the canary."""
    path = f"{POOL}/sessions/{session}"
    asked = {"inputs": {"context": f"{CANARY} is the capital.", "question": "What is the capital?"}}
    signature = {
        "signature": {"instructions": CANARY, "inputs": ["context", "question"], "outputs": ["answer"]}
    }
    assert ada.put(f"{path}/programs/program", json=signature).status_code == 200
    assert ada.put(f"{path}/variables/variable", json={"value": CANARY}).status_code in (200, 204)
    assert CANARY in ada.post(f"{path}/programs/program/execute", json=asked).text


def state_of(ada: httpx.Client, session: str) -> list[Any]:
    path = f"{POOL}/sessions/{session}"
    parts = ("/programs", "/programs/program", "/variables", "/variables/variable", "/history")
    answers = [ada.get(path + part) for part in parts]
    assert {answer.status_code for answer in answers} == {200}
    return [{**answer.json(), "worker": None, "operation_id": None} for answer in answers]


def console_routes() -> tuple[Route, ...]:
    return matrix.Service(None).console.routes


OF_SESSIONS = [route for route in matrix.ROUTES if "{session}" in route.path and route.role != "admin"]
BODIES: dict[str, Any] = {
    "lm": {"lm": "offline"},
    "execute": {"inputs": {"context": "Rome is big.", "question": "What is big?"}},
    "stream": {"inputs": {"context": "Rome is big.", "question": "What is big?"}},
    "{program}": {"signature": "question -> answer"},
    "{variable}": {"value": 1},
}


@pytest.mark.parametrize("route", OF_SESSIONS, ids=lambda route: f"{route.method} {route.path}")
def test_a_caller_who_names_anothers_session_finds_what_is_there_for_a_session_of_nobody(people, route):
    number = OF_SESSIONS.index(route)
    mine, none = f"s{number}", f"n{number}"
    body = BODIES.get(route.path.rpartition("/")[2])
    ada, bob, eve, root = (people[name] for name in ("ada", "bob", "eve", "root"))

    def asked(who: httpx.Client, session: str) -> httpx.Response:
        path = filled(route.path.replace("{session}", session))
        content = None if body is None or route.method in ("GET", "DELETE") else json.dumps(body)
        return who.request(route.method, path, content=content, headers={"content-type": "application/json"})

    with_things(ada, mine)
    before = state_of(ada, mine)
    for form in (
        "{}",
        "ada%2F{}",
        "ada%2f{}",
        "%61da%2F{}",
        "bob%2F..%2Fada%2F{}",
        "%2Fada%2F{}",
        "ada%2F%2F{}",
    ):
        answer, control = asked(bob, form.format(mine)), asked(bob, form.format(none))
        assert answer.status_code == control.status_code, (form, answer.text)
        assert CANARY not in answer.text + str(answer.headers)
        assert asked(eve, form.format(mine)).status_code == 403
    assert asked(bob, f"ada/{mine}").status_code in (404, 405)
    assert state_of(ada, mine) == before
    # An admin may look, by the name that the list shows: so a caller's try was no misspelling.
    assert root.get(f"{POOL}/sessions/ada%2F{mine}").status_code == 200


def test_nothing_that_is_adas_is_in_any_answer_to_another(people):
    session, ada = f"session-{CANARY}", people["ada"]
    with_things(ada, session)
    path = f"{POOL}/sessions/{session}"
    assert ada.put(f"{path}/programs/{CANARY}", json={"signature": f"{CANARY} -> answer"}).status_code == 200
    assert ada.put(f"{path}/variables/{CANARY}", json={"value": CANARY}).status_code in (200, 204)
    inputs = {"context": f"{CANARY} is the capital.", "question": "What is the capital?"}
    for program in (f"{POOL}/programs/qa", f"{path}/programs/{CANARY}"):
        ada.post(f"{program}/execute", json={"inputs": inputs}, headers={"idempotency-key": CANARY})
    assert CANARY in ada.get(f"{POOL}/sessions").text, "whose canary it is"
    seen = 0
    for who in ("bob", "eve", "nobody", "wrong"):
        for route in (*matrix.ROUTES, *matrix.Service(None).console.routes):
            # A stream of events tells what `/events` and `/overview` answer, without an end.
            if route.method != "GET" or route.stream or route.media == "text/event-stream":
                continue
            named = route.path.replace("{program}", "qa").replace("{worker}", "default-w0-abcdef")
            answer = people[who].get(filled(named))
            assert CANARY not in str(answer.headers) + answer.text, (who, route.path)
            seen += answer.status_code == 200
    assert seen > 60
