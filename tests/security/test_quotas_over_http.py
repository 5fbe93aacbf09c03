"""What a token may ask for and keep over HTTP: rates hold for every change, and refusals say what to do."""

import httpx
import pytest

from dspool.core.admission.access import Token, new_token
from dspool.errors import QuotaExceeded
from dspool.messages import StorageLimits
from dspool.tokens import TokenSource, write
from dspool_serve.access.security import Security
from tests.unit.http_doubles import FakePool, served

POOL = "/v1/pools/default"
QA = f"{POOL}/programs/qa/execute"
INPUTS = {"inputs": {"question": "?"}}


class Recorder(FakePool):
    """Remembers the limits that came with each request."""

    def __init__(self):
        super().__init__()
        self.limits = []
        self.refuses = None

    async def create_session(self, id, *, principal=None, limits=None):
        self.limits.append(limits)
        if self.refuses is not None:
            raise self.refuses
        return await super().create_session(id, principal=principal, limits=limits)

    async def claim_key(self, key, *, limits=None, **claim):
        self.limits.append(limits)
        return await super().claim_key(key, limits=limits, **claim)


@pytest.fixture
def service(tmp_path):
    """Starts a service with one token, and gives its client and its pool."""

    def start(role="caller", **limits):
        text, token = new_token("ada", role, "A" * 43, "00000000")
        fields = {field: getattr(token, field) for field in token.__struct_fields__}
        write(tmp_path / "tokens.yaml", [Token(**(fields | limits))])
        pool = Recorder()
        app = served(pool, security=Security(TokenSource(tmp_path / "tokens.yaml")))
        http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://dspool",
            headers={"authorization": f"Bearer {text}"},
        )
        return http, pool

    return start


CHANGES = [
    ("POST", f"{POOL}/sessions", {}),
    ("DELETE", f"{POOL}/sessions/s", None),
    ("POST", f"{POOL}/sessions/s/reset", None),
    ("PUT", f"{POOL}/sessions/s/variables/v", {"value": 1}),
    ("PUT", f"{POOL}/sessions/s/programs/p", {"signature": "a -> b"}),
    ("POST", QA, INPUTS),
]


@pytest.mark.parametrize(("method", "path", "body"), CHANGES, ids=lambda part: str(part)[:60])
async def test_a_quota_counts_every_change_once_and_not_only_operations(service, method, path, body):
    http, _ = service(quota_per_day=10)
    async with http:
        answers = [(await http.request(method, path, json=body)).status_code for _ in range(14)]
    assert answers[10:] == [429] * 4
    assert 429 not in answers[:10]


async def test_each_operation_of_a_batch_counts(service):
    http, pool = service(quota_per_day=5)
    async with http:
        await http.post(f"{POOL}/programs/qa/batch", json={"inputs": [INPUTS["inputs"]] * 8})
        assert pool.runs == 5
        assert (await http.post(QA, json=INPUTS)).status_code == 429


async def test_a_repetition_under_a_key_counts_too(service):
    http, pool = service(quota_per_day=3)
    async with http:
        answers = [
            (await http.post(QA, json=INPUTS, headers={"idempotency-key": "k"})).status_code for _ in range(5)
        ]
    assert answers == [200, 200, 200, 429, 429]
    assert pool.runs == 1


async def test_looking_is_not_counted(service):
    http, _ = service(quota_per_day=1)
    async with http:
        answers = {(await http.get(f"{POOL}/sessions/ada")).status_code for _ in range(5)}
    assert 429 not in answers


async def test_an_admins_changes_of_the_pool_count_for_a_limited_admin(service):
    http, _ = service("admin", quota_per_day=2)
    async with http:
        answers = [(await http.post(f"{POOL}/pause")).status_code for _ in range(4)]
    assert answers[2:] == [429, 429]


async def test_what_a_token_says_of_storage_goes_with_its_requests(service):
    http, pool = service(max_sessions=3, max_stored_mb=1.5)
    async with http:
        await http.post(f"{POOL}/sessions", json={})
        await http.post(QA, json=INPUTS, headers={"idempotency-key": "k"})
        await http.put(f"{POOL}/sessions/s/variables/v", json={"value": 1})
    limits = StorageLimits(max_sessions=3, max_stored_mb=1.5)
    assert pool.limits == [limits, limits]
    assert pool.asked[-1]["limits"] == limits


async def test_a_token_that_says_nothing_sends_nothing(service):
    http, pool = service()
    async with http:
        await http.put(f"{POOL}/sessions/s/variables/v", json={"value": 1})
    assert pool.asked[-1]["limits"] is None


async def test_a_refusal_names_the_limit_and_how_to_get_room_and_frees_its_key(service):
    http, pool = service()
    key = {"idempotency-key": "k"}
    async with http:
        pool.refuses = QuotaExceeded(
            "you may have 3 sessions (max_sessions): end some",
            limit="max_sessions",
            most=3,
            scope="principal",
        )
        refused = await http.post(f"{POOL}/sessions", json={}, headers=key)
        assert refused.status_code == 429
        assert refused.json()["code"] == "quota_exceeded"
        assert refused.json()["details"] == {"limit": "max_sessions", "most": 3, "scope": "principal"}
        assert "end some" in refused.json()["detail"]
        assert "retry-after" not in refused.headers, "waiting does not help"
        pool.refuses = None
        assert (await http.post(f"{POOL}/sessions", json={}, headers=key)).status_code == 201


async def test_admins_see_who_keeps_how_much(service):
    http, _ = service("admin")
    async with http:
        page = (await http.get(f"{POOL}/usage", params={"limit": 1})).json()
        assert page["total"] == {"principal": None, "sessions": 3, "stored_mb": 1.5, "answers_mb": 0.5}
        assert [row["principal"] for row in page["principals"]] == ["ada"]
        rest = (await http.get(f"{POOL}/usage", params={"cursor": page["next_cursor"]})).json()
        assert [row["principal"] for row in rest["principals"]] == ["bob"]


async def test_callers_do_not(service):
    http, _ = service("caller")
    async with http:
        assert (await http.get(f"{POOL}/usage")).status_code == 403
