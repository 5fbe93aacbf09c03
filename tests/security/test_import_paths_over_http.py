"""Nothing that is sent over HTTP runs code that the operator did not name, or leaves with the operator's key: a real
worker with real DSPy behind a real socket, a program file as users write it, and an attacker's server that waits."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

from dspool.testing.lm_server import LMServer
from dspool.tokens import TokenSource, issue
from dspool_serve.access.security import Security
from tests.security.shop_files import write_shop
from tests.serve.local_service import LocalService

POOL = "/v1/pools/default"
SESSION = f"{POOL}/sessions/s"
QA = {"signature": "question -> answer"}
KEY = "sk-the-operators-own"
GETOUTPUT = "shop:dspy.primitives.python_interpreter.subprocess.getoutput"


class Shop:
    """The service over `shop`, with a token for each of some people."""

    def __init__(self, home: Path, lm: LMServer, **service):
        self.canary = home / "canary"
        self.tokens = {}
        for name, role in {"ada": "caller", "root": "admin"}.items():
            self.tokens[name], _ = issue(home / "tokens.yaml", name, role)
        self.service = LocalService(
            home,
            Security(TokenSource(home / "tokens.yaml")),
            allowed_imports=["shop"],
            allowed_callables={"tools": ["shop:mark"]},
            programs={
                "cot": {"import_path": "shop:cot"},
                "marks": {"import_path": "shop:Takes", "kwargs": {"signature": "question -> answer"}},
            },
            lm_profiles={
                "own": {"model": "openai/test", "endpoint": lm.url, "api_key_env": "SHOP_MODEL_KEY"}
            },
            service=service,
        )

    def http(self, who: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.tokens[who]}"}
        return httpx.Client(base_url=self.service.url, headers=headers, timeout=30, trust_env=False)

    def run(self) -> list[str]:
        """What was run of `shop` that should not have been."""
        return self.canary.read_text().splitlines() if self.canary.exists() else []


@pytest.fixture
def start(tmp_path, monkeypatch):
    write_shop(tmp_path)
    monkeypatch.setenv("SHOP_CANARY", str(tmp_path / "canary"))
    monkeypatch.setenv("SHOP_MODEL_KEY", KEY)
    monkeypatch.syspath_prepend(str(tmp_path))
    running = []

    with LMServer(api_key=KEY) as lm:

        def begin(**service) -> Shop:
            shop = Shop(tmp_path, lm, **service)
            shop.lm = lm
            running.append(shop.service.__enter__())
            return shop

        yield begin
        for service in running:
            service.__exit__()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("shop", "shopping", "outside")]:
        del sys.modules[name]


def attacks(canary: Path) -> list[dict]:
    command = f"id > {canary}"
    tools = [
        {"tools": [path]} for path in (GETOUTPUT, "shop:getoutput", "shop:subprocess.getoutput", "os:system")
    ]
    return [
        {"import_path": GETOUTPUT, "kwargs": {"cmd": command}},
        {"import_path": "shop:getoutput", "kwargs": {"cmd": command}},
        {"import_path": "shop:subprocess.getoutput", "kwargs": {"cmd": command}},
        {"import_path": "shop:mark", "kwargs": {"word": "called"}},
        {"import_path": "shop:call_me"},
        {"import_path": "shop:lambda_"},
        {"import_path": "shop.__main__:Asks"},
        {"import_path": "shop._private:Asks"},
        {"import_path": "shopping:Asks"},
        {"import_path": "shop:ChainOfThought", "kwargs": {"signature": "q: shopping.T -> answer"}},
        {"import_path": "shop:Takes", "kwargs": {"signature": "q: shopping.T -> answer"}},
        {"import_path": "shop:Plain", "kwargs": {**QA, "api_base": "http://127.0.0.1:1/v1"}},
        *({"spec": {**QA, "module": "ReAct", "settings": settings}} for settings in tools),
        {"spec": {**QA, "module": "BestOfN", "settings": {"reward": GETOUTPUT}}},
        {"spec": {**QA, "module": "Refine", "settings": {"reward": "shop:mark"}}},
    ]


@pytest.mark.parametrize("who", ["ada", "root"])
@pytest.mark.parametrize("open_to_callers", [False, True])
def test_no_path_that_anybody_sends_runs_what_the_operator_did_not_name(start, who, open_to_callers):
    shop = start(session_imports=open_to_callers)
    with shop.http(who) as http:
        for body in attacks(shop.canary):
            answer = http.put(f"{SESSION}/programs/x", json=body)
            assert answer.status_code in (403, 422), (body, answer.text)
            assert answer.json()["detail"]
            deployed = http.post(f"{POOL}/programs/x/versions", json=body)
            assert deployed.status_code in (403, 422), (body, deployed.text)
            assert shop.run() == []


def test_import_paths_in_sessions_are_for_admins_unless_the_configuration_says_otherwise(start):
    agent = {"spec": {**QA, "module": "ReAct", "settings": {"tools": ["shop:mark"]}}}
    named = [{"import_path": "shop:Asks", "kwargs": {"mark": "#"}}, agent]
    shop = start()
    with shop.http("ada") as ada, shop.http("root") as root:
        for body in named:
            refused = ada.put(f"{SESSION}/programs/x", json=body)
            assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
            assert "service.session_imports" in refused.json()["detail"]
            assert ada.get(f"{SESSION}/programs/x").status_code == 404
            assert root.put(f"{SESSION}/programs/x", json=body).status_code == 200
        assert ada.put(f"{SESSION}/programs/x", json={"spec": QA}).status_code == 200


def test_copies_of_pool_programs_are_for_admins_and_run_what_the_operator_configured_and_nothing_else(start):
    copy = {"copy_of": "marks"}
    odd = [
        {**copy, "kwargs": {"signature": "q: shopping.T -> answer"}},
        {**copy, "import_path": "shop:mark"},
        {"copy_of": "nothing"},
        {**copy, "version": 9},
        {**copy, "version": 0},
    ]
    shop = start()
    with shop.http("ada") as ada, shop.http("root") as root:
        refused = ada.put(f"{SESSION}/programs/x", json=copy)
        assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
        for body in odd:
            assert root.put(f"{SESSION}/programs/x", json=body).status_code in (404, 422), body
            assert root.post(f"{POOL}/programs/x/versions", json=body).status_code == 422, body
        made = root.put(f"{SESSION}/programs/x", json={**copy, "version": 1})
        assert made.status_code == 200, made.text
        assert made.json()["info"]["info"]["import_path"] == "shop:Takes"
    assert shop.run() == []


def test_where_the_configuration_says_so_callers_may_name_what_is_allowed(start):
    shop = start(session_imports=True)
    with shop.http("ada") as ada:
        body = {"import_path": "shop:Asks", "kwargs": {"mark": "#"}}
        assert ada.put(f"{SESSION}/programs/x", json=body).status_code == 200
        answer = ada.post(f"{SESSION}/programs/x/execute", json={"inputs": {"question": "?"}})
        assert answer.json()["outputs"] == {"answer": "#"}
    assert shop.run() == []


def test_no_input_that_a_caller_sends_goes_to_the_model_call_or_leaves_with_the_key(start):
    shop = start(session_imports=True)
    with LMServer(text="[[ ## answer ## ]]\nowned") as attacker, shop.http("ada") as http:
        assert http.put(f"{SESSION}/programs/own", json={"import_path": "shop:cot"}).status_code == 200
        settings = [
            {"config": {"api_base": attacker.url}},
            {"config": {"api_base": attacker.url, "model": "openai/other", "api_key": "k"}},
            {"api_base": attacker.url},
            {"lm": "openai/other"},
            {"demos": [{"question": "q", "answer": "owned"}]},
            {"signature": "question: shopping.T -> answer"},
            {"signature": "question -> answer, secret"},
            {"prediction": {"type": "content", "content": "owned"}},
            {"new_signature": "question -> answer"},
            {"_trace": False},
            {"max_iters": 10**9},
            {"temperature": 2.0},
        ]
        for program in (f"{POOL}/programs/cot", f"{POOL}/programs/marks", f"{SESSION}/programs/own"):
            for more in settings:
                body = {"inputs": {"question": "?", **more}}
                for verb in ("execute", "stream"):
                    answer = http.post(f"{program}/{verb}", json=body)
                    assert "invalid_request" in answer.text, (program, more, answer.text)
                    assert "owned" not in answer.text
        batch = {"inputs": [{"question": "?", **more} for more in settings]}
        assert http.post(f"{POOL}/programs/cot/batch", json=batch).json()["failed"] == len(settings)
        assert (attacker.requests, shop.lm.requests) == (0, 0)
        honest = http.post(f"{POOL}/programs/cot/execute", json={"inputs": {"question": "What is it?"}})
        assert honest.status_code == 200, honest.text
        assert (attacker.requests, shop.lm.requests) == (0, 1)
    assert "shopping" not in sys.modules
    assert shop.run() == []


@pytest.mark.parametrize(
    "overrides",
    [
        {"api_base": "http://127.0.0.1:1"},
        {"api_key": "k"},
        {"model": "openai/x"},
        {"base_url": "http://127.0.0.1:1"},
    ],
)
def test_a_caller_chooses_among_models_and_never_where_they_are(start, overrides):
    shop = start()
    with shop.http("ada") as http:
        chosen = http.put(f"{SESSION}/lm", json={"profile": "own", "overrides": overrides})
        assert chosen.status_code == 422, chosen.text
        spec = {**QA, "settings": overrides}
        assert http.put(f"{SESSION}/programs/x", json={"spec": spec}).status_code == 422
        assert http.put(f"{SESSION}/programs/x", json={"spec": {**QA, **overrides}}).status_code == 422
    assert shop.lm.requests == 0
